"""The tables, as SQLAlchemy sees them. Knows columns, not what they are used for.

`migrations` holds the SQL that makes them; a test keeps the two alike. A change here needs a new
migration there.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import DateTime, ForeignKey, Index, MetaData, Text, TypeDecorator, text
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shammah.errors import StorageError


class UtcDateTime(TypeDecorator[datetime]):
    """Timezone-aware UTC in Python, sortable text in the file."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("times in the database are UTC: a time without a zone was given")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


class JsonText(TypeDecorator[Any]):
    """A JSON value as readable text.

    SQLite gives a column declared as JSON numeric affinity, which would turn 1.0 into 1 and round
    large integers.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:
        return json.dumps(value, ensure_ascii=False)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        try:
            return json.loads(value)
        except ValueError as error:
            raise StorageError(
                f"A value in the database is damaged: {value[:60]!r} is not JSON."
            ) from error


class Base(DeclarativeBase):
    """Root of the mapped classes; Python types choose the column types."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text,
        datetime: UtcDateTime,
        dict[str, Any]: JsonText,
        list[dict[str, Any]]: JsonText,
        list[int]: JsonText,
    }


class ExchangeRow(Base):
    """One question with everything before it, and its answer."""

    __tablename__ = "exchanges"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    session: Mapped[str] = mapped_column(index=True)
    messages: Mapped[list[dict[str, Any]]]
    """The whole prompt: [{role, content}], the user's message last."""
    response: Mapped[str]
    cut: Mapped[bool]
    model: Mapped[str]
    fingerprint: Mapped[str]
    adapter: Mapped[str | None] = mapped_column(index=True)
    generation: Mapped[int]
    settings: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class JobRow(Base):
    """One background training run."""

    __tablename__ = "jobs"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(index=True)
    """queued | running | done | failed | cancelled | interrupted"""
    reason: Mapped[str]
    """Why it was queued, such as `threshold` or `now`."""
    base_model: Mapped[str]
    base_fingerprint: Mapped[str]
    folder: Mapped[str]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    owner_pid: Mapped[int | None]
    """The process that runs the trainer."""
    owner_started: Mapped[float | None]
    """When that process was created (seconds since the epoch): tells a reused pid apart."""
    worker_pid: Mapped[int | None]
    attempts: Mapped[int] = mapped_column(server_default=text("0"), default=0)
    error: Mapped[str | None]
    adapter: Mapped[str | None]
    """The adapter it published."""
    examples: Mapped[int] = mapped_column(server_default=text("0"), default=0)
    final_loss: Mapped[float | None]
    learned: Mapped[int | None]
    """How many of its lessons are now answered as taught."""


class FeedbackRow(Base):
    """What the user thought of an answer. At most one row per exchange."""

    __tablename__ = "feedback"
    __table_args__ = (
        Index("ix_feedback_status", "status", "updated_at"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    exchange_id: Mapped[int | None] = mapped_column(
        ForeignKey("exchanges.id", ondelete="SET NULL"), unique=True
    )
    messages: Mapped[list[dict[str, Any]]]
    response: Mapped[str | None]
    rating: Mapped[str | None]
    """critical | medium | good"""
    weight: Mapped[float]
    note: Mapped[str | None]
    correction: Mapped[str | None]
    model: Mapped[str]
    adapter: Mapped[str | None]
    status: Mapped[str]
    """buffered | waiting | training | trained | dropped | deleted"""
    learned: Mapped[bool | None]
    """After training: whether the model then answered as taught."""
    job_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"))
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    """The user's last word on it (training does not touch it)."""
    preferred_over: Mapped[str | None]
    """An earlier answer to the same prompt, which this one is rated good in place of."""
    revision: Mapped[str | None]
    """The model's own answer after it was shown the note."""
    revision_accepted: Mapped[bool | None]


class FeedbackActionRow(Base):
    """One change the user made to one feedback row, enough to take it back."""

    __tablename__ = "feedback_actions"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    batch: Mapped[int] = mapped_column(index=True)
    """Changes that are taken back together (an import is one) share this number."""
    kind: Mapped[str]
    """rate | replace | add | edit | delete"""
    feedback_id: Mapped[int] = mapped_column(ForeignKey("feedback.id", ondelete="CASCADE"))
    before: Mapped[dict[str, Any] | None]
    after: Mapped[dict[str, Any]]
    dropped: Mapped[list[int]]
    """Feedback that fell out of the buffer because of it."""
    at: Mapped[datetime]
    undone_at: Mapped[datetime | None]


class JobLessonRow(Base):
    """Which feedback a job teaches."""

    __tablename__ = "job_lessons"

    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    feedback_id: Mapped[int] = mapped_column(
        ForeignKey("feedback.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    learned: Mapped[bool | None]
    """Set when the job is done, unless its lessons were set aside."""


class ActivationRow(Base):
    """Which adapter was made active when; the newest row of a base model is what runs."""

    __tablename__ = "activations"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    base_fingerprint: Mapped[str] = mapped_column(index=True)
    adapter: Mapped[str | None]
    """NULL is the base model alone."""
    previous_id: Mapped[int | None] = mapped_column(ForeignKey("activations.id"))
    at: Mapped[datetime]


class StateRow(Base):
    """Small things to remember, by name."""

    __tablename__ = "state"

    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[Any] = mapped_column(JsonText)
