"""Which adapters to remove where there are more than shall be kept. Values only: no files.

The worst first: those that failed their checks; then by the share of their ratings that were
critical or medium; then the least used; then the oldest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

BAD = ("critical", "medium")


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is known of one adapter: how many `answers` it gave, and the `ratings` of those."""

    name: str
    created_at: datetime
    parents: tuple[str, ...] = ()
    failed: bool = False
    answers: int = 0
    ratings: Mapping[str, int] = field(default_factory=dict)

    @property
    def bad(self) -> int:
        """Ratings that were critical or medium."""
        return sum(self.ratings.get(rating, 0) for rating in BAD)

    @property
    def rated(self) -> int:
        return sum(self.ratings.values())


@dataclass(frozen=True, slots=True)
class Removal:
    """An adapter to remove, and why this one."""

    name: str
    reason: str


def to_remove(candidates: Sequence[Candidate], held: Collection[str], keep: int) -> list[Removal]:
    """The worst ones, so many that `keep` are left; fewer where too many are held.

    Args:
        candidates: the adapters of one base model.
        held: what stays in any case.
        keep: 0 keeps all.
    """
    surplus = len(candidates) - keep if keep > 0 else 0
    free = sorted((item for item in candidates if item.name not in held), key=_worst_first)
    return [Removal(item.name, _reason(item)) for item in free[: max(0, surplus)]]


def with_ancestors(names: Iterable[str], parents: Mapping[str, Sequence[str]]) -> set[str]:
    """These, what they were made from, and so on. Circles and names that are gone do no harm."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(parents.get(name, ()))
    return found


def _worst_first(item: Candidate) -> tuple[bool, float, int, datetime, str]:
    share = item.bad / item.rated if item.rated else 0.0
    return (not item.failed, -share, item.answers, item.created_at, item.name)


def _reason(item: Candidate) -> str:
    if item.failed:
        return "it failed its checks"
    if item.bad:
        return f"{item.bad} of its {item.rated} ratings were critical or medium"
    if item.answers:
        return f"used in only {item.answers} answer{'s' * (item.answers != 1)}"
    return "never used"
