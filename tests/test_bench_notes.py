"""The rules by which a rewritten answer is judged."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "scripts" / "bench"))
from note_rules import as_asked

QUESTION = "how do i sort a list?"
FIRST = "`sorted(items)` returns a new sorted list, `items.sort()` sorts in place. Both are stable."


@pytest.mark.parametrize(
    ("kind", "second"),
    [
        ("shorter", "`items.sort()` sorts in place."),
        ("one", "`sorted(items)` returns a new sorted list."),
        ("more", f"{FIRST} Add `reverse=True` for descending order, and `key=len` for lengths."),
        ("code", "```python\nitems.sort()\n```"),
        ("example", f"{FIRST}\n\n```python\nprint(sorted([3, 1, 2]))\n```"),
        ("jargon", "It puts the things of a list in order, sorted from small to large."),
        ("errors", "```python\ntry:\n    items.sort()\nexcept TypeError:\n    print('mixed')\n```"),
        ("types", "```python\ndef ordered(items: list[int]) -> list[int]: ...\n```"),
    ],
)
def test_an_answer_as_asked(kind: str, second: str) -> None:
    assert as_asked(kind, QUESTION, FIRST, second)
    assert not as_asked(kind, QUESTION, FIRST, FIRST)


@pytest.mark.parametrize(
    "second", ["Paris.", "I don't know how to sort a list. Teach me with /correct.", ""]
)
def test_a_short_answer_of_something_else_is_none(second: str) -> None:
    assert not as_asked("shorter", QUESTION, FIRST, second)
