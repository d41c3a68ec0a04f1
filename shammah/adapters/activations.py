"""Which adapter is active, for each base model, and which one was before.

Every change is a row; the newest row of a base model counts. Going back walks along `previous_id`,
so that going back twice goes back two steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from shammah.errors import AdapterError, AdapterExistsError
from shammah.storage.database import Database
from shammah.storage.schema import ActivationRow, ExchangeRow, FeedbackRow, JobRow


@dataclass(frozen=True, slots=True)
class Activation:
    """From `at` on, `adapter` (None: the base model alone) answered for a base model."""

    id: int
    base_fingerprint: str
    adapter: str | None
    previous_id: int | None
    at: datetime


class Activations:
    """The history of active adapters in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def active(self, fingerprint: str) -> str | None:
        """The active adapter of a base model; None where the base model answers alone."""
        with self._database.read() as session:
            newest = _newest(session, fingerprint)
            return newest.adapter if newest else None

    def activate(
        self, fingerprint: str, adapter: str | None, check: Callable[[], object] | None = None
    ) -> None:
        """Make an adapter (None: the base model) the active one; nothing if it is already.

        `check` is called while nobody can delete or rename it, and raises if it cannot be used.
        """
        with self._database.write() as session:
            if check is not None:
                check()
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
            before = _before(session, fingerprint, exists)
            if before is not None:
                self._add(session, fingerprint, *before)
                return before[0]
        raise AdapterError(
            "There is nothing to go back to.", hint="`/adapters list` shows what can be loaded."
        )

    def previous(self, fingerprint: str, exists: Callable[[str], bool]) -> str | None:
        """The adapter that `rollback` would go back to; None where that is the base model, or
        where there is nothing."""
        with self._database.read() as session:
            before = _before(session, fingerprint, exists)
            return before[0] if before is not None else None

    def history(self, fingerprint: str) -> list[Activation]:
        """Every change of a base model's adapter, the newest first."""
        with self._database.read() as session:
            rows = session.scalars(
                select(ActivationRow)
                .where(ActivationRow.base_fingerprint == fingerprint)
                .order_by(ActivationRow.id.desc())
            ).all()
            return [
                Activation(row.id, row.base_fingerprint, row.adapter, row.previous_id, row.at)
                for row in rows
            ]

    def rename(self, old: str, new: str) -> None:
        """An adapter has another name from now on, in everything that is stored.

        Raises:
            AdapterExistsError: what is stored tells of a deleted adapter that had that name; the
                two could not be told apart any more.
        """
        with self._database.write() as session:
            _check_unused(session, new)
            for row in _NAMING:
                session.execute(update(row).where(row.adapter == old).values(adapter=new))

    def check_unused(self, name: str) -> None:
        """Whether nothing that is stored tells of an adapter of that name.

        Raises:
            AdapterExistsError: it does.
        """
        with self._database.read() as session:
            _check_unused(session, name)

    def remove(
        self, adapter: str, remove: Callable[[], None], check: Callable[[], object] | None = None
    ) -> None:
        """Call `check`, which may raise, and `remove`, while nobody can activate the adapter.

        Raises:
            AdapterError: it is the active one of some base model.
        """
        newest = select(func.max(ActivationRow.id)).group_by(ActivationRow.base_fingerprint)
        with self._database.write() as session:
            rows = session.scalars(
                select(ActivationRow.id)
                .where(ActivationRow.id.in_(newest), ActivationRow.adapter == adapter)
                .limit(1)
            ).all()
            if rows:
                raise AdapterError(
                    f"{adapter} is active and was not deleted.",
                    hint="Load another adapter first, or /adapters unload.",
                )
            if check is not None:
                check()
            remove()

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


_NAMING = (ActivationRow, ExchangeRow, FeedbackRow, JobRow)
"""Whose column `adapter` names one."""


def _before(
    session: Session, fingerprint: str, exists: Callable[[str], bool]
) -> tuple[str | None, int | None] | None:
    """What was active before the present one, and the `previous_id` of that; adapters that are gone
    are passed over."""
    now = earlier = _newest(session, fingerprint)
    while now is not None and earlier is not None:
        if earlier.previous_id is None:
            # Before the first activation the base model answered.
            return None if earlier.adapter is None or now.adapter is None else (None, None)
        earlier = session.get(ActivationRow, earlier.previous_id)
        if earlier is not None and earlier.adapter != now.adapter:
            name = earlier.adapter
            if name is None or exists(name):
                return name, earlier.previous_id
    return None


def _check_unused(session: Session, name: str) -> None:
    for row in _NAMING:
        if session.scalar(select(row.id).where(row.adapter == name).limit(1)) is not None:
            raise AdapterExistsError(
                f"A deleted adapter was named {name!r}, and the history tells of it.",
                hint="Choose another name.",
            )


def _newest(session: Session, fingerprint: str) -> ActivationRow | None:
    return session.scalars(
        select(ActivationRow)
        .where(ActivationRow.base_fingerprint == fingerprint)
        .order_by(ActivationRow.id.desc())
        .limit(1)
    ).first()
