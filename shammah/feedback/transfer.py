"""Feedback in and out as JSONL: one object a line, `{query, response, rating|weight, note|feedback,
correction, preferred_over, messages}`, as `datasets.formatters.feedback` has it.

Knows the format. What may be taught is `store`'s business.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from pydantic import ValidationError

from shammah.datasets.formatters.feedback import FeedbackLine
from shammah.datasets.readers.lines import parse_object
from shammah.errors import FeedbackError, InputError
from shammah.feedback.records import RATINGS, Draft, Feedback, FeedbackStatus, Rating, Recorded
from shammah.feedback.store import FeedbackStore, check_draft
from shammah.messages import to_dicts
from shammah.settings import FeedbackSettings

MAX_LINE = 4_000_000
"""Characters of one line at most; a longer one is rejected without being kept in memory."""


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What came of an import."""

    taken: int
    rejected: list[tuple[int, str]]
    """Line number (from 1) and reason."""
    recorded: list[Recorded]
    """One for each that was taken; what fell out of a full buffer is in the last."""


def import_jsonl(
    store: FeedbackStore, source: Path | TextIO, strict: bool = False, *, model: str = ""
) -> ImportReport:
    """Take feedback from a file or a text stream, all in one step that one undo takes back.

    Bad lines are reported and the good ones taken; with `strict` one bad line means that none is.
    Empty lines and a byte order mark are passed over.

    Args:
        store: where it goes.
        source: a UTF-8 file, or an open text stream.
        strict: all or nothing.
        model: what to note as the model that answered.

    Raises:
        InputError: the file cannot be read.
        StorageError: it could not be stored; nothing was.
    """
    read, rejected = read_jsonl(source, store.settings)
    drafts = [replace(draft, model=model) for _, draft in read]
    if strict and rejected:
        return ImportReport(0, rejected, [])
    recorded = store.add_all(drafts)
    return ImportReport(len(recorded), rejected, recorded)


def read_jsonl(
    source: Path | TextIO, settings: FeedbackSettings
) -> tuple[list[tuple[int, Draft]], list[tuple[int, str]]]:
    """The feedback in a file or a text stream, and what is wrong with the other lines; each with
    its line number (from 1).

    Raises:
        InputError: the file cannot be read.
    """
    drafts: list[tuple[int, Draft]] = []
    rejected: list[tuple[int, str]] = []
    with _open(source) as stream:
        for number, line in _lines(stream):
            try:
                draft = parse_line(line, settings)
                check_draft(draft)
            except (InputError, FeedbackError) as error:
                rejected.append((number, " ".join(filter(None, (error.message, error.hint)))))
            else:
                drafts.append((number, draft))
    return drafts, rejected


def export_jsonl(store: FeedbackStore, stream: TextIO, status: FeedbackStatus | None = None) -> int:
    """Write feedback as JSONL, oldest first; how many lines it were.

    Args:
        store: where it is.
        stream: where it goes.
        status: only this one; None is all that is not deleted.
    """
    rows = store.list(status)[::-1]
    for row in rows:
        stream.write(json.dumps(_to_json(row), ensure_ascii=False) + "\n")
    return len(rows)


def parse_line(line: str, settings: FeedbackSettings) -> Draft:
    """The feedback in one line.

    A weight without a rating says how much, not whether the answer was good; so it must come with
    a correction, or be the weight of exactly one rating.

    Raises:
        InputError: the line is no JSON object of this format; the message is the reason.
    """
    if len(line) > MAX_LINE:
        raise InputError(f"longer than {MAX_LINE:,} characters")
    value = parse_object(line.encode(errors="surrogatepass"))
    try:
        row = FeedbackLine.model_validate(value)
    except ValidationError as error:
        raise InputError("; ".join(_explain(dict(e)) for e in error.errors())) from None
    if row.note is not None and row.feedback is not None and row.note != row.feedback:
        raise InputError("note and feedback differ: give one of them")
    return Draft(
        messages=row.prompt,
        response=row.response,
        rating=_rating(row, settings),
        weight=row.weight,
        note=row.note if row.note is not None else row.feedback,
        correction=row.correction,
        preferred_over=row.preferred_over,
    )


def _rating(row: FeedbackLine, settings: FeedbackSettings) -> Rating | None:
    if row.rating is not None or row.weight is None or (row.correction or "").strip():
        return row.rating
    named = [rating for rating in RATINGS if settings.weight(rating) == row.weight]
    if len(named) == 1:
        return named[0]
    weights = ", ".join(f"{rating} {settings.weight(rating):g}" for rating in RATINGS)
    raise InputError(
        f"weight {row.weight:g} alone does not say whether the response is good ({weights}): "
        "add a rating or a correction"
    )


def _to_json(row: Feedback) -> dict[str, Any]:
    values: dict[str, Any] = {
        "query": row.query,
        "response": row.response,
        "rating": row.rating,
        "weight": row.weight,
        "note": row.note,
        "correction": row.correction,
        "preferred_over": row.preferred_over,
        "messages": to_dicts(row.messages) if len(row.messages) > 1 else None,
    }
    return {key: value for key, value in values.items() if value is not None}


@contextmanager
def _open(source: Path | TextIO) -> Iterator[TextIO]:
    name = str(source) if isinstance(source, Path) else getattr(source, "name", "the input")
    try:
        if isinstance(source, Path):
            # Bytes that are not UTF-8 become lone surrogates, so that only their line is rejected.
            with source.open(encoding="utf-8-sig", errors="surrogateescape") as stream:
                yield stream
        else:
            yield source
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text.", hint="Save it as UTF-8.") from error
    except OSError as error:
        if error.errno is None:
            raise
        raise InputError(f"{name} cannot be read: {error.strerror}.") from error


def _lines(stream: TextIO) -> Iterator[tuple[int, str]]:
    """Number and text of every line that is not empty; of one too long only so much as shows it."""
    number = 0
    while line := stream.readline(MAX_LINE + 2):
        number += 1
        if number == 1:
            line = line.removeprefix("\ufeff")
        part = line
        while not part.endswith("\n") and (part := stream.readline(MAX_LINE + 2)):
            pass
        if line.strip():
            yield number, line.rstrip("\r\n")


def _explain(problem: dict[str, Any]) -> str:
    key = str(problem["loc"][0])
    if problem["type"] == "literal_error":
        return f"rating {problem['input']!r} is none of {', '.join(RATINGS)}"
    if key == "weight":
        return f"weight {str(problem['input'])[:40]!r} is no number above 0 and at most 1000000"
    return f"{key}: {problem['msg'].lower()}"
