"""The rows of a store of metrics in SQLite: its tables, and how values and runs lie in them.

Knows SQL and what SQLite cannot hold; opens no file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import psutil

from shammah.ports.metrics_store import Number

RunStatus = Literal["running", "done", "failed", "interrupted"]
Written = int | float | str

TABLES = """
create table if not exists runs(
    number integer primary key, name text not null unique, began real not null,
    touched real not null, ended real, status text not null, about text not null,
    pid integer, pid_began real
);
create table if not exists series(
    number integer primary key, run integer not null, metric text not null,
    points integer not null, first_step integer not null, last_step integer not null,
    first, last, least real, greatest real, total real not null, finite integer not null,
    unique(run, metric)
);
create table if not exists points(
    series integer not null, number integer not null, step integer not null, time real not null,
    value, primary key(series, number)
) without rowid;
create table if not exists parts(
    series integer not null, part integer not null, first_step integer not null,
    last_step integer not null, least real, greatest real, total real not null,
    finite integer not null, primary key(series, part)
) without rowid;
create table if not exists records(last integer not null);
insert into records select 0 where not exists (select 1 from records);
"""
_MEASURED = """
    least = coalesce(min(least, excluded.least), least, excluded.least),
    greatest = coalesce(max(greatest, excluded.greatest), greatest, excluded.greatest),
    total = total + excluded.total, finite = finite + excluded.finite
"""
SERIES = f"""
insert into series(run, metric, points, first_step, last_step, first, last, least, greatest, total,
    finite) values(:run, :metric, 1, :step, :step, :value, :value, :number, :number, :sum, :finite)
on conflict do update set points = points + 1, last_step = excluded.last_step,
    last = excluded.last, {_MEASURED}
returning number, points
"""
PARTS = f"""
insert into parts values(:series, :part, :step, :step, :number, :number, :sum, :finite)
on conflict do update set last_step = excluded.last_step, {_MEASURED}
"""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run. `began`, `touched` (last recorded) and `ended` are seconds since 1970; `about` is
    what was said of it when it began and since."""

    name: str
    status: RunStatus
    began: float
    touched: float
    ended: float | None
    about: Mapping[str, Any]

    @property
    def seconds(self) -> float:
        return max(0.0, (self.ended or self.touched) - self.began)


@dataclass(frozen=True, slots=True)
class Summary:
    """One metric of a run. `least`, `greatest` and `mean` are of its finite values, None where it
    has none; `points` counts all that was recorded, a step that came again twice."""

    metric: str
    points: int
    first_step: int
    last_step: int
    first: Number
    last: Number
    least: float | None
    greatest: float | None
    mean: float | None
    finite: int


def written(value: Number) -> Written:
    """As SQLite can keep it: it has no NaN and no -0.0, and its integers have 64 bits."""
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 63 else str(value)
    return (
        str(value) if math.isnan(value) or (value == 0 and math.copysign(1, value) < 0) else value
    )


def number_of(value: Written) -> Number:
    if isinstance(value, str):
        return float(value) if value in ("nan", "-0.0") else int(value)
    return value


def finite(value: Number) -> float | None:
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def status_of(status: RunStatus, pid: int | None, began: float | None) -> RunStatus:
    """A run whose process died in the middle is one that was interrupted."""
    if status != "running" or pid is None:
        return status
    try:
        alive = psutil.Process(pid).create_time() == began
    except psutil.Error:
        alive = False
    return "running" if alive else "interrupted"
