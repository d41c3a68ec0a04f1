"""Data sets as one protocol: rows that can be streamed, and what may be done to them lazily.

A store opens a source; the handle it gives is a recipe, not a list: `take`, `shuffle` and the rest
return another handle at once, and rows are only read when somebody goes through it. Going through
it again gives the same rows in the same order. Knows no format and no library.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self

from shammah.errors import InputError

OnBad = Literal["raise", "skip"]
"""What becomes of a row that cannot be read: an error that names it, or a count."""

SHUFFLE_BUFFER = 10_000
"""Rows that a streaming shuffle holds unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where rows come from: a file, or a split of a data set, and what its numbers count."""

    name: str
    counts: Literal["line", "row"] = "line"

    def place(self, number: int) -> str:
        """A row's place in words: `train.jsonl:17`, or `train.parquet, row 17`."""
        return f"{self.name}:{number}" if self.counts == "line" else f"{self.name}, row {number}"


class Row(dict[str, Any]):
    """A row: its columns by name, and where it is from. Numbers begin at 1."""

    __slots__ = ("number", "origin")

    origin: Origin
    number: int

    @classmethod
    def of(cls, values: Mapping[str, Any], origin: Origin, number: int) -> Self:
        """A row of these values. (An `__init__` of its own would make every row dearer.)"""
        row = cls(values)
        row.origin, row.number = origin, number
        return row

    @property
    def place(self) -> str:
        return self.origin.place(self.number)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that could not be read or used, and why."""

    place: str
    reason: str


@dataclass(slots=True)
class BadRows:
    """The bad rows of one pass: all are counted, the first hundred kept."""

    on_bad: OnBad = "raise"
    count: int = 0
    first: list[BadRow] = field(default_factory=list)

    KEPT = 100

    def add(self, origin: Origin, number: int, reason: str) -> None:
        """Note a bad row.

        Raises:
            InputError: bad rows are not to be skipped.
        """
        place = origin.place(number)
        if self.on_bad == "raise":
            raise InputError(
                f"{place}: {reason}",
                hint='Mend that row, or have bad rows skipped (on_bad="skip", --skip-bad).',
            )
        self.count += 1
        if len(self.first) < self.KEPT:
            self.first.append(BadRow(place, reason))


class Dataset(Protocol):
    """Rows in order, read when they are gone through; every operation gives a new handle.

    Going through it raises InputError at a bad row (unless they are skipped) and DatasetError where
    the backend fails.
    """

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the source, whichever of them this is."""
        ...

    @property
    def bad_rows(self) -> BadRows:
        """What the pass that began last has skipped so far."""
        ...

    def get_split(self, name: str) -> Self:
        """Another split of the same source, with the same operations.

        Raises:
            DatasetError: there is no such split.
        """
        ...

    def shuffle(self, seed: int, *, buffer: int = SHUFFLE_BUFFER, exact: bool = False) -> Self:
        """Another order, the same for the same seed and rows.

        Streaming: `buffer` rows are held, each row that comes takes the place of one drawn from
        them, and at the end those that are left come in random order. So where no more than
        `buffer` rows come, every order is equally likely; of more, rows move back by any distance
        but forward by no more than the buffer. Fewer rows are held where they are very large.

        Args:
            exact: every order equally likely whatever the size. Costs 8 bytes a row where the
                source can be read at any place (JSONL and text that are not compressed, prepared
                data sets) and nothing was done to it before; otherwise holds every row.
        """
        ...

    def take(self, count: int) -> Self:
        """The first `count` rows; nothing beyond them is read."""
        ...

    def skip(self, count: int) -> Self:
        """All but the first `count` rows."""
        ...

    def select(self, indices: Sequence[int]) -> Self:
        """The rows at these places, from 0, in this order; a place may come more than once.

        Going through it raises InputError where there are fewer rows.
        """
        ...

    def filter(self, keep: Callable[[Row], bool]) -> Self:
        """The rows of which `keep` is true."""
        ...

    def __iter__(self) -> Iterator[Row]: ...

    def stream(self) -> AsyncIterator[Row]:
        """The rows, read on another thread while nobody waits for them."""
        ...

    async def to_list(self) -> list[Row]:
        """All rows, in memory."""
        ...


class DatasetStore(Protocol):
    """Something that opens data sets."""

    @property
    def name(self) -> str:
        """The backend's name, as errors say it."""
        ...

    async def load(
        self, source: str, *, split: str | None = None, on_bad: OnBad = "raise"
    ) -> Dataset:
        """A handle on a source; of one with several splits, on the one that is named.

        Raises:
            DatasetError: there is no such source or split, it has several splits and none is
                named, or a library it needs is missing.
        """
        ...
