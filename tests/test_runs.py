"""`shammah runs`, `/train plot` and the table of a run: what was measured, shown."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from command import ROOT, shammah, shammah_json
from rich.console import Console

from shammah.backends.sqlite_metrics import SqliteMetrics
from shammah.errors import UsageError
from shammah.paths import Paths
from shammah.repl.training_commands import train
from shammah.tracking.loggers.live import LiveLogger
from shammah.tracking.loggers.store import open_store


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two runs, the second with another rank, more steps and a name."""
    store = open_store(tmp_path)
    for number, rank in ((1, 8), (2, 16)):
        about: dict[str, Any] = {"title": f"job-{number}", "tags": [], "key": f"key-{number}"}
        if number == 2:
            about |= {"title": "wide", "tags": ["rust"]}
        store.begin(f"job-{number}", {**about, "hparams": {"lora": {"rank": rank}, "seed": 0}})
        for step in range(1, 20 * number + 1):
            metrics = {"loss": 2.0 / step, "learning_rate": 1e-3, "learned": step}
            store.record(metrics, step=step, run=f"job-{number}")
        store.end(f"job-{number}", "done" if number == 2 else "failed")
    store.close()
    return tmp_path


def test_runs_are_listed_shown_and_compared(home: Path) -> None:
    listed = shammah_json(home, "runs")
    assert [(run["run"], run["status"], run["steps"]) for run in listed] == [
        ("job-2", "done", 40), ("job-1", "failed", 20),
    ]  # fmt: skip
    assert listed[0]["metrics"]["loss"] == 0.05 and listed[0]["tags"] == ["rust"]
    for name in ("2", "job-2", "wide", "key-2"):
        shown = shammah_json(home, "runs", "show", name)
        assert shown["run"] == "job-2"
    assert [one["metric"] for one in shown["metrics"]] == ["loss", "learning_rate", "learned"]
    assert shown["metrics"][0]["least"] == 0.05 and len(shown["metrics"][0]["curve"]) == 40
    text = shammah(home, "runs", "show", "1").stdout
    assert "lora.rank" in text and "learning_rate" in text and "█" in text
    compared = shammah(home, "runs", "compare", "1", "2").stdout
    (row,) = [line.split() for line in compared.splitlines() if line.startswith("lora.rank")]
    assert row == ["lora.rank", "8", "16"] and "seed" not in compared


def test_curves_are_as_wide_as_asked_and_plain_where_they_must(home: Path) -> None:
    done = shammah(home, "runs", "plot", "--width", "50")
    lines = done.stdout.splitlines()
    assert lines[0] == "job-2: loss" and "job-2: learning rate" in lines
    assert max(map(len, lines)) <= 50 and "\x1b" not in done.stdout and "⠉" in done.stdout
    plain = shammah(home, "runs", "plot", "--width", "50", PYTHONIOENCODING="ascii")
    assert plain.stdout.isascii() and "*" in plain.stdout
    drawn = shammah_json(home, "runs", "plot", "1", "--metric", "learned")
    assert drawn["curves"]["learned"][:2] == [[1, 1.0], [2, 2.0]]


def test_a_run_is_followed_to_its_end(home: Path) -> None:
    assert len(shammah(home, "runs", "tail", "-n", "3").stdout.splitlines()) == 3
    store = open_store(home)
    store.begin("job-3", {})
    store.record({"loss": 1.0}, step=1, run="job-3")
    follower = subprocess.Popen(
        [sys.executable, "-m", "shammah", "runs", "tail", "--follow", "--json"],
        cwd=ROOT, env={**os.environ, "SHAMMAH_HOME": str(home)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert follower.stdout is not None
    assert json.loads(follower.stdout.readline()) == {"run": "job-3", "step": 1, "loss": 1.0}
    store.record({"loss": 0.5, "learned": 2}, step=2, run="job-3")
    line = json.loads(follower.stdout.readline())
    assert line == {"run": "job-3", "step": 2, "loss": 0.5, "learned": 2}
    store.end("job-3")
    store.close()
    assert follower.communicate(timeout=60)[0] == "" and follower.returncode == 0


def test_runs_are_deleted_and_mistakes_are_told(home: Path) -> None:
    assert shammah_json(home, "runs", "delete", "1") == {"deleted": ["job-1"]}
    assert [run["run"] for run in shammah_json(home, "runs", "list")] == ["job-2"]
    missing = shammah(home, "runs", "show", "7")
    assert missing.returncode == 3 and "no run '7'" in missing.stderr
    metric = shammah(home, "runs", "plot", "--metric", "los")
    assert metric.returncode == 2 and "It has loss, learning_rate, learned." in metric.stderr
    assert shammah(home, "runs", "compare", "2").returncode == 2
    rich = shammah(home, "train", "now", "--logger", "rich")
    assert rich.returncode == 2 and "needs --wait" in rich.stderr
    unknown = shammah(home, "train", "now", "--logger", "wand")
    assert unknown.returncode == 2 and "tracking.loggers" in unknown.stderr


async def test_the_chat_draws_the_newest_run(home: Path) -> None:
    printed: list[str] = []

    class Assistant:
        async def workspace(self) -> None:
            return None

    class Screen:
        coloured = False

        def print(self, text: str) -> None:
            printed.append(text)

    chat: Any = Namespace(assistant=Assistant(), screen=Screen(), paths=Paths(home, home))
    await train(chat, "plot")
    await train(chat, "plot 1 learned")
    assert printed[0].startswith("job-2: loss\n") and "learning rate" in printed[0]
    assert printed[1].startswith("job-1: learned\n") and "loss" not in printed[1]
    with pytest.raises(UsageError, match="no metric 'nothing'"):
        await train(chat, "plot 1 nothing")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_live_table_shows_what_is_measured(terminal: bool) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=80, no_color=True)
    logger = LiveLogger("training job 3", console, blocks=True)
    for step in range(1, 9):
        figures: Mapping[str, float] = {"loss": 8.0 / step, "learned": step}
        logger.log_metrics(figures, step)
    logger.close()
    text = stream.getvalue()
    if terminal:
        last = text[text.rindex("training job 3, step 8") :]
        assert "█" in last and last[last.index("loss") :].split()[:4] == ["loss", "1", "1", "8"]
    else:
        assert text.splitlines() == ["step 1  loss 8  learned 1", "step 8  loss 1  learned 8"]


def test_the_store_of_another_version_is_refused(tmp_path: Path) -> None:
    import sqlite3

    SqliteMetrics(tmp_path / "runs.db").close()
    with sqlite3.connect(tmp_path / "runs.db") as database:
        database.execute("pragma user_version = 9")
    done = shammah(tmp_path, "runs")
    assert done.returncode == 3 and "format 9" in done.stderr
