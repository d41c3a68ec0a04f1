"""What one piece of feedback teaches: a prompt, a target or what to keep from, a weight.

Knows what may be a target and what never is. Knows nothing about tokens, jobs or the database.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from shammah.errors import TrainingError
from shammah.messages import Conversation, Message

if TYPE_CHECKING:
    from shammah.feedback.records import Feedback

ObjectiveName = Literal["towards", "prefer", "revise", "note", "avoid"]
"""What is made of a lesson; see `objectives`. `revise` becomes `towards` or `note` in the worker,
which asks the model for the revision."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """`messages` is the whole prompt, ending with the user's message; `target` is the answer that
    is to follow it, `rejected` one that is not; `note` says what was wrong with that. `weight` is
    relative to the other lessons of a batch."""

    feedback_id: int | None
    messages: Conversation
    target: str | None
    weight: float
    rejected: str | None = None
    note: str | None = None
    objective: ObjectiveName = "towards"

    @property
    def query(self) -> str:
        """The last message of the user."""
        said = [message.text for message in self.messages if message.role == "user"]
        return said[-1] if said else ""

    @property
    def answer(self) -> str:
        """The answer that it is about: to be given, or to be kept from."""
        return self.target if self.target is not None else self.rejected or ""

    @property
    def conversation(self) -> Conversation:
        """The prompt with the answer that it is about."""
        return answered(self.messages, self.answer)

    @property
    def aim(self) -> str:
        """What is to come of it, in words for the user."""
        if self.target is not None:
            return self.target
        return f"not: {self.rejected}" if not self.note else f"{self.note} (not: {self.rejected})"


def answered(messages: Conversation, answer: str) -> Conversation:
    """A prompt with an answer to it."""
    return (*messages, Message("assistant", answer))


def lesson_from(feedback: Feedback) -> Lesson:
    """The lesson of one row of feedback.

    Raises:
        TrainingError: the row teaches nothing. An answer that was condemned never becomes a target.
    """
    if not feedback.teaches:
        raise TrainingError(
            f"Feedback {feedback.id} teaches nothing: it has neither an answer nor a correction.",
            hint=f"Give the right answer with `/feedback edit {feedback.id}`.",
        )
    bad = feedback.rating != "good"
    target, rejected = feedback.target, feedback.response if bad else feedback.preferred_over
    if target is not None and bad and target == feedback.response:
        raise TrainingError(
            f"Feedback {feedback.id} would train towards an answer rated {feedback.rating}."
        )
    if rejected is not None and (
        not rejected.strip() or rejected.strip() == (target or "").strip()
    ):
        rejected = None
    note = feedback.note if bad and target is None else None
    return Lesson(
        feedback.id,
        tuple(feedback.messages),
        target,
        feedback.weight,
        rejected,
        note,
        _objective(feedback, target, rejected, note),
    )


def lessons_from(rows: Iterable[Feedback]) -> tuple[Lesson, ...]:
    """The lessons of the rows that teach anything, in their order."""
    return tuple(lesson_from(row) for row in rows if row.teaches)


def _objective(
    feedback: Feedback, target: str | None, rejected: str | None, note: str | None
) -> ObjectiveName:
    if target is None:
        return "revise" if note and feedback.revision_accepted is not False else "avoid"
    # The model's own revision is not so surely better that it should be preferred as well.
    own = feedback.correction is None and feedback.rating != "good"
    return "towards" if rejected is None or own else "prefer"
