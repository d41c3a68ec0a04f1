"""Lessons that give different answers to one question: which of them stands.

Trained together they would pull the model both ways, and it would learn neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shammah.learning.lessons import Lesson

_Prompt = tuple[tuple[str, str], ...]


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

    Of two lessons with the same prompt that contradict each other (different targets, or one that
    condemns what the other gives) the heavier stands, and of equally heavy ones the newer. Case and
    blanks of a prompt, and blanks around an answer, do not count.
    """
    accepted: dict[_Prompt, list[Lesson]] = {}
    overruled: dict[int, Lesson] = {}
    for place in sorted(range(len(lessons)), key=lambda place: _rank(lessons[place]), reverse=True):
        lesson = lessons[place]
        others = accepted.setdefault(_prompt(lesson), [])
        stronger = next((other for other in others if _contradict(lesson, other)), None)
        if stronger is None:
            others.append(lesson)
        else:
            overruled[place] = stronger
    return (
        [lesson for place, lesson in enumerate(lessons) if place not in overruled],
        [Contradiction(lessons[place], overruled[place]) for place in sorted(overruled)],
    )


def _contradict(first: Lesson, second: Lesson) -> bool:
    """Whether two lessons with the same prompt cannot both be learned."""
    same = first.answer.strip() == second.answer.strip()
    if first.target is None or second.target is None:
        return same and first.target != second.target
    return not same


def _rank(lesson: Lesson) -> tuple[float, int]:
    return lesson.weight, lesson.feedback_id or 0


def _prompt(lesson: Lesson) -> _Prompt:
    return tuple(
        (message.role, " ".join(message.text.lower().split())) for message in lesson.messages
    )
