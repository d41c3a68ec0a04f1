"""A data set's rows as conversations, formatted when they are gone through."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Protocol

from shammah.datasets.formatters.base import ChatExample, Formatter
from shammah.datasets.formatters.own import Own
from shammah.datasets.formatters.registry import detect, formatter
from shammah.datasets.streaming import streamed
from shammah.errors import InputError, UsageError
from shammah.ports.dataset_store import BadRows, OnBad, Row


class Rows(Protocol):
    """What examples are made of: a data set, as far as this room needs it."""

    @property
    def on_bad(self) -> OnBad: ...

    def rows(self, bad: BadRows) -> Iterator[Row]: ...

    def first_row(self) -> Row | None: ...


class Examples:
    """Examples in the order of the rows; each pass reads and formats anew.

    Going through them raises InputError at the first row that cannot be read or does not fit the
    format, with its place; or skips and counts those, as the data set was opened.
    """

    def __init__(self, dataset: Rows, format: str, formatter: Formatter) -> None:
        self.dataset = dataset
        self.format = format
        self._formatter = formatter
        self._bad = BadRows(dataset.on_bad)

    @classmethod
    def of(
        cls,
        dataset: Rows,
        format: str | Callable[..., Any] | None,
        options: Mapping[str, str],
    ) -> Examples:
        """As `LazyDataset.examples` says."""
        if callable(format):
            name = getattr(format, "__qualname__", type(format).__name__).rpartition(".")[2]
            return cls(dataset, name, Own(name, format, options))
        if format is None:
            first = dataset.first_row()
            if first is None:
                raise UsageError(
                    "There is no row to tell the format by.", hint="Say which: format=, --format."
                )
            format = detect(first)
        return cls(dataset, format, formatter(format, options))

    @property
    def bad_rows(self) -> BadRows:
        """What the pass that began last has skipped so far: rows and misfits."""
        return self._bad

    def __iter__(self) -> Iterator[ChatExample]:
        self._bad = BadRows(self.dataset.on_bad)
        return self._examples(self._bad)

    def _examples(self, bad: BadRows) -> Iterator[ChatExample]:
        for row in self.dataset.rows(bad):
            try:
                example = self._formatter(row)
            except InputError as error:
                reason = " ".join(filter(None, (error.message, error.hint)))
                bad.add(row.origin, row.number, reason)
            else:
                yield dataclasses.replace(example, place=row.place)

    def stream(self) -> AsyncIterator[ChatExample]:
        """The examples, made on another thread while nobody waits for them."""
        return streamed(iter(self))

    async def to_list(self) -> list[ChatExample]:
        """All examples, in memory."""
        return await asyncio.to_thread(list, self)
