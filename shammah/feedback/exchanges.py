"""Exchanges in the database: what was asked with everything before it, and what was answered.

Knows nothing about ratings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import func, select

from shammah.errors import FeedbackError, StorageError
from shammah.messages import Conversation, Message, to_dicts
from shammah.storage.database import Database
from shammah.storage.schema import ExchangeRow


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and its answer."""

    id: int
    session: str
    """The conversation it belongs to."""
    messages: Conversation
    """The whole prompt: the system message if any, earlier turns, the user's message last."""
    response: str
    cut: bool
    """Whether the answer was stopped before its end."""
    model: str
    fingerprint: str
    adapter: str | None
    generation: int
    settings: dict[str, Any]
    """How the answer was drawn: temperature, seed and the like."""
    created_at: datetime

    @property
    def query(self) -> str:
        """What the user asked."""
        return self.messages[-1].text


class ExchangeStore:
    """The exchanges of a database. Safe to use from any thread."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def add(
        self,
        *,
        session: str,
        messages: Conversation,
        response: str,
        cut: bool,
        model: str,
        fingerprint: str,
        adapter: str | None,
        generation: int,
        settings: Mapping[str, Any],
        created_at: datetime | None = None,
    ) -> Exchange:
        """Store an exchange; it is on disk on return.

        Raises:
            FeedbackError: the messages do not end with the user's.
            StorageError: it could not be written.
        """
        messages = storable_messages(messages)
        row = ExchangeRow(
            session=session,
            messages=to_dicts(messages),
            response=storable(response),
            cut=cut,
            model=model,
            fingerprint=fingerprint,
            adapter=adapter,
            generation=generation,
            settings=dict(settings),
            created_at=created_at or datetime.now(UTC),
        )
        with self._db.write() as writing:
            writing.add(row)
        return _exchange(row)

    def get(self, exchange_id: int) -> Exchange:
        """One exchange.

        Raises:
            FeedbackError: there is none with this number.
        """
        with self._db.read() as reading:
            row = reading.get(ExchangeRow, exchange_id)
        if row is None:
            raise FeedbackError(f"There is no exchange {exchange_id}.")
        return _exchange(row)

    def latest(self, session: str) -> Exchange | None:
        """The newest exchange of a conversation."""
        found = self.list(1, session=session)
        return found[0] if found else None

    def list(self, limit: int | None = None, session: str | None = None) -> list[Exchange]:
        """Exchanges, newest first."""
        query = select(ExchangeRow).order_by(ExchangeRow.id.desc()).limit(limit)
        if session is not None:
            query = query.where(ExchangeRow.session == session)
        with self._db.read() as reading:
            return [_exchange(row) for row in reading.scalars(query)]

    def count(self) -> int:
        """How many exchanges there are."""
        with self._db.read() as reading:
            return reading.scalar(select(func.count()).select_from(ExchangeRow)) or 0

    def uses(self) -> dict[str, int]:
        """How many answers each adapter gave."""
        query = (
            select(ExchangeRow.adapter, func.count())
            .where(ExchangeRow.adapter.is_not(None))
            .group_by(ExchangeRow.adapter)
        )
        with self._db.read() as reading:
            return {str(row[0]): row[1] for row in reading.execute(query)}


def storable(text: str) -> str:
    """The text without lone surrogates (bytes a terminal could not decode): UTF-8 has none."""
    return text.encode("utf-8", "replace").decode("utf-8")


def storable_messages(messages: Conversation) -> Conversation:
    """Messages that can be stored and answered.

    Raises:
        FeedbackError: the last one is not the user's.
    """
    if not messages or messages[-1].role != "user":
        raise FeedbackError("A prompt ends with a message of the user; this one does not.")
    return tuple(map(_storable, messages))


def _storable(message: Message) -> Message:
    text = storable(message.text)
    return message if text == message.text else message.with_text(text)


_EXCHANGE = TypeAdapter(Exchange)


def _exchange(row: ExchangeRow) -> Exchange:
    columns = {column.key: getattr(row, column.key) for column in ExchangeRow.__table__.columns}
    try:
        return _EXCHANGE.validate_python(columns)
    except ValidationError as error:
        raise StorageError(f"Exchange {row.id} is damaged in the database: {error}.") from error
