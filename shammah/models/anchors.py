"""Questions that a model answers well already, kept beside it: what training must not change.

`anchors.jsonl` in the model's folder, one `{"query": ..., "answer": ...}` a line. A model without
the file has none.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from shammah.errors import ModelError

FILE = "anchors.jsonl"


class Anchor(BaseModel):
    """A question and the model's own answer to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    query: str
    answer: str


def read_anchors(folder: Path) -> tuple[Anchor, ...]:
    """The anchors of a model folder, in the order of the file.

    Raises:
        ModelError: a line is not an anchor.
    """
    path = folder / FILE
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
    anchors = []
    for number, line in enumerate(lines, start=1):
        try:
            anchors.append(Anchor.model_validate_json(line))
        except ValidationError as error:
            raise ModelError(
                f"{path}, line {number}: not an anchor: {error.errors()[0]['msg']}.",
                hint="Restore the model's folder.",
            ) from error
    return tuple(anchors)
