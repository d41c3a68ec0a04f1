"""One example of an evaluation, as a line of JSON: asked, wanted, answered, scored.

Knows the line, not the file or how the answer came about.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shammah.errors import InputError
from shammah.evaluation.scorer import Score


@dataclass(frozen=True, slots=True)
class RowError:
    """What went wrong with an example. `stage` is `answer` or the scorer's name, `kind` the
    error's class."""

    stage: str
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """One example that was asked.

    Attributes:
        index: its number in the data set, from 0; each comes once in a run.
        place: the file and line it is from.
        input: the prompt's messages, as `messages.to_dicts` writes them.
        expected: the answer of the data set; None where it gives none.
        predicted: the model's answer; None where there was none.
        scores: by scorer; one that failed is not in it.
        seconds: from asking to the answer, with waiting for the model where several ask at once.
        error: the first thing that went wrong.
    """

    index: int
    place: str
    input: list[dict[str, Any]]
    expected: str | None
    predicted: str | None
    scores: Mapping[str, Score]
    metadata: Mapping[str, Any]
    seconds: float
    error: RowError | None = None

    def to_line(self) -> bytes:
        """The row as a line of JSON, with its newline."""
        error = self.error
        values = {
            "index": self.index,
            "place": self.place,
            "input": self.input,
            "expected": self.expected,
            "predicted": self.predicted,
            "scores": {
                name: {"value": score.value, "detail": score.detail}
                for name, score in self.scores.items()
            },
            "metadata": self.metadata,
            "seconds": round(self.seconds, 6),
            "error": None
            if error is None
            else {"stage": error.stage, "kind": error.kind, "message": error.message},
        }
        return as_json(values) + b"\n"

    @property
    def checksum(self) -> int:
        """Of what was asked and wanted: tells whether the data set is still the same."""
        return checksum(self.input, self.expected)


def as_json(values: Any) -> bytes:
    """JSON on one line. What it has no word for becomes text: dates, NaN, half characters."""
    try:
        text = json.dumps(values, ensure_ascii=False, allow_nan=False, default=str)
        return text.encode()
    except (ValueError, TypeError):
        return json.dumps(_plain(values), allow_nan=False, default=str).encode()


def checksum(prompt: list[dict[str, Any]], expected: str | None) -> int:
    """32 bits of a prompt and the wanted answer."""
    return zlib.crc32(as_json([prompt, expected]))


def read_row(line: bytes) -> EvaluationRow:
    """A row from its line.

    Raises:
        InputError: it is none.
    """
    try:
        row = _Row.model_validate(json.loads(line))
        scores = {name: Score(each.value, each.detail) for name, each in row.scores.items()}
    except (ValueError, ValidationError) as error:
        raise InputError("it is no row of an evaluation") from error
    return EvaluationRow(
        index=row.index,
        place=row.place,
        input=row.input,
        expected=row.expected,
        predicted=row.predicted,
        scores=scores,
        metadata=row.metadata,
        seconds=row.seconds,
        error=None
        if row.error is None
        else RowError(row.error.stage, row.error.kind, row.error.message),
    )


class _Score(BaseModel):
    value: float = Field(ge=0, le=1)
    detail: dict[str, Any] = {}


class _Error(BaseModel):
    stage: str
    kind: str
    message: str


class _Row(BaseModel):
    model_config = ConfigDict(extra="ignore")

    index: int = Field(ge=0)
    place: str
    input: list[dict[str, Any]]
    expected: str | None
    predicted: str | None
    scores: dict[str, _Score]
    metadata: dict[str, Any]
    seconds: float
    error: _Error | None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
