"""Which adapter is active, for each base model, and which one was before.

Every change is a row; the newest row of a base model counts. Going back walks along `previous_id`,
so that going back twice goes back two steps.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from shammah.errors import AdapterError
from shammah.storage.database import Database
from shammah.storage.schema import ActivationRow


class Activations:
    """The history of active adapters in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def active(self, fingerprint: str) -> str | None:
        """The active adapter of a base model; None where the base model answers alone."""
        with self._database.read() as session:
            newest = _newest(session, fingerprint)
            return newest.adapter if newest else None

    def activate(self, fingerprint: str, adapter: str | None) -> None:
        """Make an adapter (None: the base model) the active one; nothing if it is already."""
        with self._database.write() as session:
            newest = _newest(session, fingerprint)
            if (newest.adapter if newest else None) == adapter:
                return
            self._add(session, fingerprint, adapter, newest.id if newest else None)

    def rollback(self, fingerprint: str, exists: Callable[[str], bool]) -> str | None:
        """Go back to what was active before; adapters that are gone are passed over.

        Raises:
            AdapterError: nothing was active before.
        """
        with self._database.write() as session:
            now = _newest(session, fingerprint)
            earlier = now
            while earlier is not None:
                before = earlier.previous_id
                if before is None:
                    # Before the first activation the base model answered.
                    if earlier.adapter is None or now is None or now.adapter is None:
                        break
                    self._add(session, fingerprint, None, None)
                    return None
                earlier = session.get(ActivationRow, before)
                if earlier is None:
                    break
                name = earlier.adapter
                if now is not None and name != now.adapter and (name is None or exists(name)):
                    self._add(session, fingerprint, name, earlier.previous_id)
                    return name
        raise AdapterError(
            "There is nothing to go back to.", hint="`/adapters list` shows what can be loaded."
        )

    def rename(self, old: str, new: str) -> None:
        """An adapter has another name from now on, also in the history."""
        with self._database.write() as session:
            session.execute(
                update(ActivationRow).where(ActivationRow.adapter == old).values(adapter=new)
            )

    def is_active(self, adapter: str) -> bool:
        """Whether an adapter is the active one of any base model."""
        with self._database.read() as session:
            marks = session.scalars(
                select(ActivationRow.base_fingerprint)
                .where(ActivationRow.adapter == adapter)
                .distinct()
            ).all()
            return any(
                (newest := _newest(session, mark)) is not None and newest.adapter == adapter
                for mark in marks
            )

    def _add(
        self, session: Session, fingerprint: str, adapter: str | None, previous: int | None
    ) -> None:
        session.add(
            ActivationRow(
                base_fingerprint=fingerprint,
                adapter=adapter,
                previous_id=previous,
                at=datetime.now(UTC),
            )
        )


def _newest(session: Session, fingerprint: str) -> ActivationRow | None:
    return session.scalars(
        select(ActivationRow)
        .where(ActivationRow.base_fingerprint == fingerprint)
        .order_by(ActivationRow.id.desc())
        .limit(1)
    ).first()
