"""The one implementation of a data set's operations: a source of rows and the steps done to them.

Knows no format. A source says how rows are read; everything else is written once, here.
"""

from __future__ import annotations

import asyncio
import itertools
from array import array
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol, TypeVar

from shammah.datasets.examples import Examples
from shammah.datasets.streaming import streamed
from shammah.errors import InputError, UsageError
from shammah.ports.dataset_store import SHUFFLE_BUFFER, BadRows, OnBad, Row

T = TypeVar("T")

BUFFER_CHARACTERS = 64_000_000
"""Characters that a streaming shuffle gathers before it stops holding more rows."""
Step = Callable[[Iterator[Row]], Iterator[Row]]


class RandomAccess(Protocol):
    """Rows by number, from 0, of a source that can be read at any place."""

    def __len__(self) -> int: ...

    def read(self, index: int, bad: BadRows) -> Row | None:
        """The row there; None where it is bad and those are skipped."""
        ...

    def close(self) -> None: ...


class RowSource(Protocol):
    """One split of a source, as a backend gives it."""

    @property
    def splits(self) -> tuple[str, ...]: ...

    def split(self, name: str) -> RowSource:
        """Another split. Raises DatasetError where there is none of that name."""
        ...

    def rows(self, bad: BadRows) -> Iterator[Row]:
        """All rows in order, from the beginning; bad ones go to `bad`."""
        ...

    def random_access(self) -> RandomAccess | None:
        """A way to any row, or None where there is none."""
        ...


@dataclass(frozen=True, slots=True)
class _ExactShuffle:
    """A step of its own because, when it is the first, rows can be read in the new order."""

    seed: int

    def __call__(self, rows: Iterator[Row]) -> Iterator[Row]:
        return shuffled(rows, self.seed, None)

    def rows_of(self, source: RowSource, bad: BadRows) -> Iterator[Row]:
        access = source.random_access()
        if access is None:
            yield from self(source.rows(bad))
            return
        try:
            order = array("Q", range(len(access)))
            Random(self.seed).shuffle(order)
            for index in order:
                row = access.read(index, bad)
                if row is not None:
                    yield row
        finally:
            access.close()


class LazyDataset:
    """`ports.dataset_store.Dataset` over a source: see there for what each operation does."""

    def __init__(
        self, source: RowSource, *, on_bad: OnBad = "raise", steps: tuple[Step, ...] = ()
    ) -> None:
        self.source = source
        self.on_bad: OnBad = on_bad
        self.steps = steps
        self._bad = BadRows(on_bad)

    @property
    def splits(self) -> tuple[str, ...]:
        return self.source.splits

    @property
    def bad_rows(self) -> BadRows:
        return self._bad

    def get_split(self, name: str) -> LazyDataset:
        return LazyDataset(self.source.split(name), on_bad=self.on_bad, steps=self.steps)

    def shuffle(
        self, seed: int, *, buffer: int = SHUFFLE_BUFFER, exact: bool = False
    ) -> LazyDataset:
        if buffer < 1:
            raise UsageError(f"A shuffle holds at least one row, not {buffer}.")
        return self._then(_ExactShuffle(seed) if exact else lambda r: shuffled(r, seed, buffer))

    def take(self, count: int) -> LazyDataset:
        _whole("take", count)
        return self._then(lambda rows: itertools.islice(rows, count))

    def skip(self, count: int) -> LazyDataset:
        _whole("skip", count)
        return self._then(lambda rows: itertools.islice(rows, count, None))

    def select(self, indices: Sequence[int]) -> LazyDataset:
        wanted = tuple(indices)
        for index in wanted:
            _whole("select", index)
        return self._then(lambda rows: _selected(rows, wanted))

    def filter(self, keep: Callable[[Row], bool]) -> LazyDataset:
        return self._then(lambda rows: filter(keep, rows))

    def examples(self, format: str | Callable[..., Any] | None = None, **options: str) -> Examples:
        """The rows as conversations.

        Args:
            format: a formatter's name, `module:function`, or a function that takes a row and gives
                a ChatExample or `{"messages": [...], "rejected": [...], "metadata": {...}}`; None
                goes by the columns of the first row.
            options: the formatter's own.

        Raises:
            UsageError: there is no such format or option, or the columns fit none or several.
        """
        return Examples.of(self, format, options)

    def __iter__(self) -> Iterator[Row]:
        self._bad = BadRows(self.on_bad)
        return self.rows(self._bad)

    def rows(self, bad: BadRows) -> Iterator[Row]:
        """The rows, with bad ones given to `bad`."""
        if self.steps and isinstance(self.steps[0], _ExactShuffle):
            rows, steps = self.steps[0].rows_of(self.source, bad), self.steps[1:]
        else:
            rows, steps = self.source.rows(bad), self.steps
        for step in steps:
            rows = step(rows)
        return rows

    def first_row(self) -> Row | None:
        """The first good row of the source, before any step."""
        return next(self.source.rows(BadRows("skip")), None)

    def stream(self) -> AsyncIterator[Row]:
        return streamed(iter(self))

    async def to_list(self) -> list[Row]:
        return await asyncio.to_thread(list, self)

    def _then(self, step: Step) -> LazyDataset:
        return LazyDataset(self.source, on_bad=self.on_bad, steps=(*self.steps, step))


def shuffled(rows: Iterator[Row], seed: int, buffer: int | None) -> Iterator[Row]:
    """The rows in an order drawn through a buffer of so many; None holds them all."""
    random = Random(seed)
    held: list[Row] = []
    characters = 0
    for row in rows:
        held.append(row)
        if buffer is not None:
            characters += _characters(row)
            if len(held) >= buffer or characters > BUFFER_CHARACTERS:
                break
    draw, size = random.random, len(held)
    for row in rows:
        place = int(draw() * size)
        yield held[place]
        held[place] = row
    random.shuffle(held)
    yield from held


def _characters(value: Any) -> int:
    """About how many characters a value holds."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_characters, value.values())) + 16 * len(value)
    if isinstance(value, list | tuple):
        return sum(map(_characters, value)) + 8 * len(value)
    return len(value) if isinstance(value, bytes) else 8


def _selected(rows: Iterator[Row], wanted: tuple[int, ...]) -> Iterator[Row]:
    """Rising places are streamed; for others only the rows that are wanted are held."""
    if not wanted:
        return
    last = max(wanted)
    rising = all(one < other for one, other in itertools.pairwise(wanted))
    places, held, seen = set(wanted), {}, 0
    for index, row in enumerate(itertools.islice(rows, last + 1)):
        seen = index + 1
        if index in places:
            if rising:
                yield row
            else:
                held[index] = row
    if seen <= last:
        raise InputError(
            f"Row {last} was selected, but there are only {seen} rows.",
            hint="Places count from 0.",
        )
    for index in () if rising else wanted:
        yield held[index]


def _whole(what: str, count: int) -> None:
    if count < 0:
        raise UsageError(f"{what} wants a number of at least 0, not {count}.")
