"""Between a feedback row of the database and its value; the record of changes and taking them back.

Works inside a session that someone else opened and commits.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from shammah.errors import StorageError
from shammah.feedback.records import Feedback, teaches
from shammah.storage.schema import FeedbackActionRow, FeedbackRow, JobLessonRow, JobRow

Snapshot = dict[str, Any]
"""The columns of a feedback row that can change, as JSON values."""

_SAID = (
    "rating",
    "weight",
    "note",
    "correction",
    "preferred_over",
    "revision",
    "revision_accepted",
)
_FIELDS = (*_SAID, "status", "learned", "job_id")
_TIMES = ("created_at", "updated_at")
_OPEN_JOBS = ("queued", "running", "interrupted")
_FEEDBACK = TypeAdapter(Feedback)


def feedback_of(row: FeedbackRow) -> Feedback:
    """The value of a row.

    Raises:
        StorageError: the row holds what no version of this program writes.
    """
    columns = {column.key: getattr(row, column.key) for column in FeedbackRow.__table__.columns}
    try:
        return _FEEDBACK.validate_python(columns)
    except ValidationError as error:
        raise StorageError(f"Feedback {row.id} is damaged in the database: {error}.") from error


def taught_by(row: FeedbackRow) -> tuple[Any, ...]:
    """What decides what the row teaches; where it changes, it is to be learned anew."""
    feedback = feedback_of(row)
    target = feedback.target
    # A note matters only where there is nothing better to go by, and a revision that was proposed
    # is what came of it.
    note = feedback.note if target is None else None
    return (target, feedback.rating != "good", feedback.preferred_over, note, feedback.weight)


def settle(row: FeedbackRow) -> None:
    """Put a row that teaches something new where it belongs: in the buffer, or waiting."""
    row.status = "buffered" if teaches(row.response, row.rating, row.correction) else "waiting"
    row.job_id = None
    row.learned = None


def snapshot(row: FeedbackRow) -> Snapshot:
    """What a later undo needs to know."""
    values: Snapshot = {name: getattr(row, name) for name in _FIELDS}
    return values | {name: getattr(row, name).isoformat() for name in _TIMES}


def record(
    session: Session,
    changes: Sequence[tuple[str, FeedbackRow, Snapshot | None]],
    dropped: Sequence[FeedbackRow],
    at: datetime,
) -> None:
    """Note changes (kind, row as it is now, what it was before) as one action of the user."""
    session.flush()
    batch = 1 + (session.scalar(select(func.max(FeedbackActionRow.batch))) or 0)
    for index, (kind, row, before) in enumerate(changes):
        session.add(
            FeedbackActionRow(
                batch=batch,
                kind=kind,
                feedback_id=row.id,
                before=before,
                after=snapshot(row),
                dropped=[other.id for other in dropped] if index == 0 else [],
                at=at,
                undone_at=None,
            )
        )


def take_back(session: Session, at: datetime) -> list[FeedbackRow]:
    """Undo the last action that is not undone yet; the rows it concerned, as they are now."""
    last = (
        select(func.max(FeedbackActionRow.batch))
        .where(FeedbackActionRow.undone_at.is_(None))
        .scalar_subquery()
    )
    actions = session.scalars(
        select(FeedbackActionRow)
        .where(FeedbackActionRow.batch == last)
        .order_by(FeedbackActionRow.id.desc())
    ).all()
    concerned = {action.feedback_id for action in actions}
    rows = []
    for action in actions:
        row = session.get_one(FeedbackRow, action.feedback_id)
        _restore(session, row, action.before, action.after)
        action.undone_at = at
        rows.append(row)
        for other_id in action.dropped:
            other = session.get_one(FeedbackRow, other_id)
            if other_id not in concerned and other.status == "dropped":
                settle(other)
    return rows


def _restore(session: Session, row: FeedbackRow, before: Snapshot | None, after: Snapshot) -> None:
    if before is None:
        row.status, row.job_id, row.learned = "deleted", None, None
        return
    # Training may have moved the row on since the action; its place is then no longer the old one.
    moved = (row.status, row.job_id) != (after["status"], after["job_id"])
    taught = taught_by(row)
    for name in _SAID:
        setattr(row, name, before.get(name))
    for name in _TIMES:
        setattr(row, name, datetime.fromisoformat(before[name]))
    if moved and before["status"] != "deleted":
        if taught != taught_by(row):
            settle(row)
        return
    row.status, row.job_id, row.learned = before["status"], before["job_id"], before["learned"]
    if row.status == "training":
        _reconcile(session, row)


def _reconcile(session: Session, row: FeedbackRow) -> None:
    """A row that was in training when the user changed it: where is that job now?"""
    job = session.get(JobRow, row.job_id) if row.job_id is not None else None
    lesson = session.get(JobLessonRow, (row.job_id, row.id)) if job is not None else None
    if job is None or lesson is None:
        settle(row)
    elif job.status == "done" and lesson.learned is not None:
        row.status, row.learned = "trained", lesson.learned
    elif job.status == "done":
        settle(row)  # its adapter was refused, and the user has a hand on it
    elif job.status not in _OPEN_JOBS:
        settle(row)
