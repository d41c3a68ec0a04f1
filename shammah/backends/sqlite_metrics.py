"""A `MetricsStore` in one SQLite file, which answers at once however much was recorded.

Beside each value it keeps a line for each metric of a run (how many, first, last, least, greatest)
and one for each 256 values, written in the same transaction: to show or to draw a run is to read a
few thousand rows, not millions. Every value stays as it was recorded. Several processes may record
and read at once. Knows runs and numbers; not what trains.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import json
import os
import sqlite3
import threading
import time as clock
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from shammah.backends.metric_curves import Curve, Place, drawn, standing
from shammah.backends.metric_rows import (
    PARTS,
    SERIES,
    TABLES,
    RunRecord,
    RunStatus,
    Summary,
    finite,
    number_of,
    status_of,
    written,
)
from shammah.errors import MetricsError, StorageError
from shammah.files import private_folder, storage_error, sync
from shammah.ports.metrics_store import MetricPoint, Number, check_metrics

FORMAT = 1
"""`user_version` of the file."""
PART = 256
"""Values that are drawn as one where there are very many."""
WAIT_SECONDS = 10.0
"""How long a change waits for another process's."""
PAGE = 4096
"""Rows that are read at once."""


class SqliteMetrics:
    """The port on one file.

    Args:
        path: the file; made (0600) where it is missing.

    Raises:
        MetricsError: it is no store of this format, or cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path).expanduser().absolute()
        self._lock = threading.RLock()
        with self._told():
            self._database = self._open()

    @property
    def name(self) -> str:
        return str(self._path)

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._database.close()

    # --- the port ---------------------------------------------------------------------------

    def record(
        self, metrics: Mapping[str, Number], *, step: int, run: str = "", time: float | None = None
    ) -> None:
        """The port's `record`: one transaction."""
        self.record_all([(run, step, time, metrics)])

    def record_all(
        self, rows: Iterable[tuple[str, int, float | None, Mapping[str, Number]]]
    ) -> None:
        """Many records (run, step, time, metrics) in one transaction: all or none.

        Raises:
            MetricsError: as the port's `record`.
        """
        checked = [
            (run, int(step), time, check_metrics(metrics, step, backend=self.name))
            for run, step, time, metrics in rows
        ]
        with self._change() as database:
            for run, step, time, metrics in checked:
                self._add(database, run, step, clock.time() if time is None else time, metrics)

    async def flush(self) -> None:
        """The port's `flush`. What was recorded lies in the log beside the file until SQLite moves
        it; the file itself is left alone, as closing it would let go of SQLite's locks."""
        log = self._path.with_name(self._path.name + "-wal")
        with self._told():
            await asyncio.to_thread(sync, log)

    async def history(self, metric: str, *, run: str | None = None) -> AsyncIterator[MetricPoint]:
        """The port's `history`; read in pieces, so that its size costs no memory."""
        question = (
            "select series.number, runs.name from series join runs on runs.number = series.run "
            "where metric = ? and (? is null or runs.name = ?)"
        )
        found = self._read(question, (metric, run, run))
        merged = heapq.merge(*(self._points(number, name) for number, name in found))
        while batch := await asyncio.to_thread(_some, merged):
            for _, point in batch:
                yield point

    async def runs(self) -> tuple[str, ...]:
        """The port's `runs`: those that something was recorded of."""
        rows = await asyncio.to_thread(
            self._read,
            "select name from runs where exists (select 1 from series where run = runs.number) "
            "order by number",
        )
        return tuple(name for (name,) in rows)

    # --- runs -------------------------------------------------------------------------------

    def begin(self, run: str, about: Mapping[str, Any]) -> None:
        """A run begins, or goes on: it is running for as long as this process lives, or `end`.

        Args:
            about: what is known of it, as JSON; added to what was said before.

        Raises:
            MetricsError: it cannot be written, or `about` is no JSON.
        """
        process = psutil.Process()
        with self._change() as database:
            number = self._run(database, run, clock.time())
            database.execute(
                "update runs set status = 'running', ended = null, pid = ?, pid_began = ?, "
                "about = json_patch(about, ?) where number = ?",
                (process.pid, process.create_time(), json.dumps(dict(about)), number),
            )

    def end(
        self, run: str, status: RunStatus = "done", about: Mapping[str, Any] | None = None
    ) -> None:
        """A run has ended.

        Raises:
            MetricsError: it cannot be written, or `about` is no JSON.
        """
        with self._change() as database:
            number = self._run(database, run, clock.time())
            database.execute(
                "update runs set status = ?, ended = ?, pid = null, about = json_patch(about, ?) "
                "where number = ?",
                (status, clock.time(), json.dumps(dict(about or {})), number),
            )

    def overview(self) -> tuple[RunRecord, ...]:
        """All runs, the newest first."""
        rows = self._read(
            "select name, status, began, touched, ended, about, pid, pid_began from runs "
            "order by number desc"
        )
        return tuple(
            RunRecord(
                name,
                status_of(status, pid, pid_began),
                began,
                touched,
                ended,
                json.loads(about),
            )
            for name, status, began, touched, ended, about, pid, pid_began in rows
        )

    def get(self, run: str) -> RunRecord:
        """One run.

        Raises:
            MetricsError: there is none of that name.
        """
        for record in self.overview():
            if record.name == run:
                return record
        raise MetricsError(
            f"there is no run {run!r}.", backend=self.name, hint="`shammah runs list` shows all."
        )

    def summaries(self, run: str) -> tuple[Summary, ...]:
        """The metrics of a run in the order they were first recorded."""
        rows = self._read(
            "select metric, points, first_step, last_step, first, last, least, greatest, total, "
            "finite from series where run = (select number from runs where name = ?) "
            "order by number",
            (run,),
        )
        return tuple(
            Summary(
                metric=row[0],
                points=row[1],
                first_step=row[2],
                last_step=row[3],
                first=number_of(row[4]),
                last=number_of(row[5]),
                least=row[6],
                greatest=row[7],
                mean=row[8] / row[9] if row[9] else None,
                finite=row[9],
            )
            for row in rows
        )

    def curve(self, run: str, metric: str, width: int) -> Curve:
        """A metric of a run in at most `width` places along its steps. Of a step that came again
        the last value counts; values that are not finite are left out."""
        found = self._read(
            "select number, points from series where metric = ? "
            "and run = (select number from runs where name = ?)",
            (metric, run),
        )
        if not found:
            return Curve((), (), (), (), True)
        ((series, points),) = found
        return drawn(self._places(series, all_of_them=points <= max(width, PART) * 4), width)

    def after(self, run: str, number: int) -> list[tuple[int, int, dict[str, Number]]]:
        """The records of a run after one of them (0: all), each with its number, step and metrics;
        some thousands at most, so that it is asked again."""
        rows = self._read(
            "select points.number, step, metric, value from series "
            "join points on points.series = series.number and points.number > ? "
            "where run = (select number from runs where name = ?) "
            "order by points.number, series.number limit ?",
            (number, run, PAGE * 8),
        )
        records: dict[int, tuple[int, int, dict[str, Number]]] = {}
        for place, step, metric, value in rows:
            records.setdefault(place, (place, step, {}))[2][metric] = number_of(value)
        found = list(records.values())
        # The last one may have been cut in the middle.
        return found[:-1] if len(rows) == PAGE * 8 else found

    def newest(self, run: str, count: int) -> int:
        """What to ask `after` with for the last `count` records of a run."""
        rows = self._read(
            "select min(number) from (select points.number from points where series = ("
            "select number from series where run = (select number from runs where name = ?) "
            "order by points desc, number limit 1) order by points.number desc limit ?)",
            (run, count),
        )
        return (rows[0][0] or 1) - 1

    def delete(self, run: str) -> None:
        """Remove a run and all that was recorded of it.

        Raises:
            MetricsError: there is none, or it is running.
        """
        if self.get(run).status == "running":
            raise MetricsError(
                f"{run} is running.", backend=self.name, hint="End it first: `/train cancel`."
            )
        mine = "(select number from series where run = (select number from runs where name = ?))"
        with self._change() as database:
            for table in ("points", "parts"):
                database.execute(f"delete from {table} where series in {mine}", (run,))
            database.execute(f"delete from series where number in {mine}", (run,))
            database.execute("delete from runs where name = ?", (run,))

    # --- inside -----------------------------------------------------------------------------

    def _add(
        self,
        database: sqlite3.Connection,
        run: str,
        step: int,
        time: float,
        metrics: Mapping[str, Number],
    ) -> None:
        owner = self._run(database, run, time)
        ((record,),) = database.execute("update records set last = last + 1 returning last")
        for metric, value in metrics.items():
            number = finite(value)
            values: dict[str, Any] = {
                "run": owner, "metric": metric, "step": step, "value": written(value),
                "number": number, "sum": number or 0.0, "finite": int(number is not None),
            }  # fmt: skip
            ((series, points),) = database.execute(SERIES, values)
            database.execute(
                "insert into points values(?, ?, ?, ?, ?)",
                (series, record, step, time, values["value"]),
            )
            database.execute(PARTS, {**values, "series": series, "part": (points - 1) // PART})

    def _run(self, database: sqlite3.Connection, name: str, time: float) -> int:
        ((number,),) = database.execute(
            "insert into runs(name, began, touched, status, about) values(?, ?, ?, 'done', '{}') "
            "on conflict do update set touched = max(touched, excluded.touched) returning number",
            (name, time, time),
        )
        return int(number)

    def _points(self, series: int, run: str) -> Iterator[tuple[tuple[int, int], MetricPoint]]:
        last = 0
        while rows := self._read(
            "select number, step, time, value from points where series = ? and number > ? "
            "order by number limit ?",
            (series, last, PAGE),
        ):
            for number, step, time, value in rows:
                yield (number, series), MetricPoint(run, step, time, number_of(value))
            last = rows[-1][0]

    def _places(self, series: int, *, all_of_them: bool) -> list[Place]:
        """Values, or where there are very many of them parts."""
        if all_of_them:
            question = "select step, value from points where series = ? order by number"
            places = [
                Place(step, step, number, number, number, 1)
                for step, value in self._read(question, (series,))
                if (number := finite(number_of(value))) is not None
            ]
        else:
            question = (
                "select first_step, last_step, total / finite, least, greatest, finite from parts "
                "where series = ? and finite > 0 order by part"
            )
            places = [Place(*row) for row in self._read(question, (series,))]
        return standing(places)

    def _read(self, question: str, values: tuple[Any, ...] = ()) -> list[Any]:
        with self._told(), self._lock:
            return self._database.execute(question, values).fetchall()

    @contextlib.contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._told(), self._lock:
            self._database.execute("begin immediate")
            try:
                yield self._database
                self._database.execute("commit")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("rollback")
                raise

    def _open(self) -> sqlite3.Connection:
        private_folder(self._path.parent)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        database = sqlite3.connect(
            self._path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            # In this mode a commit outlives the process; `flush` sees to power failures.
            database.execute("pragma journal_mode = wal")
            database.execute("pragma synchronous = normal")
            (version,) = database.execute("pragma user_version").fetchone()
            if version not in (0, FORMAT):
                raise MetricsError(
                    f"it has format {version}; this version reads {FORMAT}.", backend=self.name
                )
            if version == 0:
                database.executescript(
                    f"begin immediate;{TABLES}pragma user_version={FORMAT};commit"
                )
        except BaseException:
            database.close()
            raise
        return database

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except StorageError as error:
            raise MetricsError(error.message, backend=self.name, hint=error.hint) from error
        except OSError as error:
            told = storage_error(error, self._path)
            raise MetricsError(told.message, backend=self.name, hint=told.hint) from error
        except (sqlite3.Error, OverflowError, UnicodeError, ValueError, TypeError) as error:
            raise MetricsError(f"{error}.", backend=self.name) from error


def _some(points: Iterator[Any]) -> list[Any]:
    return [point for point, _ in zip(points, range(PAGE), strict=False)]
