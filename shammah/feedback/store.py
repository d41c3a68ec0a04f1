"""Ratings, corrections and the buffer of lessons, durable before anything is acknowledged.

Knows weights, capacity and what may be trained on; does not know how training works.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from shammah.errors import FeedbackError
from shammah.feedback.buffer import LessonBuffer, unknown
from shammah.feedback.exchanges import storable, storable_messages
from shammah.feedback.records import (
    RATINGS,
    BufferState,
    Draft,
    Feedback,
    Rating,
    Recorded,
    teaches,
)
from shammah.feedback.rows import feedback_of, record, settle, snapshot, take_back, taught_by
from shammah.feedback.secrets import find_secrets
from shammah.messages import Conversation, to_dicts
from shammah.storage.schema import ExchangeRow, FeedbackRow
from shammah.tracking.telemetry import emit

__all__ = ["BufferState", "Draft", "Feedback", "FeedbackStore", "Rating", "Recorded"]

MAX_WEIGHT = 1e6


class FeedbackStore(LessonBuffer):
    """What the user does to feedback, on top of the buffer. Each action can be taken back.

    Safe to use from any thread and from several processes. Every method that changes something has
    it on disk when it returns, and raises `StorageError` if that fails.
    """

    def rate(
        self,
        exchange_id: int,
        rating: Rating | None,
        note: str | None = None,
        correction: str | None = None,
    ) -> Recorded:
        """Rate the answer of an exchange, correct it, or both.

        A second rating replaces the first: an earlier correction stays unless a new one is given,
        an earlier note stays while the rating does. Something that was trained already goes back
        into the buffer.

        Args:
            exchange_id: of the answer.
            rating: None, with a correction, keeps an earlier bad rating or counts as critical.
            note: what was wrong or right.
            correction: the answer that should have been given; blank removes an earlier one.

        Raises:
            FeedbackError: no such exchange or rating, or neither rating nor correction.
        """
        if rating is not None:
            _check_rating(rating)
        elif not _text(correction):
            raise FeedbackError("There is neither a rating nor a correction to record.")
        now = datetime.now(UTC)
        with self._db.write() as session:
            exchange = session.get(ExchangeRow, exchange_id)
            if exchange is None:
                raise FeedbackError(
                    f"There is no exchange {exchange_id} to rate.", hint="Ask something first."
                )
            tried = _tried_before(session, exchange) if rating == "good" else None
            row = session.scalar(select(FeedbackRow).where(FeedbackRow.exchange_id == exchange_id))
            before = snapshot(row) if row else None
            earlier = feedback_of(row) if row and row.status != "deleted" else None
            if row is None:
                row = FeedbackRow(exchange_id=exchange_id)
                session.add(row)
            if earlier is None:
                row.rating = row.note = row.correction = None
                row.created_at = now
            if earlier is None or rating not in (None, row.rating) or note is not None:
                row.revision = row.revision_accepted = None
            if rating is None:
                rating = "medium" if row.rating == "medium" else "critical"
            if note is not None or rating != row.rating:
                row.note = _text(note)
            if correction is not None:
                row.correction = _text(correction)
            row.rating, row.weight = rating, self.settings.weight(rating)
            row.messages, row.response = exchange.messages, exchange.response
            row.model, row.adapter = exchange.model, exchange.adapter
            row.preferred_over = tried
            row.updated_at = now
            settle(row)
            dropped = self._drop_excess(session)
            record(session, [("replace" if earlier else "rate", row, before)], dropped, now)
            recorded = _recorded(row, earlier, dropped, self._state(session), cut=exchange.cut)
        _tell([recorded])
        return recorded

    def add(
        self,
        messages: Conversation,
        response: str | None,
        rating: Rating | None,
        weight: float | None,
        note: str | None,
        correction: str | None,
        model: str,
    ) -> Recorded:
        """Store feedback that is not about an exchange of ours (see `Draft`).

        Raises:
            FeedbackError: it teaches nothing (neither an answer nor a correction; neither a rating
                nor a correction), or its weight or rating is none.
        """
        return self.add_all([Draft(messages, response, rating, weight, note, correction, model)])[0]

    def add_all(self, drafts: Sequence[Draft]) -> builtins.list[Recorded]:
        """Store many at once: all or none, taken back together by one `undo`.

        What falls out of a full buffer is in the last one's `dropped`.

        Raises:
            FeedbackError: as `add`; nothing is stored.
        """
        for draft in drafts:
            check_draft(draft)
        if not drafts:
            return []
        now = datetime.now(UTC)
        with self._db.write() as session:
            rows = [self._new_row(draft, now) for draft in drafts]
            session.add_all(rows)
            dropped = self._drop_excess(session)
            record(session, [("add", row, None) for row in rows], dropped, now)
            state = self._state(session)
            told = [_recorded(row, None, dropped if row is rows[-1] else [], state) for row in rows]
        _tell(told)
        return told

    def edit(
        self,
        feedback_id: int,
        *,
        note: str | None = None,
        correction: str | None = None,
        rating: Rating | None = None,
    ) -> Recorded:
        """Change what was said. None leaves a part as it is, blank text removes it.

        Where the change alters what is taught, it is taught again (or waits); a new note alone
        leaves a trained one trained.

        Raises:
            FeedbackError: no such feedback, it was deleted, or nothing would be left to teach.
        """
        if rating is not None:
            _check_rating(rating)
        now = datetime.now(UTC)
        with self._db.write() as session:
            row = self._existing(session, feedback_id)
            earlier, before, taught = feedback_of(row), snapshot(row), taught_by(row)
            if note is not None and _text(note) != row.note:
                row.revision = row.revision_accepted = None
            if note is not None:
                row.note = _text(note)
            if correction is not None:
                row.correction = _text(correction)
            if rating is not None and rating != row.rating:
                row.rating, row.weight = rating, self.settings.weight(rating)
            if row.rating is None and row.correction is None:
                raise FeedbackError(
                    f"Feedback {feedback_id} would have neither a rating nor a correction left.",
                    hint="Give it a rating, or delete it.",
                )
            if taught_by(row) != taught:
                settle(row)
            row.updated_at = now
            dropped = self._drop_excess(session)
            record(session, [("edit", row, before)], dropped, now)
            return _recorded(row, earlier, dropped, self._state(session))

    def propose(self, feedback_id: int, revision: str) -> Recorded:
        """Note what the model made of an answer when it was shown the note; it is what will be
        taught, until the user refuses it.

        Raises:
            FeedbackError: no such feedback, it was deleted, or it needs no revision.
        """
        return self._revised(feedback_id, storable(revision), None)

    def decide(self, feedback_id: int, accepted: bool) -> Recorded:
        """Accept or refuse the model's own revision. Once refused it is not taught.

        Raises:
            FeedbackError: no such feedback, it was deleted, or it has no revision.
        """
        return self._revised(feedback_id, None, accepted)

    def _revised(self, feedback_id: int, revision: str | None, accepted: bool | None) -> Recorded:
        now = datetime.now(UTC)
        with self._db.write() as session:
            row = self._existing(session, feedback_id)
            earlier, before, taught = feedback_of(row), snapshot(row), taught_by(row)
            if revision is not None:
                if not earlier.revisable:
                    raise FeedbackError(
                        f"Feedback {feedback_id} needs no revision: it has a correction, or was "
                        "rated good, or no note says what to change."
                    )
                row.revision = revision
            elif row.revision is None:
                raise FeedbackError(
                    f"Feedback {feedback_id} has no revision.",
                    hint=f"`/feedback revise {feedback_id}` asks the model for one.",
                )
            row.revision_accepted = accepted
            if taught_by(row) != taught:
                settle(row)
            row.updated_at = now
            dropped = self._drop_excess(session)
            record(session, [("edit", row, before)], dropped, now)
            return _recorded(row, earlier, dropped, self._state(session))

    def delete(self, feedback_id: int) -> Feedback:
        """Take feedback out of training and out of the lists. What is trained stays trained.

        Returns:
            It as it was.

        Raises:
            FeedbackError: no such feedback, or it is deleted already.
        """
        now = datetime.now(UTC)
        with self._db.write() as session:
            row = self._existing(session, feedback_id)
            earlier, before = feedback_of(row), snapshot(row)
            row.status, row.job_id, row.learned, row.updated_at = "deleted", None, None, now
            record(session, [("delete", row, before)], [], now)
            return earlier

    def undo(self) -> Feedback | None:
        """Take back the last action: what it replaced is restored, what it added is removed.

        Called again, it takes back the one before. Returns the feedback as it is now (status
        `deleted` where it was removed), or None where nothing is left to take back. Where the
        action was an import, all of it goes; `undo_all` returns every one.
        """
        taken_back = self.undo_all()
        return taken_back[0] if taken_back else None

    def undo_all(self) -> builtins.list[Feedback]:
        """`undo`, with everything the action concerned, newest first."""
        with self._db.write() as session:
            rows = take_back(session, datetime.now(UTC))
            self._drop_excess(session)
            return [feedback_of(row) for row in rows]

    def _existing(self, session: Session, feedback_id: int) -> FeedbackRow:
        row = session.get(FeedbackRow, feedback_id)
        if row is None:
            raise unknown(feedback_id)
        if row.status == "deleted":
            raise FeedbackError(
                f"Feedback {feedback_id} was deleted.", hint="`feedback undo` takes that back."
            )
        return row

    def _new_row(self, draft: Draft, now: datetime) -> FeedbackRow:
        row = FeedbackRow(
            exchange_id=None,
            messages=to_dicts(storable_messages(draft.messages)),
            response=None if draft.response is None else storable(draft.response),
            rating=draft.rating,
            weight=draft.weight or self.settings.weight(draft.rating or "critical"),
            note=None if draft.note is None else storable(draft.note),
            correction=None if draft.correction is None else storable(draft.correction),
            preferred_over=None
            if draft.preferred_over is None or draft.rating != "good"
            else storable(draft.preferred_over),
            model=draft.model,
            adapter=None,
            created_at=now,
            updated_at=now,
        )
        settle(row)
        return row


def _tried_before(session: Session, exchange: ExchangeRow) -> str | None:
    """The answer that this one was tried again in place of, unless that was rated good too."""
    tried = session.scalars(
        select(ExchangeRow)
        .where(ExchangeRow.session == exchange.session, ExchangeRow.id < exchange.id)
        .where(ExchangeRow.messages == exchange.messages)
        .order_by(ExchangeRow.id.desc())
    ).first()
    if tried is None or tried.cut or tried.response.strip() == exchange.response.strip():
        return None
    rated = session.scalar(
        select(FeedbackRow.rating)
        .where(FeedbackRow.exchange_id == tried.id)
        .where(FeedbackRow.status != "deleted")
    )
    return None if rated == "good" else tried.response


def check_draft(draft: Draft) -> None:
    """Refuse feedback that teaches nothing.

    Raises:
        FeedbackError: no user message at the end, neither answer nor correction, neither rating
            nor correction, an unknown rating, or a weight that is not above 0.
    """
    storable_messages(draft.messages)
    if draft.rating is not None:
        _check_rating(draft.rating)
    weight = draft.weight
    if weight is not None and not (math.isfinite(weight) and 0 < weight <= MAX_WEIGHT):
        raise FeedbackError(f"The weight {weight:g} is not above 0 and at most {MAX_WEIGHT:g}.")
    if teaches(draft.response, draft.rating, draft.correction):
        return
    if not _text(draft.response):
        raise FeedbackError("There is neither a response nor a correction.")
    if draft.rating is None:
        raise FeedbackError("There is neither a rating nor a correction.")


def _recorded(
    row: FeedbackRow,
    earlier: Feedback | None,
    dropped: Sequence[FeedbackRow],
    state: BufferState,
    *,
    cut: bool = False,
) -> Recorded:
    feedback = feedback_of(row)
    warnings = _secret_warnings(feedback)
    if cut and feedback.target is not None and feedback.target == feedback.response:
        warnings += (
            "This answer was cut short: rated good, it teaches the model to stop there. "
            "A correction can give the whole answer.",
        )
    return Recorded(
        feedback, earlier, tuple(feedback_of(other) for other in dropped), state, warnings
    )


def _tell(recorded: Sequence[Recorded]) -> None:
    """The telemetry of what was stored: figures and the rating, no word of any conversation."""
    for one in recorded:
        emit(
            "feedback.recorded",
            {
                "feedback": one.feedback.id,
                "weight": one.feedback.weight,
                "count": one.buffer.count,
            },
            {"rating": one.feedback.rating, "replaced": one.replaced is not None},
        )


def _check_rating(rating: str) -> None:
    if rating not in RATINGS:
        raise FeedbackError(f"{rating!r} is no rating.", hint=f"Ratings are {', '.join(RATINGS)}.")


def _text(text: str | None) -> str | None:
    """The text without blank edges; None where nothing is left."""
    return (storable(text).strip() or None) if text is not None else None


def _secret_warnings(feedback: Feedback) -> tuple[str, ...]:
    texts = [message.text for message in feedback.messages]
    texts += [feedback.response or "", feedback.note or "", feedback.correction or ""]
    kinds = dict.fromkeys(kind for text in texts for kind in find_secrets(text))
    if not kinds:
        return ()
    return (
        f"This looks like it holds a secret ({', '.join(kinds)}). An adapter trained on it may "
        "repeat it: `feedback undo` takes it back.",
    )
