"""A `MetricsStore` in one file of JSON lines: `{"run": "a", "step": 1, "time": 1.5, "loss": 2.0}`.

A record is appended by one write, so that several processes may record at once and a process that
is killed loses nothing it recorded. What JSON has no number for is written as "NaN", "Infinity"
and "-Infinity". A line that a crash cut off is passed over, and what follows begins on a line of
its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import threading
import time as clock
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from shammah.errors import MetricsError, StorageError
from shammah.files import private_folder, storage_error, sync
from shammah.ports.metrics_store import MetricPoint, Number, check_metrics

log = logging.getLogger("shammah")

CHUNK = 1 << 20
"""Bytes that are read at once."""


class _Line(BaseModel):
    """A line of the file; its metrics are the extra fields."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, int | float]

    run: str
    step: int
    time: float


class JsonlMetrics:
    """The port on one file, opened when something is first recorded.

    Args:
        path: the file; made (0600) by the first record.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._handle: int | None = None
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return str(self._path)

    def record(
        self, metrics: Mapping[str, Number], *, step: int, run: str = "", time: float | None = None
    ) -> None:
        """The port's `record`."""
        checked = check_metrics(metrics, step, backend=self.name)
        said = {"run": run, "step": int(step), "time": clock.time() if time is None else time}
        line = json.dumps(said | {name: _written(value) for name, value in checked.items()}) + "\n"
        data = line.encode("ascii")
        with self._told(), self._lock:
            if self._handle is None:
                self._handle = self._open()
            try:
                while data:  # one write, but on a disk that is filling up
                    data = data[os.write(self._handle, data) :]
            except OSError:
                self._close()  # the next one sees to the line that this one may have left
                raise

    async def flush(self) -> None:
        """The port's `flush`."""
        if self._handle is not None:
            with self._told():
                await asyncio.to_thread(os.fsync, self._handle)

    def close(self) -> None:
        """Let go of the file; the next record opens it again."""
        with self._lock:
            self._close()

    async def history(self, metric: str, *, run: str | None = None) -> AsyncIterator[MetricPoint]:
        """The port's `history`; the file is read in pieces, so that its size costs no memory."""
        sought = json.dumps(metric).encode()
        with contextlib.closing(self._lines(sought)) as lines:
            while batch := await asyncio.to_thread(next, lines, ()):
                for line in batch:
                    value = (line.__pydantic_extra__ or {}).get(metric)
                    if value is not None and run in (None, line.run):
                        yield MetricPoint(line.run, line.step, line.time, value)

    async def runs(self) -> tuple[str, ...]:
        """The port's `runs`."""
        found: dict[str, None] = {}
        with contextlib.closing(self._lines(b"")) as lines:
            while batch := await asyncio.to_thread(next, lines, ()):
                found.update(dict.fromkeys(line.run for line in batch))
        return tuple(found)

    def _lines(self, sought: bytes) -> Generator[list[_Line]]:
        """The lines that hold these bytes, as many at once as are read at once; none is empty."""
        number = passed = last = 0
        with self._told():
            try:
                stream = self._path.open("rb")
            except FileNotFoundError:
                return
            with stream:
                while raw := stream.readlines(CHUNK):
                    batch = []
                    for line in raw:
                        number += 1
                        if sought in line and line.strip():
                            try:
                                batch.append(_Line.model_validate_json(line))
                            except ValidationError:
                                passed += 1
                                last = number
                    if batch:
                        yield batch
        if passed:
            log.warning("%s: %d lines are no metrics, such as line %d", self._path, passed, last)

    def _open(self) -> int:
        private_folder(self._path.parent)
        handle = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            os.write(handle, b"\n")
        elif not size:
            sync(self._path.parent)
        return handle

    def _close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except StorageError as error:
            raise MetricsError(error.message, backend=self.name, hint=error.hint) from (
                error.__cause__ or error
            )
        except OSError as error:
            told = storage_error(error, self._path)
            raise MetricsError(told.message, backend=self.name, hint=told.hint) from error


def _written(value: Number) -> Number | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
