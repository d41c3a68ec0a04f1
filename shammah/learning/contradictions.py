"""Lessons that give different answers to one question: which of them stands.

Trained together they would pull the model both ways, and it would learn neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shammah.learning.lessons import Lesson


@dataclass(frozen=True, slots=True)
class Contradiction:
    """`overruled` is not taught, because `standing` answers the same question otherwise."""

    overruled: Lesson
    standing: Lesson

    @property
    def reason(self) -> str:
        """Why, in words for the user."""
        how = "weighs more" if self.standing.weight > self.overruled.weight else "is newer"
        return f"feedback {self.standing.feedback_id} gives another answer to it and {how}"


def settle(lessons: Sequence[Lesson]) -> tuple[list[Lesson], list[Contradiction]]:
    """The lessons that stand, in their order, and those that are overruled.

    Of lessons with the same prompt and different targets the heaviest stands, and among equally
    heavy ones the newest; others with its target stand beside it. Case and blanks of a prompt, and
    blanks around a target, do not count.
    """
    winners: dict[tuple[tuple[str, str], ...], Lesson] = {}
    for lesson in lessons:
        prompt = _prompt(lesson)
        if prompt not in winners or _rank(lesson) > _rank(winners[prompt]):
            winners[prompt] = lesson
    standing: list[Lesson] = []
    overruled: list[Contradiction] = []
    for lesson in lessons:
        winner = winners[_prompt(lesson)]
        if lesson.target.strip() == winner.target.strip():
            standing.append(lesson)
        else:
            overruled.append(Contradiction(lesson, winner))
    return standing, overruled


def _rank(lesson: Lesson) -> tuple[float, int]:
    return lesson.weight, lesson.feedback_id or 0


def _prompt(lesson: Lesson) -> tuple[tuple[str, str], ...]:
    return tuple(
        (message.role, " ".join(message.content.lower().split())) for message in lesson.messages
    )
