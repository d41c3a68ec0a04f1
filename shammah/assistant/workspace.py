"""What is on disk, opened once: database, exchanges, feedback, adapters, jobs.

Commands that need no model work on a workspace alone. Importing this module imports SQLAlchemy,
so the prompt imports it in a thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shammah.adapters.library import Adapter, AdapterLibrary
from shammah.assistant.views import AdapterComparison, AdapterInfo, AdapterRecord
from shammah.errors import AdapterInvalidError, UsageError
from shammah.feedback.exchanges import ExchangeStore
from shammah.feedback.store import FeedbackStore
from shammah.learning.queue import Job, JobQueue
from shammah.learning.upkeep import Upkeep
from shammah.models.find import find_model
from shammah.models.fingerprint import fingerprint as fingerprint_of
from shammah.paths import Paths
from shammah.settings import Settings
from shammah.storage.database import Database

if TYPE_CHECKING:
    from shammah.adapters.merging import MergeOptions
    from shammah.adapters.pruning import Removal
    from shammah.learning.plan import TrainingPlan


class Workspace:
    """The stores of one data folder."""

    def __init__(self, settings: Settings, paths: Paths) -> None:
        """Open (and where needed make or migrate) everything.

        Raises:
            StorageError: the folder or the database cannot be used.
        """
        paths.ensure()
        self.paths = paths
        self.settings = settings
        self.database = Database(paths.database)
        self.exchanges = ExchangeStore(self.database)
        self.feedback = FeedbackStore(self.database, settings.feedback)
        self.library = AdapterLibrary(paths.adapters, self.database)
        self.queue = JobQueue(self.database, paths, self.feedback)
        self._upkeep = Upkeep(self.library, self.exchanges, self.feedback, self.queue)

    def apply(self, settings: Settings) -> None:
        """Use changed settings from here on."""
        self.settings = settings
        self.feedback.settings = settings.feedback

    def fingerprint(self) -> str | None:
        """The configured base model's fingerprint, without loading it; None for one not on disk."""
        source = find_model(self.settings.model.name)
        return fingerprint_of(source.path) if source.path is not None else None

    def queue_if_due(self) -> Job | None:
        """Queue a job when the buffer has reached its threshold and training is automatic."""
        return self.queue.enqueue_if_due(self.settings)

    def plan(self) -> TrainingPlan:
        """What the next training job would do."""
        from shammah.learning.plan import plan

        return plan(self.settings, self.feedback, self.library)

    def adapters(self) -> list[AdapterInfo]:
        """Every adapter of the library as a list shows it, newest first."""
        fingerprint = self.fingerprint()
        active = self.library.active(fingerprint) if fingerprint else None
        return [
            AdapterInfo.of(adapter, active=active, fingerprint=fingerprint)
            for adapter in self.library.list()
        ]

    def prune(self, keep: int | None = None, *, dry_run: bool = False) -> list[Removal]:
        """Remove the worst adapters, so that `keep` of each base model are left.

        Args:
            keep: None is `adapters.max_kept`.
            dry_run: only say which, and why.

        Raises:
            UsageError: the settings keep all, and `keep` is not given.
        """
        keep = self.settings.adapters.max_kept if keep is None else keep
        if keep < 1:
            raise UsageError(
                "adapters.max_kept is 0: every adapter is kept.",
                hint="--keep N says how many to keep this time.",
            )
        return self._upkeep.prune(keep, dry_run=dry_run)

    def without_round(self, name: str, number: int) -> Adapter:
        """Publish an adapter without one of its rounds (see `rounds.without_round`)."""
        from shammah.adapters.rounds import without_round

        return without_round(self.library.get(name), number, self.library)

    def merge(self, names: Sequence[str], options: MergeOptions) -> Adapter:
        """Publish a new adapter that combines others; it is not made the active one.

        Raises:
            UsageError: the options do not go together, or not with these adapters.
            AdapterError: one is not there, broken, or for another base model than the configured.
            ModelError: the base model's folder cannot be used.
        """
        from shammah.adapters.merging import check, merge

        adapters = [self.library.get(name) for name in names]
        check(adapters, options, self.library)
        base = self.fingerprint()
        for adapter in adapters:
            metadata = adapter.require_metadata()
            if base is not None and metadata.base_fingerprint != base:
                raise self._other_base(adapter)
        from shammah.models.load import load_shape

        return merge(adapters, options, load_shape(self.settings.model.name), self.library)

    def compare(self, name: str, other: str | None) -> AdapterComparison:
        """An adapter beside another one: by default its parent, or the base model without one.

        Raises:
            AdapterNotFoundError, AdapterInvalidError: one is not there or broken.
        """
        from shammah.adapters.differences import difference

        infos = {info.name: info for info in self.adapters()}
        second = self.library.get(name)
        if other is None and infos[second.name].parent in infos:
            other = infos[second.name].parent
        first = self.library.get(other) if other else None
        apart = difference(first, second)
        uses, ratings = self.exchanges.uses(), self.feedback.ratings()

        def record(adapter: Adapter) -> AdapterRecord:
            return AdapterRecord(
                infos[adapter.name],
                dict(adapter.require_metadata().metrics),
                uses.get(adapter.name, 0),
                ratings.get(adapter.name, {}),
            )

        return AdapterComparison(record(first) if first else None, record(second), apart)

    def select_adapter(self, name: str | None) -> Adapter | None:
        """Make an adapter the active one (None: the base model answers); running chats follow.

        Raises:
            AdapterNotFoundError, AdapterInvalidError: it is not there, broken, or for another base.
        """
        fingerprint = self.fingerprint()
        adapter = None
        if name is not None:
            adapter = self.library.get(name)
            metadata = adapter.require_metadata()
            if fingerprint is not None and metadata.base_fingerprint != fingerprint:
                raise self._other_base(adapter)
        if fingerprint is not None:
            self.library.activate(fingerprint, adapter.name if adapter else None)
        return adapter

    def _other_base(self, adapter: Adapter) -> AdapterInvalidError:
        return AdapterInvalidError(
            f"{adapter.name} was made for {adapter.require_metadata().base_model}, not for "
            f"{self.settings.model.name}.",
            hint="Choose its base with `shammah config set model.name ...` first.",
        )

    def stats(self) -> dict[str, Any]:
        """Counts of what is stored."""
        return {
            "exchanges": self.exchanges.count(),
            "feedback": self.feedback.counts(),
            "buffer": self.feedback.state().label,
            "jobs": self.queue.counts(),
            "adapters": len(self.library.list()),
            "database_bytes": size_of(self.paths.database),
            "adapters_bytes": sum(adapter.size for adapter in self.library.list()),
        }

    def close(self) -> None:
        self.database.close()


def size_of(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
