"""The buffer: lessons that await training, how they enter a job and leave it.

Knows capacity, threshold and places; `store` knows what users say, `learning` how jobs run.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import Session

from shammah.errors import FeedbackError
from shammah.feedback.records import BufferState, Feedback, FeedbackStatus
from shammah.feedback.rows import feedback_of, settle
from shammah.settings import FeedbackSettings
from shammah.storage.database import Database
from shammah.storage.schema import FeedbackRow, JobLessonRow, JobRow


class LessonBuffer:
    """Feedback as training sees it. `FeedbackStore` adds what the user does.

    `settings` may be replaced while running; it applies to what comes after.
    """

    def __init__(self, db: Database, settings: FeedbackSettings) -> None:
        self._db = db
        self.settings = settings

    def buffer(self, *, session: Session | None = None) -> builtins.list[Feedback]:
        """What awaits training, oldest first."""
        with self._reading(session) as reading:
            return [feedback_of(row) for row in reading.scalars(_oldest_first("buffered"))]

    def lessons_trained(self) -> builtins.list[Feedback]:
        """What was trained before and still stands, oldest first: the material of replay."""
        with self._db.read() as session:
            return [feedback_of(row) for row in session.scalars(_oldest_first("trained"))]

    def standing(self, *, session: Session | None = None) -> builtins.list[Feedback]:
        """Every lesson that stands, trained already or not, oldest first."""
        with self._reading(session) as reading:
            rows = [*reading.scalars(_oldest_first("trained", "buffered"))]
            return [found for row in rows if (found := feedback_of(row)).teaches]

    def state(self, *, session: Session | None = None) -> BufferState:
        """How full the buffer is."""
        with self._reading(session) as reading:
            return self._state(reading)

    def counts(self) -> dict[str, int]:
        """How many feedbacks are in each status; statuses without any are left out."""
        query = select(FeedbackRow.status, func.count()).group_by(FeedbackRow.status)
        with self._db.read() as session:
            return {row[0]: row[1] for row in session.execute(query)}

    def ratings(self) -> dict[str, dict[str, int]]:
        """How often the answers of each adapter were rated what."""
        query = (
            select(FeedbackRow.adapter, FeedbackRow.rating, func.count())
            .where(FeedbackRow.status != "deleted")
            .where(FeedbackRow.adapter.is_not(None), FeedbackRow.rating.is_not(None))
            .group_by(FeedbackRow.adapter, FeedbackRow.rating)
        )
        found: dict[str, dict[str, int]] = {}
        with self._db.read() as session:
            for adapter, rating, count in session.execute(query):
                found.setdefault(str(adapter), {})[str(rating)] = count
        return found

    def in_weights(self, rows: Iterable[Feedback]) -> bool:
        """Whether any of it was in a job that is done: taking it back does not undo that."""
        query = (
            select(JobLessonRow.feedback_id)
            .join(JobRow, JobRow.id == JobLessonRow.job_id)
            .where(JobRow.status == "done")
            .where(JobLessonRow.feedback_id.in_([row.id for row in rows]))
        )
        with self._db.read() as session:
            return session.scalar(query.limit(1)) is not None

    def get(self, feedback_id: int) -> Feedback:
        """One feedback, deleted or not.

        Raises:
            FeedbackError: there is none with this number.
        """
        with self._db.read() as session:
            row = session.get(FeedbackRow, feedback_id)
            if row is None:
                raise unknown(feedback_id)
            return feedback_of(row)

    def of_exchange(self, exchange_id: int) -> Feedback | None:
        """What was said about an exchange, if anything."""
        query = select(FeedbackRow).where(FeedbackRow.exchange_id == exchange_id)
        with self._db.read() as session:
            row = session.scalar(query.where(FeedbackRow.status != "deleted"))
            return feedback_of(row) if row else None

    def list(
        self, status: FeedbackStatus | None = None, limit: int | None = None
    ) -> builtins.list[Feedback]:
        """Feedback of a status, or all that is not deleted; newest first."""
        query = select(FeedbackRow).order_by(FeedbackRow.id.desc()).limit(limit)
        if status is None:
            query = query.where(FeedbackRow.status != "deleted")
        else:
            query = query.where(FeedbackRow.status == status)
        with self._db.read() as session:
            return [feedback_of(row) for row in session.scalars(query)]

    def begin_training(
        self,
        feedback_ids: Iterable[int],
        job_id: int,
        *,
        again: bool = False,
        session: Session | None = None,
    ) -> builtins.list[Feedback]:
        """Move feedback from the buffer into a job, and note it in `job_lessons`.

        Args:
            feedback_ids: what the job is to teach; what is no longer in the buffer is left out.
            job_id: a row of `jobs`.
            again: take what was trained before as well.
            session: a `Database.write()` session to take part in, so that the job and its lessons
                are committed together. None opens one.

        Returns:
            What was moved, oldest first. Only that may be taught.
        """
        with self._writing(session) as writing:
            statuses: tuple[FeedbackStatus, ...] = ("buffered",)
            if again:
                statuses = ("buffered", "trained")
            rows = writing.scalars(
                _oldest_first(*statuses).where(FeedbackRow.id.in_(list(feedback_ids)))
            ).all()
            for row in rows:
                row.status, row.job_id, row.learned = "training", job_id, None
                writing.execute(
                    insert(JobLessonRow)
                    .values(job_id=job_id, feedback_id=row.id)
                    .on_conflict_do_nothing()
                )
            writing.flush()
            return [feedback_of(row) for row in rows]

    def finish_training(
        self,
        job_id: int,
        learned_ids: Iterable[int],
        *,
        revisions: Mapping[int, str] | None = None,
        set_aside: bool = False,
        session: Session | None = None,
    ) -> builtins.list[Feedback]:
        """The job is done: all its lessons are trained, those in `learned_ids` also learned; with
        `set_aside` they are dropped instead, since its adapter does not answer.

        One that was not learned does not go back into the buffer: the same training would fail on
        it again, and start a job for ever. What the user changed meanwhile is left as it is, and
        where that change is taken back later, it is trained, or in the buffer if it was set aside.

        Args:
            revisions: what the model made of answers with a note, by feedback id.
        """
        learned = set(learned_ids)
        with self._writing(session) as writing:
            for lesson in writing.scalars(
                select(JobLessonRow).where(JobLessonRow.job_id == job_id)
            ):
                lesson.learned = None if set_aside else lesson.feedback_id in learned
            rows = writing.scalars(_oldest_first("training", job_id=job_id)).all()
            for row in rows:
                row.status = "dropped" if set_aside else "trained"
                row.learned = None if set_aside else row.id in learned
                if row.revision is None and revisions and row.id in revisions:
                    row.revision = revisions[row.id]
            writing.flush()
            return [feedback_of(row) for row in rows]

    def return_to_buffer(
        self, job_id: int, *, session: Session | None = None
    ) -> builtins.list[Feedback]:
        """The job did not finish: its lessons go back into the buffer.

        Where that is too full by now, the lightest fall out as ever. Returns what went back, with
        the status it has now.
        """
        with self._writing(session) as writing:
            rows = writing.scalars(_oldest_first("training", job_id=job_id)).all()
            for row in rows:
                settle(row)
            self._drop_excess(writing)
            writing.flush()
            return [feedback_of(row) for row in rows]

    def _drop_excess(self, session: Session) -> Sequence[FeedbackRow]:
        """Take the lightest, then the oldest, out of a buffer above capacity."""
        session.flush()
        excess = self._state(session).count - self.settings.capacity
        if excess <= 0:
            return []
        rows = session.scalars(
            select(FeedbackRow)
            .where(FeedbackRow.status == "buffered")
            .order_by(FeedbackRow.weight, FeedbackRow.updated_at, FeedbackRow.id)
            .limit(excess)
        ).all()
        for row in rows:
            row.status = "dropped"
        session.flush()
        return rows

    def _state(self, session: Session) -> BufferState:
        sums: dict[str, Any] = {
            status: (count, weight)
            for status, count, weight in session.execute(
                select(FeedbackRow.status, func.count(), func.sum(FeedbackRow.weight))
                .where(FeedbackRow.status.in_(("buffered", "waiting")))
                .group_by(FeedbackRow.status)
            )
        }
        count, weight = sums.get("buffered", (0, 0.0))
        return BufferState(
            count=count,
            weight=weight,
            threshold=self.settings.threshold,
            threshold_by=self.settings.threshold_by,
            capacity=self.settings.capacity,
            waiting=sums.get("waiting", (0, 0.0))[0],
        )

    @contextmanager
    def _writing(self, session: Session | None) -> Iterator[Session]:
        if session is not None:
            yield session
        else:
            with self._db.write() as own:
                yield own

    @contextmanager
    def _reading(self, session: Session | None) -> Iterator[Session]:
        if session is not None:
            yield session
        else:
            with self._db.read() as own:
                yield own


def unknown(feedback_id: int) -> FeedbackError:
    """There is no feedback of this number."""
    return FeedbackError(
        f"There is no feedback {feedback_id}.", hint="`feedback list` shows what there is."
    )


def _oldest_first(*statuses: FeedbackStatus, job_id: int | None = None) -> Select[FeedbackRow]:
    query = select(FeedbackRow).where(FeedbackRow.status.in_(statuses))
    if job_id is not None:
        query = query.where(FeedbackRow.job_id == job_id)
    return query.order_by(FeedbackRow.updated_at, FeedbackRow.id)
