"""What is taught and what is asked: lessons in rounds, other wordings of them, near misses, and
questions that have nothing to do with any lesson.

Knows the data files and the rules that training rewords questions by; no model.
"""

from __future__ import annotations

import json
import random
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from shammah.learning.rephrasing import rephrasings

LESSONS = Path(__file__).parent / "data" / "lessons.toml"
HELD_OUT = Path(__file__).parents[2] / "tests" / "data" / "embedded"
ROUNDS = 4
"""Sets that are taught one after the other."""
SPARE = 5
"""The set to choose settings on, so that they are not chosen on what is measured."""


class Taught(BaseModel):
    """A lesson of the data file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    set: int
    kind: str
    ask: str
    answer: str
    other: tuple[str, ...]
    """Other wordings of the question, which training never sees."""
    near: str
    """A question that is close, and is to be answered as before."""
    same: tuple[str, ...] = ()
    """Held-out questions of the embedded model that ask this too, or the ids of their answers."""


def read_lessons(path: Path = LESSONS) -> list[Taught]:
    """The lessons of the data file, in its order."""
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["lesson"]
    return [Taught.model_validate(entry) for entry in entries]


def unseen(lesson: Taught) -> tuple[str, ...]:
    """The other wordings that no rule of training makes: only these show what it learned."""
    made = {plain(text) for text in (lesson.ask, *rephrasings(lesson.ask, 1000))}
    return tuple(text for text in lesson.other if plain(text) not in made)


def unrelated_questions(
    count: int, lessons: Sequence[Taught], without: Sequence[str] = ()
) -> list[str]:
    """Held-out questions of all sorts, in their proportions.

    None of them asks what a lesson does, going by words and by the lesson's own list, and none is
    in `without`.
    """
    asked = {plain(text) for text in without}
    for lesson in lessons:
        asked |= {plain(text) for text in (lesson.ask, lesson.near, *lesson.other)}
    same = {name for lesson in lessons for name in lesson.same}
    apart = [
        row["question"]
        for row in held_out()
        if plain(row["question"]) not in asked and not same & {row["question"], row.get("id")}
    ]
    return random.Random(1).sample(apart, min(count, len(apart)))


def held_out() -> list[dict[str, str]]:
    """What the embedded model is asked when it is judged: `question`, and `id` of the answer where
    it knows one."""
    found = []
    for name in ("answers", "small_talk", "unknown"):
        text = (HELD_OUT / f"{name}.jsonl").read_text(encoding="utf-8")
        found += [json.loads(line) for line in text.splitlines()]
    return found


def plain(text: str) -> str:
    """A question without case and punctuation."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())
