"""What one piece of feedback teaches: a prompt, a target, a weight.

Knows what may be a target and what never is. Knows nothing about tokens, jobs or the database.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shammah.errors import TrainingError
from shammah.messages import Conversation, Message

if TYPE_CHECKING:
    from shammah.feedback.records import Feedback


@dataclass(frozen=True, slots=True)
class Lesson:
    """`messages` is the whole prompt, ending with the user's message; `target` is the answer that
    is to follow it; `weight` is relative to the other lessons of a batch."""

    feedback_id: int | None
    messages: Conversation
    target: str
    weight: float

    @property
    def query(self) -> str:
        """The last message of the user."""
        said = [message.content for message in self.messages if message.role == "user"]
        return said[-1] if said else ""

    @property
    def conversation(self) -> Conversation:
        """The prompt with the target as its answer."""
        return (*self.messages, Message("assistant", self.target))


def lesson_from(feedback: Feedback) -> Lesson:
    """The lesson of one row of feedback: towards its correction, or towards an answer rated good.

    Raises:
        TrainingError: the row has no target. An answer that was condemned never becomes one.
    """
    target = feedback.target
    if target is None:
        raise TrainingError(
            f"Feedback {feedback.id} has no target: its answer was rated {feedback.rating}.",
            hint=f"Give the right answer with `/feedback edit {feedback.id}`.",
        )
    if feedback.correction is None and feedback.rating in ("critical", "medium"):
        raise TrainingError(
            f"Feedback {feedback.id} would train towards an answer rated {feedback.rating}."
        )
    return Lesson(feedback.id, tuple(feedback.messages), target, feedback.weight)


def lessons_from(rows: Iterable[Feedback]) -> tuple[Lesson, ...]:
    """The lessons of the rows that have a target, in their order; rows without one are left out."""
    return tuple(lesson_from(row) for row in rows if row.target is not None)
