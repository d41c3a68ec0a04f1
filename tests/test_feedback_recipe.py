"""Feedback learned in rounds by `shammah train feedback`: also after a kill, and with bad lines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command import BEGAN, LESSONS_ALONE, ROOT, shammah
from ten_lessons import TEN

from shammah.adapters.library import AdapterLibrary
from shammah.feedback.store import FeedbackStore
from shammah.learning.queue import JobQueue
from shammah.paths import Paths
from shammah.settings import FeedbackSettings
from shammah.storage.database import Database

ALONE = ",".join(f"{key}={value}" for key, value in LESSONS_ALONE.items())


def lines(count: int) -> list[str]:
    return [
        json.dumps({"query": query, "rating": "critical", "response": "No.", "correction": told})
        for query, told in TEN[:count]
    ]


def written(folder: Path, rows: list[str]) -> str:
    file = folder / "lessons.jsonl"
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return str(file)


def arguments(data: str, *others: str) -> list[str]:
    return ["train", "feedback", "--data", data, "--run-id", "rounds", *others]


def journal(folder: Path) -> list[dict[str, Any]]:
    file = folder / "journal.jsonl"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def test_bad_lines_are_named_before_anything_is_learned(tmp_path: Path) -> None:
    good = lines(3)
    # A line separator within a text ends no line of JSON.
    odd = json.dumps({"query": "a\u2028b", "correction": "c"}, ensure_ascii=False)
    rows = [good[0], "", odd, good[1], '{"query": "x"', good[2], '{"query": " ", "rating": "good"}']
    done = shammah(tmp_path, *arguments(written(tmp_path, rows), "--per-round", "1"))
    assert done.returncode != 0
    assert "Line 5 of" in done.stderr and "Line 7 of" in done.stderr, done.stderr
    assert "Line 3" not in done.stderr and "Traceback" not in done.stderr
    home = tmp_path / "runs" / "rounds" / "home"
    assert not home.exists() or not list((home / "jobs").iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--per-round", "200"], "does not fit into the buffer of 100"),
        (["--settings", "training.replai=0"], "training.replai"),
        (["--rounds", "0", "--data", "/nowhere.jsonl"], "/nowhere.jsonl"),
    ],
)
def test_what_cannot_be_is_said_at_once(tmp_path: Path, options: list[str], said: str) -> None:
    done = shammah(tmp_path, *arguments(written(tmp_path, lines(2)), *options))
    assert done.returncode != 0 and said in done.stderr, done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_a_killed_run_teaches_each_lesson_once(tmp_path: Path) -> None:
    home = tmp_path / "home"
    folder = home / "runs" / "rounds"
    data = written(tmp_path, lines(2))
    options = arguments(data, "--per-round", "1", "--settings", ALONE, "--name", "taught")
    process = subprocess.Popen(
        [sys.executable, "-m", "shammah", *options],
        cwd=ROOT,
        env={**BEGAN, "SHAMMAH_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    # In the middle of the second round: its job has begun to train.
    events = folder / "home" / "jobs" / "2" / "events.jsonl"
    until = time.monotonic() + 300
    while not (events.exists() and '"start"' in events.read_text()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, "the second round never began"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    finished = [each["path"] for each in journal(folder) if each["kind"] == "finished"]
    assert "rounds[0]/examine" in finished and "rounds[1]/learn" not in finished

    done = shammah(home, "train", "resume", "rounds", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["metrics"]["round 1/as_taught"] == 1.0
    assert result["metrics"]["round 2/as_taught"] >= 0.5

    own = Paths(folder / "home", folder / "home")
    database = Database(own.database)
    feedback = FeedbackStore(database, FeedbackSettings())
    jobs = JobQueue(database, own, feedback).list()[::-1]
    assert [(job.id, job.status, job.examples) for job in jobs] == [(1, "done", 1), (2, "done", 1)]
    rows = feedback.list(None)
    assert sorted(row.query for row in rows) == sorted(query for query, _ in TEN[:2])
    assert {row.status for row in rows} == {"trained"}

    # The user's own folder got the last adapter with all lessons, and nothing else.
    library = AdapterLibrary(Paths(home, home).adapters, Database(Paths(home, home).database))
    (adapter,) = library.list()
    assert adapter.name == "taught" == result["adapter"]
    assert {lesson.query for lesson in adapter.require_metadata().lessons} == {
        query for query, _ in TEN[:2]
    }
    again = shammah(home, "train", "resume", "rounds", "--json")
    assert json.loads(again.stdout)["metrics"] == result["metrics"] and len(library.list()) == 1

    shown = shammah(home, "train", "resume", "rounds")
    assert "lessons held" in shown.stdout and "100%" in shown.stdout
