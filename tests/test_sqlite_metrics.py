"""Metrics of runs in a SQLite file: as in JSON lines, and shown at once however many there are."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shammah.backends.jsonl_metrics import JsonlMetrics
from shammah.backends.sqlite_metrics import PART, SqliteMetrics
from shammah.errors import MetricsError
from shammah.ports.metrics_store import MetricPoint, MetricsStore


async def points(store: MetricsStore, metric: str, run: str | None = None) -> list[MetricPoint]:
    return [point async for point in store.history(metric, run=run)]


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6).filter(
    lambda name: name not in ("run", "step", "time") and "\0" not in name
)
VALUES: st.SearchStrategy[Any] = st.floats() | st.integers(-(10**20), 10**20)
RECORDS = st.lists(
    st.tuples(st.dictionaries(NAMES, VALUES, max_size=3), st.integers(0, 10**9), NAMES), max_size=8
)


@settings(max_examples=60, deadline=None)
@given(RECORDS)
def test_it_gives_back_what_the_store_of_json_lines_does(
    rows: list[tuple[dict[str, Any], int, str]],
) -> None:
    async def check(folder: Path) -> None:
        slow, store = JsonlMetrics(folder / "m.jsonl"), SqliteMetrics(folder / "m.db")
        for metrics, step, run in rows:
            for each in (slow, store):
                each.record(metrics, step=step, run=run, time=1.5)
        await store.flush()
        slow.close()
        for run in {run for metrics, _, run in rows if metrics}:
            for name in {name for metrics, _, other in rows if other == run for name in metrics}:
                wanted = await points(slow, name, run)
                found = await points(store, name, run)
                assert repr(found) == repr(wanted)
        for name in {name for metrics, _, _ in rows for name in metrics}:
            assert repr(await points(store, name)) == repr(await points(slow, name))
        store.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(check(Path(folder)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats() | st.integers(-(10**9), 10**9), min_size=1, max_size=40))
def test_a_summary_says_what_all_values_say(values: list[float]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteMetrics(Path(folder) / "m.db")
        store.record_all(("a", step, 0.0, {"x": value}) for step, value in enumerate(values, 3))
        (found,) = store.summaries("a")
        store.close()
    finite = [float(value) for value in values if math.isfinite(value)]
    assert (found.points, found.first_step, found.last_step) == (len(values), 3, len(values) + 2)
    assert repr((found.first, found.last)) == repr((values[0], values[-1]))
    assert found.finite == len(finite)
    if finite:
        assert (found.least, found.greatest) == (min(finite), max(finite))
        assert found.mean == pytest.approx(sum(finite) / len(finite)) or math.isinf(sum(finite))
    else:
        assert found.least is found.greatest is found.mean is None


def test_a_long_curve_is_drawn_from_parts_that_agree_with_its_values(tmp_path: Path) -> None:
    store = SqliteMetrics(tmp_path / "m.db")
    generator = np.random.default_rng(0)
    values = generator.normal(size=20 * PART).tolist()
    store.record_all(("a", step, 0.0, {"x": value}) for step, value in enumerate(values))
    drawn = store.curve("a", "x", 20)
    assert not drawn.exact and drawn.steps[-1] == len(values) - 1 and len(drawn.steps) == 20
    cut = np.asarray(values).reshape(20, PART)
    np.testing.assert_allclose(drawn.values, cut.mean(axis=1))
    np.testing.assert_array_equal(drawn.least, cut.min(axis=1))
    np.testing.assert_array_equal(drawn.greatest, cut.max(axis=1))
    assert store.curve("a", "y", 20).steps == () == store.curve("b", "x", 20).steps
    store.close()


def test_what_was_done_again_after_a_checkpoint_counts_once(tmp_path: Path) -> None:
    store = SqliteMetrics(tmp_path / "m.db")
    for step, value in [(1, 9.0), (2, 8.0), (3, 7.0), (2, 1.0), (3, math.nan), (4, 0.5)]:
        store.record({"x": value}, step=step, run="a")
    drawn = store.curve("a", "x", 80)
    assert (drawn.steps, drawn.values, drawn.exact) == ((1, 2, 4), (9.0, 1.0, 0.5), True)
    store.close()


def test_a_run_is_running_while_its_process_lives(tmp_path: Path) -> None:
    code = (
        "import sys, os, signal; from shammah.backends.sqlite_metrics import SqliteMetrics\n"
        f"store = SqliteMetrics({str(tmp_path / 'm.db')!r})\n"
        "store.begin('a', {'tags': ['x']})\n"
        "for step in range(300): store.record({'loss': step / 2}, step=step, run='a')\n"
        "print(store.get('a').status, flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == "running\n"
    store = SqliteMetrics(tmp_path / "m.db")
    assert store.get("a").status == "running"
    with pytest.raises(MetricsError, match="is running"):
        store.delete("a")
    child.send_signal(signal.SIGKILL)
    child.wait()
    # Nothing was flushed, and nothing is lost.
    assert store.get("a").status == "interrupted"
    assert store.summaries("a")[0].points == 300
    store.begin("a", {"note": "again", "tags": ["y"]})
    store.end("a", "done", {"adapter": "b"})
    ended = store.get("a")
    assert ended.status == "done" and ended.ended is not None and ended.seconds > 0
    assert ended.about == {"tags": ["y"], "note": "again", "adapter": "b"}
    child.communicate()
    store.close()


async def test_the_newest_are_followed_and_a_run_is_deleted_alone(tmp_path: Path) -> None:
    store = SqliteMetrics(tmp_path / "m.db")
    for step in range(1, 8):
        store.record({"loss": 1 / step, "rate": step}, step=step, run="a")
        store.record({"loss": 2.0}, step=step, run="b")
    place = store.newest("a", 2)
    found = store.after("a", place)
    assert [(step, metrics["rate"]) for _, step, metrics in found] == [(6, 6), (7, 7)]
    store.record({"loss": 0.1}, step=8, run="a")
    assert [entry[1:] for entry in store.after("a", found[-1][0])] == [(8, {"loss": 0.1})]
    assert [record.name for record in store.overview()] == ["b", "a"]
    store.delete("a")
    assert await store.runs() == ("b",) and len(await points(store, "loss")) == 7
    with pytest.raises(MetricsError, match="no run 'a'"):
        store.delete("a")
    assert (tmp_path / "m.db").stat().st_mode & 0o777 == 0o600
    store.close()


def test_threads_and_stores_record_into_one_file(tmp_path: Path) -> None:
    stores = [SqliteMetrics(tmp_path / "m.db") for _ in range(2)]

    def work(number: int) -> None:
        for step in range(100):
            stores[number % 2].record({"x": step}, step=step, run=f"run{number % 3}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(3):
        (summary,) = stores[0].summaries(f"run{number}")
        assert (summary.points, summary.mean) == (200, 49.5)
    for store in stores:
        store.close()


def test_what_is_no_metric_or_no_store_is_refused(tmp_path: Path) -> None:
    store = SqliteMetrics(tmp_path / "m.db")
    with pytest.raises(MetricsError, match="no number"):
        store.record_all([("a", 1, None, {"x": 1.0}), ("a", 2, None, {"y": "1"})])  # type: ignore[dict-item]
    with pytest.raises(MetricsError):
        store.record({"x": 1.0}, step=1 << 70)
    assert store.overview() == ()
    store.close()
    (tmp_path / "other.db").write_text("no database at all, but long enough to be read as one")
    with pytest.raises(MetricsError, match="not a database"):
        SqliteMetrics(tmp_path / "other.db")
