"""A trace is a file that trace viewers open, whatever becomes of the process; without one nothing
is kept."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import timeit
from pathlib import Path
from typing import Any

import pytest
from command import ROOT

from shammah.errors import StorageError
from shammah.tracking import telemetry
from shammah.tracking.trace import timed, tracing, tracing_on


def read(path: Path) -> list[dict[str, Any]]:
    """The events, read as viewers do: the closing bracket may be missing."""
    text = path.read_text()
    events: list[dict[str, Any]] = json.loads(text if text.rstrip().endswith("]") else text + "]")
    for event in events:
        assert {"name", "ph", "ts", "pid", "tid"} <= event.keys()
    return events


def slices(events: list[dict[str, Any]]) -> list[tuple[str, float, float]]:
    return [(e["name"], e["ts"], e["ts"] + e["dur"]) for e in events if e["ph"] == "X"]


def aside() -> None:
    with timed("aside"):
        pass


def test_what_is_timed_is_written_and_lies_within_what_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with timed("before"):
        assert not tracing_on()
    with tracing(path, "tests"):
        assert tracing_on()
        with timed("step", step=1):
            with timed("forward", tokens=5):
                pass
            with pytest.raises(KeyError), timed("backward"):
                raise KeyError
        with telemetry.span("stage", "train", {"job": 3}):
            thread = threading.Thread(target=aside, name="other")
            thread.start()
            thread.join()
        telemetry.emit("training.step", {"step": 1, "loss": 0.5, "grad_norm": float("nan")})
        telemetry.emit("training.epoch", {"epoch": 1, "step": 1})
    with timed("after"):
        pass
    assert path.stat().st_mode & 0o777 == 0o600
    events = json.loads(path.read_text())  # closed, it is JSON as it stands
    shown = slices(events)
    assert [name for name, _, _ in shown] == ["forward", "backward", "step", "aside"]
    (_, *forward), (_, *backward), (_, *step), _ = shown
    named = {e["args"]["name"]: e["tid"] for e in events if e["name"] == "thread_name"}
    assert named["other"] == next(e["tid"] for e in events if e["name"] == "aside")
    assert step[0] <= forward[0] <= forward[1] <= backward[0] <= backward[1] <= step[1]
    stages = [(e["ph"], e["name"], e["args"]) for e in events if e["ph"] in "BE"]
    assert [phase for phase, _, _ in stages] == ["B", "E"]
    assert stages[0][1:] == ("train", {"stage": "train", "job": 3})
    assert [e["args"] for e in events if e["ph"] == "C"] == [{"loss": 0.5}]
    assert [e["name"] for e in events if e["ph"] == "i"] == ["epoch"]
    assert events[0]["args"] == {"name": "tests"}


def test_one_trace_at_a_time_and_a_place_for_it(tmp_path: Path) -> None:
    with tracing(None):
        assert not tracing_on()
    with pytest.raises(StorageError), tracing(tmp_path / "nowhere" / "trace.json"):
        pass
    assert not tracing_on()
    with tracing(tmp_path / "a.json"), pytest.raises(RuntimeError), tracing(tmp_path / "b.json"):
        pass
    assert not tracing_on() and not (tmp_path / "b.json").exists()


def test_a_killed_process_leaves_a_trace_that_opens(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from shammah.tracking.trace import timed, tracing\n"
        "from shammah.tracking.telemetry import span\n"
        "with tracing(Path(sys.argv[1])), span('stage', 'train'):\n"
        "    for step in range(50):\n"
        "        with timed('step', step=step): pass\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "trace.json"
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    events = read(path)
    assert len(slices(events)) == 50
    assert [e["ph"] for e in events if e["name"] == "train"] == ["B"]


def test_without_a_trace_it_costs_a_call() -> None:
    def empty(name: str, **about: int) -> None:
        pass

    def one() -> None:
        with timed("forward", tokens=5):
            pass

    cost = min(timeit.repeat(one, number=20_000, repeat=5)) / 20_000
    assert cost < 2e-6
