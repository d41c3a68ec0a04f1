"""Feedback as values: what was said about an answer, and how full the buffer is.

Knows no database.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

from shammah.messages import Conversation

Rating = Literal["critical", "medium", "good"]
RATINGS: tuple[Rating, ...] = get_args(Rating)

FeedbackStatus = Literal["buffered", "waiting", "training", "trained", "dropped", "deleted"]
STATUSES: tuple[FeedbackStatus, ...] = get_args(FeedbackStatus)
"""buffered: awaits training. waiting: teaches nothing yet (an empty answer without a correction).
training: in a queued or running job. trained: was in a finished job. dropped: fell out
of a full buffer, or was in a job whose adapter was refused. deleted: taken back, but on record."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """What the user thought of one answer."""

    id: int
    exchange_id: int | None
    """None where it was imported."""
    messages: Conversation
    """The whole prompt, the user's message last."""
    response: str | None
    rating: Rating | None
    weight: float
    note: str | None
    correction: str | None
    model: str
    adapter: str | None
    status: FeedbackStatus
    created_at: datetime
    updated_at: datetime
    job_id: int | None
    learned: bool | None = None
    """After training: whether the model then answered as taught."""
    preferred_over: str | None = None
    """Another answer to the same prompt, which this one was tried again in place of."""
    revision: str | None = None
    """The model's own answer after it was shown the note."""
    revision_accepted: bool | None = None
    """What the user said of the revision; None: nothing yet."""

    @property
    def target(self) -> str | None:
        """The answer to train towards; never one that was rated critical or medium."""
        found = target(self.response, self.rating, self.correction)
        if found is None and self.revision_accepted is not False:
            return self.revision
        return found

    @property
    def teaches(self) -> bool:
        """Whether anything can be learned of it: an answer to give, or one to keep from."""
        return teaches(self.response, self.rating, self.correction)

    @property
    def revisable(self) -> bool:
        """Whether a note says what to change, and nothing says what the right answer is."""
        return bool(self.note) and target(self.response, self.rating, self.correction) is None

    @property
    def query(self) -> str:
        """What the user asked."""
        return self.messages[-1].text


NEARLY = 0.7
"""Share of the threshold."""


@dataclass(frozen=True, slots=True)
class BufferState:
    """How much awaits training, and how much starts a job."""

    count: int
    weight: float
    threshold: float
    threshold_by: Literal["count", "weight"]
    capacity: int
    waiting: int
    """Those that teach nothing yet: stored, but not counted above."""

    @property
    def reached(self) -> bool:
        """Whether a job is due. A full buffer always is: it could never grow to the threshold."""
        return self._holds(1.0)

    @property
    def nearly_reached(self) -> bool:
        """Whether a job will be due after little more."""
        return self._holds(NEARLY)

    def _holds(self, share: float) -> bool:
        amount = self.count if self.threshold_by == "count" else self.weight
        full = amount >= share * self.threshold or self.count >= share * self.capacity
        return self.count > 0 and full

    @property
    def label(self) -> str:
        """`8/10 (42.0)`: examples of the threshold and their weight, or `42.0/50 (8)` by weight."""
        if self.threshold_by == "weight":
            return f"{self.weight:.1f}/{self.threshold:g} ({self.count})"
        return f"{self.count}/{self.threshold:g} ({self.weight:.1f})"


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a rating, correction or edit did."""

    feedback: Feedback
    replaced: Feedback | None
    """What it was before, where there was something before."""
    dropped: tuple[Feedback, ...]
    """What left the full buffer because of it (it stays in the store)."""
    buffer: BufferState
    warnings: tuple[str, ...] = ()
    """What the user should know: a text that looks like a key, an answer that was cut."""


@dataclass(frozen=True, slots=True)
class Draft:
    """Feedback that comes from outside, not about an exchange of ours."""

    messages: Conversation
    response: str | None = None
    rating: Rating | None = None
    weight: float | None = None
    """None takes the weight of the rating; of `critical` where there is only a correction."""
    note: str | None = None
    correction: str | None = None
    model: str = ""
    preferred_over: str | None = None
    """Another answer to the same prompt, which a good one was given in place of."""


def target(response: str | None, rating: str | None, correction: str | None) -> str | None:
    """What to train towards: the correction; else the answer, if it was good; else nothing.

    Blank text is no target: it would teach the model to say nothing.
    """
    if correction and correction.strip():
        return correction
    return response if rating == "good" and response and response.strip() else None


def teaches(response: str | None, rating: str | None, correction: str | None) -> bool:
    """Whether there is an answer to give, or a bad one to keep from."""
    if target(response, rating, correction) is not None:
        return True
    return rating is not None and bool(response and response.strip())
