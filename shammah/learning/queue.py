"""The queue of training jobs: durable rows, and a folder for each.

Knows which job is in what state and which lessons it holds. Does not run anything, and knows
nothing of models or adapters. Safe to use from several processes: each change is one transaction.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import psutil
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from shammah.errors import ModelError, TrainingError
from shammah.feedback.buffer import LessonBuffer
from shammah.feedback.records import Feedback
from shammah.files import private_folder
from shammah.learning.job import EVENTS, RESULT, Complete, JobSpec, ScopeSpec, now
from shammah.learning.lessons import Lesson, lessons_from
from shammah.paths import Paths
from shammah.settings import Settings
from shammah.storage.database import Database
from shammah.storage.schema import FeedbackRow, JobRow
from shammah.tracking.loggers.jsonl import CONFIG, METRICS

JobStatus = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
ENDED: tuple[JobStatus, ...] = ("done", "failed", "cancelled", "interrupted")
"""A job in one of these does not move by itself."""

LONGEST_BACKOFF = 16
"""Further feedbacks that are waited for at most after repeated failures."""

RETRY_AFTER = timedelta(hours=1)
"""After this time a failed job is tried again at the next occasion, however often it failed."""

CANCEL = "cancel"
"""A file of this name in a job folder asks whichever process runs the job to end it."""


@dataclass(frozen=True, slots=True)
class Job:
    """One training job as it stands in the database."""

    id: int
    status: JobStatus
    reason: str
    base_model: str
    base_fingerprint: str
    folder: Path
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    owner_pid: int | None
    worker_pid: int | None
    attempts: int
    """Times that a worker was started for it."""
    error: str | None
    adapter: str | None
    examples: int
    """Lessons it was queued with."""
    final_loss: float | None
    learned: int | None
    """Lessons answered as taught when it was done."""

    @property
    def ended(self) -> bool:
        return self.status in ENDED


class JobQueue:
    """The jobs of one data folder."""

    def __init__(self, database: Database, paths: Paths, feedback: LessonBuffer) -> None:
        self._database = database
        self._paths = paths
        self._feedback = feedback

    # --- putting in -------------------------------------------------------------------------

    def enqueue(self, settings: Settings, *, reason: str, domain: str | None = None) -> Job:
        """Queue one job with every lesson of the buffer, which is empty after.

        A job that was interrupted goes back into the queue before it, so that no lesson waits
        behind newer ones. With an empty buffer the job that is already on its way is returned.

        Args:
            domain: what its adapter is for; None leaves it to `training.domain`.

        Raises:
            TrainingError: there is nothing to train on, or the job that is on its way is for
                another domain.
        """
        settings = _with_domain(settings, domain)
        fingerprint = _fingerprint(settings)
        with self._database.write() as session:
            requeued = self._requeue_interrupted(session)
            buffered = self._feedback.buffer(session=session)
            if buffered:
                return self._insert(session, buffered, settings, fingerprint, reason)
            row = (
                requeued
                or session.scalars(
                    select(JobRow)
                    .where(JobRow.status.in_(("queued", "running")))
                    .order_by(JobRow.id)
                ).first()
            )
            if row is not None:
                return self.check_domain(self._job(row), domain)
            waiting = self._feedback.state(session=session).waiting
        raise TrainingError(
            "There is nothing to train on: the buffer is empty.",
            hint=f"{waiting} rated answers are empty and wait for a correction: `/feedback list` "
            "shows them, `/feedback edit N` gives one."
            if waiting
            else "Correct an answer with /correct, or rate a good one with /good.",
        )

    def enqueue_if_due(self, settings: Settings, *, reason: str = "threshold") -> Job | None:
        """Queue the buffer if it has reached its threshold, training is automatic, and the last
        job did not just fail or was cancelled. Two callers at once queue one job.

        After n failures in a row it takes 2^(n-1) further feedbacks (or an hour) until the next
        try; after a cancelled job, a buffer's worth of new feedback.
        """
        if not settings.feedback.auto_train:
            return None
        # The cheap look first: nearly always there is nothing to do, and no lock is taken.
        with self._database.read() as session:
            if not self._due(session):
                return None
        fingerprint = _fingerprint(settings)
        with self._database.write() as session:
            if not self._due(session):
                return None
            self._requeue_interrupted(session)
            buffered = self._feedback.buffer(session=session)
            return self._insert(session, buffered, settings, fingerprint, reason)

    def rebuild(self, settings: Settings) -> Job:
        """Queue one job with every lesson that stands, trained before or not, from the base model:
        what was taken back or changed since is then no longer in the weights.

        Raises:
            TrainingError: there is no lesson, or another job is on its way.
        """
        training = settings.training.model_copy(update={"mode": "fresh", "domain": ""})
        fresh = settings.model_copy(update={"training": training})
        fingerprint = _fingerprint(settings)
        with self._database.write() as session:
            other = session.scalars(
                select(JobRow).where(JobRow.status.in_(("queued", "running", "interrupted")))
            ).first()
            if other is not None:
                raise TrainingError(
                    f"Training job {other.id} is {other.status}, and holds lessons.",
                    hint="Wait for its end, or end it with /train cancel.",
                )
            lessons = self._feedback.standing(session=session)
            if not lessons:
                raise TrainingError("There is no lesson to train on.")
            return self._insert(session, lessons, fresh, fingerprint, "rebuild", again=True)

    def check_domain(self, job: Job, domain: str | None) -> Job:
        """The job, if that is what it is for.

        Raises:
            TrainingError: it is for something else.
        """
        if domain is not None:
            other = JobSpec.read(job.folder).training.domain
            if other != domain:
                raise TrainingError(
                    f"Training job {job.id} is {job.status} already, for "
                    f"{other or 'no domain'}, not for {domain}.",
                    hint=f"When it is done, `/adapters domain NAME {domain}` says what it is for.",
                )
        return job

    def requeue(self, job_id: int) -> Job:
        """Put an interrupted job back into the queue; it goes on from its checkpoint.

        Raises:
            TrainingError: there is no such job, or it is not interrupted.
        """
        with self._database.write() as session:
            row = self._row(session, job_id)
            if row.status != "interrupted":
                raise TrainingError(f"Job {job_id} is {row.status}, not interrupted.")
            row.status, row.finished_at = "queued", None
            return self._job(row)

    # --- looking ----------------------------------------------------------------------------

    def get(self, job_id: int) -> Job:
        """One job.

        Raises:
            TrainingError: there is none of that number.
        """
        with self._database.read() as session:
            return self._job(self._row(session, job_id))

    def list(
        self, *, statuses: Sequence[JobStatus] | None = None, limit: int | None = None
    ) -> list[Job]:
        """Jobs, newest first."""
        query = select(JobRow).order_by(JobRow.id.desc()).limit(limit)
        if statuses is not None:
            query = query.where(JobRow.status.in_(statuses))
        with self._database.read() as session:
            return [self._job(row) for row in session.scalars(query)]

    def current(self) -> Job | None:
        """The running job, else the one that is next."""
        jobs = self.list(statuses=("queued", "running"))
        running = [job for job in jobs if job.status == "running"]
        return running[0] if running else jobs[-1] if jobs else None

    def resumable(self) -> Job | None:
        """The oldest job that was interrupted."""
        jobs = self.list(statuses=("interrupted",))
        return jobs[-1] if jobs else None

    def counts(self) -> dict[str, int]:
        """How many jobs there are of each status."""
        with self._database.read() as session:
            rows = session.execute(select(JobRow.status, func.count()).group_by(JobRow.status))
            return {status: count for status, count in rows}  # noqa: C416

    def lessons(self, job_id: int) -> tuple[Lesson, ...]:
        """The lessons that a job holds now: those deleted or corrected anew since it was queued
        are no longer among them."""
        held = [row for row in self._feedback.list("training") if row.job_id == job_id]
        return lessons_from(reversed(held))

    def kept_anchors(self, fingerprint: str) -> Path:
        """Where the anchors that were sampled from a base model are kept."""
        return self._paths.anchors(fingerprint)

    # --- moving on --------------------------------------------------------------------------

    def claim(self) -> Job | None:
        """Make the oldest queued job a running one of this process."""
        with self._database.write() as session:
            row = session.scalars(
                select(JobRow).where(JobRow.status == "queued").order_by(JobRow.id)
            ).first()
            if row is None:
                return None
            row.status = "running"
            row.started_at, row.finished_at = now(), None
            row.owner_pid = os.getpid()
            row.owner_started = psutil.Process().create_time()
            row.worker_pid, row.error = None, None
            row.attempts += 1
            return self._job(row)

    def set_worker(self, job_id: int, pid: int) -> None:
        """Remember which process works on a job."""
        with self._database.write() as session:
            session.execute(update(JobRow).where(JobRow.id == job_id).values(worker_pid=pid))

    def unclaim(self, job_id: int) -> None:
        """Put a claimed job back that no worker was started for."""
        with self._database.write() as session:
            row = self._row(session, job_id)
            row.status, row.started_at, row.owner_pid = "queued", None, None
            row.attempts -= 1

    def finish(
        self, job_id: int, adapter: str, result: Complete, *, set_aside: bool = False
    ) -> Job:
        """The job is done and its adapter published under that name: its lessons are trained, or
        set aside where the adapter was refused, so that nothing is replayed that did harm."""
        with self._database.write() as session:
            row = self._row(session, job_id)
            self._feedback.finish_training(
                job_id,
                result.learned,
                revisions=result.revisions,
                set_aside=set_aside,
                session=session,
            )
            row.status, row.finished_at = "done", now()
            row.adapter, row.final_loss = adapter, result.final_loss
            row.learned = len(result.learned)
            row.worker_pid = row.owner_pid = row.error = None
            return self._job(row)

    def give_up(self, job_id: int, status: Literal["failed", "cancelled"], error: str) -> Job:
        """The job ended without an adapter, `error` says why: its lessons go back to the buffer."""
        with self._database.write() as session:
            row = self._row(session, job_id)
            self._feedback.return_to_buffer(job_id, session=session)
            row.status, row.finished_at, row.error = status, now(), error
            row.worker_pid = row.owner_pid = None
            return self._job(row)

    def interrupt(self, job_id: int, error: str) -> Job:
        """The job stands still and can go on; it keeps its lessons."""
        with self._database.write() as session:
            row = self._row(session, job_id)
            row.status, row.finished_at, row.error = "interrupted", now(), error
            row.worker_pid = row.owner_pid = None
            return self._job(row)

    def ask_cancel(self, job_id: int) -> None:
        """Ask whichever process runs a job to end it."""
        (self.get(job_id).folder / CANCEL).touch(mode=0o600)

    # --- inside -----------------------------------------------------------------------------

    def _insert(
        self,
        session: Session,
        buffered: Sequence[Feedback],
        settings: Settings,
        fingerprint: str,
        reason: str,
        *,
        again: bool = False,
    ) -> Job:
        row = JobRow(
            status="queued",
            reason=reason,
            base_model=settings.model.name,
            base_fingerprint=fingerprint,
            folder="",
            created_at=now(),
            examples=len(buffered),
        )
        session.add(row)
        session.flush()
        row.folder = str(row.id)
        session.flush()
        taken = self._feedback.begin_training(
            [feedback.id for feedback in buffered], row.id, again=again, session=session
        )
        # The folder is written before the commit: a row never lacks its folder. A folder whose row
        # was rolled back is written over by the next job, which gets the same number.
        job = self._job(row)
        private_folder(job.folder)
        for leftover in (EVENTS, METRICS, CONFIG, RESULT, CANCEL):
            (job.folder / leftover).unlink(missing_ok=True)
        JobSpec(
            id=row.id,
            created_at=row.created_at,
            reason=reason,
            model=settings.model,
            fingerprint=fingerprint or None,
            lora=settings.lora,
            training=settings.training,
            tracking=settings.tracking,
            routing=settings.adapters.routing,
            scope=_scope(settings),
            lessons=lessons_from(taken),
        ).write(job.folder)
        return job

    def _due(self, session: Session) -> bool:
        if not self._feedback.state(session=session).reached:
            return False
        query = select(JobRow.status, JobRow.finished_at).where(JobRow.finished_at.is_not(None))
        ended = session.execute(query.order_by(JobRow.finished_at.desc(), JobRow.id.desc())).all()
        failures = 0
        for status, _ in ended:
            if status != "failed":
                break
            failures += 1
        last, at = ended[0] if ended else (None, None)
        if at is not None and failures:
            needed = min(2 ** (failures - 1), LONGEST_BACKOFF)
            return now() - at >= RETRY_AFTER or self._changed_since(session, at) >= needed
        if at is not None and last == "cancelled":
            return self._changed_since(session, at) >= self._feedback.settings.threshold
        return True

    def _changed_since(self, session: Session, at: datetime) -> int:
        query = select(func.count()).select_from(FeedbackRow)
        query = query.where(FeedbackRow.updated_at > at)
        return session.scalar(query.where(FeedbackRow.status.in_(("buffered", "waiting")))) or 0

    def _requeue_interrupted(self, session: Session) -> JobRow | None:
        rows = session.scalars(
            select(JobRow).where(JobRow.status == "interrupted").order_by(JobRow.id)
        ).all()
        for row in rows:
            row.status, row.finished_at = "queued", None
        return rows[0] if rows else None

    def _row(self, session: Session, job_id: int) -> JobRow:
        row = session.get(JobRow, job_id)
        if row is None:
            raise TrainingError(
                f"There is no training job {job_id}.", hint="`/train queue` lists them."
            )
        return row

    def _job(self, row: JobRow) -> Job:
        return Job(
            id=row.id,
            status=row.status,  # type: ignore[arg-type]
            reason=row.reason,
            base_model=row.base_model,
            base_fingerprint=row.base_fingerprint,
            folder=self._paths.jobs / row.folder,
            created_at=row.created_at,
            started_at=row.started_at,
            finished_at=row.finished_at,
            owner_pid=row.owner_pid,
            worker_pid=row.worker_pid,
            attempts=row.attempts,
            error=row.error,
            adapter=row.adapter,
            examples=row.examples,
            final_loss=row.final_loss,
            learned=row.learned,
        )


def _with_domain(settings: Settings, domain: str | None) -> Settings:
    if domain is None:
        return settings
    training = settings.training.model_copy(update={"domain": domain})
    return settings.model_copy(update={"training": training})


def _fingerprint(settings: Settings) -> str:
    """The fingerprint of the configured base model; empty where it is not on this disk yet."""
    from shammah.models.find import find_model
    from shammah.models.fingerprint import fingerprint

    try:
        path = find_model(settings.model.name).path
        return fingerprint(path) if path is not None else ""
    except (ModelError, OSError):
        return ""


def _scope(settings: Settings) -> ScopeSpec | None:
    """What an adapter will be asked, going by the settings; one that answers by routing is asked
    what is near to its domain, which may be more than its own lessons."""
    adapters = settings.adapters
    routed = adapters.routing == "domain" and settings.training.domain
    if adapters.scope == "all" or routed:
        return None
    return ScopeSpec(threshold=adapters.scope_threshold, embedding=adapters.embedding)
