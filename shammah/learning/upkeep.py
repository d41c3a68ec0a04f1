"""Keeping the library small: gather what is known of each adapter, remove the worst.

Every removal is decided anew while nobody else can activate or delete an adapter, so that several
processes on one data folder together remove no more than one would.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from shammah.adapters.library import Adapter, AdapterLibrary
from shammah.adapters.metadata import AdapterMetadata
from shammah.adapters.pruning import Candidate, Removal, to_remove, with_ancestors
from shammah.errors import AdapterError, TrainingError
from shammah.feedback.buffer import LessonBuffer
from shammah.feedback.exchanges import ExchangeStore
from shammah.learning.job import JobSpec
from shammah.learning.queue import JobQueue


@dataclass(frozen=True, slots=True)
class Upkeep:
    """The stores that know something of adapters."""

    library: AdapterLibrary
    exchanges: ExchangeStore
    feedback: LessonBuffer
    queue: JobQueue

    def prune(self, keep: int, *, dry_run: bool = False) -> list[Removal]:
        """Remove the worst adapters, so that `keep` are left of each base model (0: all).

        These stay in any case: the active one and the newest one, all that they were made from,
        the one that was active before, those that a chat was started with, and what a job on its
        way started from. So do broken ones: somebody may bring their files back.

        Args:
            dry_run: only say which.

        Raises:
            StorageError: one cannot be removed, or the database cannot be read.
        """
        if keep <= 0:
            return []
        uses, ratings = self.exchanges.uses(), self.feedback.ratings()
        removed = []
        for fingerprint, adapters in self._by_base().items():
            candidates = [_candidate(item, uses, ratings) for item in adapters]
            for removal in to_remove(candidates, self._held(fingerprint, adapters), keep):
                if dry_run or self._remove(removal.name, fingerprint, keep):
                    removed.append(removal)
        return removed

    def _remove(self, name: str, fingerprint: str, keep: int) -> bool:
        """Whether it was removed: not where it has meanwhile come into use, or is gone."""

        def check() -> None:
            adapters = self._by_base().get(fingerprint, [])
            if len(adapters) <= keep or name in self._held(fingerprint, adapters):
                raise AdapterError(f"{name} is to be kept.")

        try:
            self.library.delete(name, check)
        except AdapterError:
            return False
        return True

    def _by_base(self) -> dict[str, list[Adapter]]:
        """The adapters that are whole, newest first, by the fingerprint of their base model."""
        found: dict[str, list[Adapter]] = {}
        for adapter in self.library.list():
            if adapter.metadata is not None and adapter.problem is None:
                found.setdefault(adapter.metadata.base_fingerprint, []).append(adapter)
        return found

    def _held(self, fingerprint: str, adapters: Sequence[Adapter]) -> set[str]:
        parents = {item.name: _known(item).parents for item in adapters}
        # Of each domain the newest one answers, where questions are routed.
        of_domains = {domain: a.name for a in reversed(adapters) if (domain := _known(a).domain)}
        roots = {
            self.library.active(fingerprint),
            adapters[0].name,
            *of_domains.values(),
            *self._started_from(),
        }
        lineages = with_ancestors([name for name in roots if name is not None], parents)
        before = self.library.previous(fingerprint)
        return {*lineages, *self.library.pinned(), *([before] if before is not None else [])}

    def _started_from(self) -> set[str]:
        """The parents of jobs that have not ended."""
        found = set()
        for job in self.queue.list(statuses=("queued", "running", "interrupted")):
            with suppress(TrainingError):
                parent = JobSpec.read(job.folder).parent
                if parent is not None:
                    found.add(parent.name)
        return found


def removed_text(removed: Sequence[Removal], keep: int) -> str:
    """The message that says what was removed behind the user's back, and why."""
    count = "1 adapter was" if len(removed) == 1 else f"{len(removed)} adapters were"
    return "\n".join(
        [
            f"{count} removed, so that {keep} are kept (adapters.max_kept):",
            *(f"  {removal.name}: {removal.reason}" for removal in removed),
        ]
    )


def _candidate(
    adapter: Adapter, uses: dict[str, int], ratings: dict[str, dict[str, int]]
) -> Candidate:
    known = _known(adapter)
    return Candidate(
        name=adapter.name,
        created_at=known.created_at,
        parents=known.parents,
        failed=bool(known.failures),
        answers=uses.get(adapter.name, 0),
        ratings=ratings.get(adapter.name, {}),
    )


def _known(adapter: Adapter) -> AdapterMetadata:
    return adapter.require_metadata()
