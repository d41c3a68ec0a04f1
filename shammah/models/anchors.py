"""Questions that a model answers well already, kept beside it: what training must not change.

`anchors.jsonl` in the model's folder, one `{"query": ..., "answer": ...}` a line. A model without
the file has none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from shammah.errors import ModelError

FILE = "anchors.jsonl"
SAME = 0.66
"""From this share of common words on two questions ask the same."""
GENERIC, FEW = 0.03, 5
"""An answer of more than this share of the anchors, and of more than this many, belongs to no one
question."""
_LITTLE = frozenset(
    [
        "a",
        "an",
        "the",
        "is",
        "are",
        "was",
        "do",
        "does",
        "did",
        "i",
        "my",
        "me",
        "you",
        "your",
        "it",
        "to",
        "of",
        "in",
        "on",
        "for",
        "how",
        "what",
        "which",
        "who",
        "when",
        "where",
        "why",
        "can",
        "could",
        "please",
        "tell",
        "explain",
        "s",
    ]
)


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
    return anchors_in(folder / FILE)


def anchors_in(path: Path) -> tuple[Anchor, ...]:
    """The anchors in a file, none where it is not there.

    Raises:
        ModelError: a line is not an anchor.
    """
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


def unrelated_anchors(anchors: Sequence[Anchor], taught: Sequence[str]) -> tuple[Anchor, ...]:
    """The anchors that do not hold back what is taught.

    Left out are those that ask what a taught question asks, going by their words, and those that
    have the answer of such a one: who teaches another answer to "hello" wants it for "hi" too. An
    answer that many anchors share stays, for it is no answer to any one question ("I don't know").
    """
    shares = Counter(anchor.answer for anchor in anchors)
    topics = [_words(question) for question in taught]
    same = [
        any(_overlap(_words(anchor.query), topic) >= SAME for topic in topics) for anchor in anchors
    ]
    answers = {
        anchor.answer
        for anchor, found in zip(anchors, same, strict=True)
        if found and shares[anchor.answer] <= max(FEW, GENERIC * len(anchors))
    }
    return tuple(
        anchor
        for anchor, found in zip(anchors, same, strict=True)
        if not found and anchor.answer not in answers
    )


def _words(question: str) -> frozenset[str]:
    """The words that a question is about."""
    words = frozenset(re.findall(r"\w+", question.lower()))
    return (words - _LITTLE) or words


def _overlap(a: frozenset[str], b: frozenset[str]) -> float:
    """Jaccard similarity."""
    return len(a & b) / len(a | b) if a | b else 0.0
