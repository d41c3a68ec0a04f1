"""Metrics in a file of JSON lines."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shammah.backends.jsonl_metrics import JsonlMetrics
from shammah.errors import MetricsError
from shammah.ports.metrics_store import MetricPoint, MetricsStore


async def points(store: MetricsStore, metric: str, run: str | None = None) -> list[MetricPoint]:
    return [point async for point in store.history(metric, run=run)]


async def test_metrics_come_back_by_name_and_run_in_their_order(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "metrics.jsonl"
    store = JsonlMetrics(file)
    assert await points(store, "loss") == [] and await store.runs() == ()
    store.record({"loss": 2.5, "tokens": 1 << 60}, step=1, run="b", time=10.0)
    of_numpy: dict[str, Any] = {"loss": np.float32(0.5), "learned": np.int64(3)}
    store.record(of_numpy, step=2, run="b", time=11.0)
    store.record({"loss": 9.0}, step=1, run="loss", time=12.0)
    await store.flush()
    assert await points(store, "loss", "b") == [
        MetricPoint("b", 1, 10.0, 2.5), MetricPoint("b", 2, 11.0, 0.5),
    ]  # fmt: skip
    assert [point.value for point in await points(store, "loss")] == [2.5, 0.5, 9.0]
    assert [point.value for point in await points(store, "tokens")] == [1 << 60]
    assert type((await points(store, "learned"))[0].value) is int
    assert await store.runs() == ("b", "loss")
    assert file.stat().st_mode & 0o777 == 0o600
    store.record({"loss": 1.0}, step=3)
    assert (await points(store, "loss", ""))[0].time == pytest.approx(file.stat().st_mtime, abs=60)


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6).filter(
    lambda name: name not in ("run", "step", "time")
)
VALUES: st.SearchStrategy[Any] = st.floats() | st.integers(-(10**20), 10**20)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NAMES, VALUES, st.integers(0, 10**9), NAMES), max_size=8))
def test_every_number_comes_back_as_it_was(rows: list[tuple[str, Any, int, str]]) -> None:
    async def check() -> None:
        store = JsonlMetrics(Path(folder) / "m.jsonl")
        for name, value, step, run in rows:
            store.record({name: value}, step=step, run=run)
        store.close()
        for name in {row[0] for row in rows}:
            found = [(p.run, p.step, repr(p.value)) for p in await points(store, name)]
            assert found == [(r, s, repr(v)) for n, v, s, r in rows if n == name]

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(check())


async def test_every_line_is_strict_json_also_of_nan(tmp_path: Path) -> None:
    store = JsonlMetrics(tmp_path / "m.jsonl")
    store.record({"a": math.nan, "b": math.inf, "c": -math.inf}, step=0)
    (line,) = (tmp_path / "m.jsonl").read_text().splitlines()

    def no_constant(word: str) -> None:
        raise AssertionError(word)

    found = json.loads(line, parse_constant=no_constant)
    assert (found["a"], found["b"], found["c"]) == ("NaN", "Infinity", "-Infinity")
    assert math.isnan((await points(store, "a"))[0].value)


@pytest.mark.parametrize(
    ("metrics", "step"),
    [({"run": 1}, 0), ({"": 1}, 0), ({"a": "1"}, 0), ({"a": True}, 0), ({"a": None}, 0),
     ({"a": 1}, -1), ({"a": 1}, 1.5)],
)  # fmt: skip
def test_what_is_no_metric_is_refused(tmp_path: Path, metrics: Any, step: Any) -> None:
    store = JsonlMetrics(tmp_path / "m.jsonl")
    with pytest.raises(MetricsError) as told:
        store.record({"fine": 1, **metrics}, step=step)
    assert (told.value.port, told.value.backend) == ("MetricsStore", store.name)
    assert not (tmp_path / "m.jsonl").exists()


async def test_a_file_that_cannot_be_written_or_read_is_said(tmp_path: Path) -> None:
    store = JsonlMetrics(tmp_path)
    with pytest.raises(MetricsError) as told:
        store.record({"a": 1}, step=0)
    assert isinstance(told.value.__cause__, OSError)
    with pytest.raises(MetricsError):
        await points(store, "a")


WRITER = """
import sys
from shammah.backends.jsonl_metrics import JsonlMetrics
store = JsonlMetrics(sys.argv[1])
for step in range(int(sys.argv[3])):
    store.record({"loss": step * 0.5}, step=step, run=sys.argv[2])
    if step == 200:
        print("ready", flush=True)
"""


def writer(file: Path, run: str, steps: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(file), run, str(steps)], stdout=subprocess.PIPE
    )


async def test_a_killed_writer_loses_nothing_and_a_torn_line_costs_only_itself(
    tmp_path: Path,
) -> None:
    file = tmp_path / "m.jsonl"
    process = writer(file, "a", 10**9)
    assert process.stdout is not None
    assert await asyncio.to_thread(process.stdout.readline) == b"ready\n"
    process.send_signal(signal.SIGKILL)
    await asyncio.to_thread(process.wait)
    store = JsonlMetrics(file)
    before = await points(store, "loss")
    assert [point.step for point in before] == list(range(len(before))) and len(before) > 200
    with file.open("r+b") as stream:
        stream.seek(-9, os.SEEK_END)
        stream.truncate()
    assert await points(store, "loss") == before[:-1]
    store.record({"loss": 7}, step=1, run="b")
    after = await points(store, "loss")
    assert after[:-1] == before[:-1] and after[-1].value == 7


async def test_several_processes_record_at_once(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    processes = [writer(file, run, 400) for run in "abc"]
    for process in processes:
        await asyncio.to_thread(process.communicate)
    store = JsonlMetrics(file)
    for run in "abc":
        assert [p.value for p in await points(store, "loss", run)] == [s * 0.5 for s in range(400)]


async def test_a_large_file_is_read_in_pieces(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    line = '{"run": "r", "step": %d, "time": 0.0, "loss": 1.0, "x": "' + "0" * 400 + '"}\n'
    with file.open("w") as stream:
        stream.writelines(line % step for step in range(40_000))
    store = JsonlMetrics(file)
    tracemalloc.start()
    count = 0
    async for point in store.history("loss"):
        assert point.step == count
        count += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 40_000
    assert peak < file.stat().st_size / 2
