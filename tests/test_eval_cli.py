"""`shammah eval` as a process, and `/eval` at a terminal, on the embedded model."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from adapter_files import file_bytes, lora_tensors
from command import ROOT, shammah

from shammah.adapters.library import AdapterLibrary
from shammah.adapters.metadata import AdapterMetadata, LessonRecord, LoraConfigRecord
from shammah.adapters.validate import sha256_of
from shammah.assistant import Assistant
from shammah.assistant.lesson_check import AsTaught, check_lessons
from shammah.errors import FeedbackError
from shammah.learning.lessons import Lesson
from shammah.messages import user
from shammah.paths import Paths
from shammah.settings import Settings
from shammah.storage.database import Database

if TYPE_CHECKING:
    from shammah.models.load import BaseModel


ANSWER = ["--scorers", "exact_match", "--max-tokens", "12"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, embedded_model: BaseModel) -> Path:
    """A home with the adapter `noise`: random weights on every feed-forward layer."""
    folder = tmp_path_factory.mktemp("home")
    modules = {name: shape for name, shape in embedded_model.shape.modules.items() if "mlp" in name}
    weights = folder / "noise.safetensors"
    weights.write_bytes(file_bytes(lora_tensors(3, 2, modules)))
    paths = Paths(folder, folder).ensure()
    database = Database(paths.database)
    AdapterLibrary(paths.adapters, database).publish(
        weights,
        AdapterMetadata(
            name="",
            created_at="2026-02-06T14:30:25Z",
            base_model="embedded",
            base_fingerprint=embedded_model.fingerprint,
            lora=LoraConfigRecord(
                rank=2, alpha=0.2, target_modules=sorted({n.rpartition(".")[2] for n in modules})
            ),
            lessons=[
                LessonRecord(feedback_id=None, query="q", target="a", weight=1.0, learned=True)
            ],
            sha256=sha256_of(weights),
            tensors=2 * len(modules),
            parameters=0,
        ),
        "noise",
    )
    database.close()
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Path:
    """Questions with the model's own answers, the last one aside, which is wrong."""
    folder = tmp_path_factory.mktemp("pairs")
    questions = ["What is Python?", "Hello", "What is Git?", "Thank you", "What is a loop?"]
    done = shammah(
        home, "ask", "--lines", "--json", "--max-tokens", "12", given="\n".join(questions)
    )
    answers = [json.loads(line)["answer"] for line in done.stdout.splitlines()]
    answers[-1] = "Zeno."
    path = folder / "pairs.jsonl"
    rows = [
        {"prompt": question, "completion": answer, "kind": "long" if "?" in question else "short"}
        for question, answer in zip(questions, answers, strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def test_a_table_targets_and_an_exit_code(home: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    wanted = ["eval", "--data", str(pairs), *ANSWER, "--out", str(out), "--group", "kind"]
    done = shammah(home, *wanted, "--require", "exact_match>=0.8")
    assert done.returncode == 0, done.stderr
    assert "exact_match       5  0.8000" in done.stdout and "1 of 1 targets met" in done.stdout
    assert "long" in done.stdout and "short" in done.stdout and str(out) in done.stderr
    assert [row["index"] for row in rows(out)] == [0, 1, 2, 3, 4]
    assert (
        rows(out)[4]["expected"] == "Zeno." and rows(out)[4]["scores"]["exact_match"]["value"] == 0
    )
    assert rows(out)[0]["metadata"] == {"kind": "long"} and rows(out)[0]["error"] is None
    assert json.loads((out / "report.json").read_text())["metrics"][0]["mean"] == 0.8
    assert "holds a run already" in shammah(home, *wanted).stderr
    # All is there: nothing is asked again, and a target that is missed ends with 1.
    before = (out / "rows.jsonl").read_bytes()
    done = shammah(home, *wanted, "--resume", "--json", "--require", "exact_match>=0.9")
    assert done.returncode == 1 and "5 examples are there already" in done.stderr
    assert (out / "rows.jsonl").read_bytes() == before
    told = json.loads(done.stdout)
    assert told["quality"]["passed"] is False and told["report"]["metrics"][0]["mean"] == 0.8
    assert told["quality"]["targets"][0]["margin"] == pytest.approx(-0.1)
    assert told["report"]["groups"]["short"][0]["mean"] == 1
    done = shammah(home, *wanted, "--resume", "--limit", "3")
    assert done.returncode == 2 and "data: " in done.stderr


def test_an_adapter_beside_the_base(home: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    wanted = ["eval", "--data", str(pairs), *ANSWER, "--out", str(out), "--adapter", "noise"]
    done = shammah(home, *wanted, "--against", "base", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    (metric,) = told["comparison"]["metrics"]
    assert metric["first"] == 0.8 and metric["second"] < 0.8
    assert metric["lost"] - metric["gained"] == round(5 * (0.8 - metric["second"]))
    assert metric["test"]["name"] == "exact McNemar" and metric["pairs"] == 5
    assert len(told["flips"]) == metric["lost"] + metric["gained"]
    flip = told["flips"][0]
    assert flip["first"] == flip["expected"] != flip["second"]
    assert [row["index"] for row in rows(out / "against")] == [0, 1, 2, 3, 4]
    about = json.loads((out / "run.json").read_text())
    assert about["adapter"]["name"] == "noise" and len(about["adapter"]["sha256"]) == 64
    # The stored run of the base serves for another comparison.
    again = ["eval", "--data", str(pairs), *ANSWER, "--adapter", "noise", "--resume"]
    done = shammah(home, *again, "--out", str(out), "--against", str(out / "against"))
    assert done.returncode == 0, done.stderr
    assert "noise beside" in done.stdout and "exact_match lost" in done.stdout


def test_what_cannot_be_done_is_said_before_a_model_is_loaded(
    home: Path, pairs: Path, tmp_path: Path
) -> None:
    data = ["eval", "--data", str(pairs)]
    for more, said in (
        (["--scorers", "exact_mach"], "There is no scorer 'exact_mach'"),
        ([*ANSWER, "--require", "exact_match>0.5"], "is no target"),
        ([*ANSWER, "--repeat", "2"], "temperature 0"),
        ([*ANSWER, "--resume"], "--resume needs --out"),
        ([*ANSWER, "--limit", "0"], "--limit"),
        ([*ANSWER, "--temperature", "-1"], "temperature cannot be"),
    ):
        done = shammah(home, *data, *more)
        assert done.returncode == 2 and said in done.stderr, done.stderr
        assert "Trace" not in done.stderr
    done = shammah(home, *data, *ANSWER, "--adapter", "nothing")
    assert done.returncode == 5 and "nothing" in done.stderr
    done = shammah(home, *data, *ANSWER, "--limit", "1", "--require", "nothing>=1")
    assert done.returncode == 2 and "no figure 'nothing'" in done.stderr


def test_repeated_runs_and_a_system_message(home: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = shammah(
        home, "eval", "--data", str(pairs), *ANSWER, "--out", str(out), "--repeat", "2",
        "--temperature", "1.5", "--seed", "7", "--limit", "3", "--system", "Be short.", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["repeats"]["exact_match"]
    assert told["runs"] == 2 and told["least"] <= told["mean"] <= told["most"]
    drawn = [[row["predicted"] for row in rows(out / f"repeat_{number}")] for number in (1, 2)]
    assert drawn[0] != drawn[1]
    about = [json.loads((out / f"repeat_{n}" / "run.json").read_text()) for n in (1, 2)]
    assert [each["sampling"]["seed"] for each in about] == [7, 8]
    assert about[0]["sampling"]["system"] == "Be short."


def test_a_killed_evaluation_goes_on(
    home: Path, tmp_path: Path, shared_data: Callable[[str], Path]
) -> None:
    out, count = tmp_path / "run", 60
    wanted = [
        "eval", "--data", str(shared_data("gsm8k/test.jsonl")), "--limit", str(count),
        "--scorers", "numeric", "--max-tokens", "16", "--out", str(out), "--resume",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "shammah", *wanted],
        cwd=ROOT,
        env={**os.environ, "SHAMMAH_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 180
    while not (out / "rows.jsonl").exists() or len((out / "rows.jsonl").read_bytes()) < 5000:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = (out / "rows.jsonl").read_bytes().count(b"\n")
    assert 0 < there < count
    done = shammah(home, *wanted)
    assert done.returncode == 0, done.stderr
    assert f"{there} examples are there already" in done.stderr
    assert sorted(row["index"] for row in rows(out)) == list(range(count))
    assert all(row["metadata"]["final"] and row["error"] is None for row in rows(out))


async def test_lessons_are_asked_again_aside(embedded_model: BaseModel) -> None:
    from shammah.generation.engine import Engine
    from shammah.generation.params import GenerationParams
    from shammah.renderers.registry import renderer_for

    renderer = renderer_for(embedded_model.tokenizer, embedded_model.stop_tokens)
    engine = Engine(embedded_model, renderer)
    try:
        params = GenerationParams(max_tokens=256)
        own = engine.generate((user("What is Git?"),), params).text
        lessons = [
            Lesson(1, (user("What is Git?"),), f" {own}\n", 1.0),
            Lesson(2, (user("What is Git?"),), "Zeno.", 1.0),
            Lesson(3, (user("What is Git?"),), None, 1.0, rejected=own),
            Lesson(4, (user("What is Git?"),), None, 1.0, rejected="Zeno."),
            Lesson(5, (user("never asked"),), "x", 1.0),
        ]
        found = await check_lessons(embedded_model, engine, None, lessons, 4)
    finally:
        engine.close()
    assert (found.lessons, found.asked, found.as_taught, found.failed) == (5, 4, 2, 0)
    assert [each.as_taught for each in found.answers] == [True, False, False, True]
    assert found.answers[2].aim == f"not: {own}" and found.base_as_taught is None
    assert (await AsTaught().score("a  b", "a\nb", {})).value == 1


async def test_without_a_trained_lesson_there_is_nothing_to_ask(tmp_path: Path) -> None:
    assistant = Assistant(Settings(), Paths(tmp_path, tmp_path), train=False)
    with pytest.raises(FeedbackError, match="No lesson was trained yet"):
        await assistant.check_lessons(3)
    await assistant.close()


def test_eval_in_the_chat_asks_the_adapter_and_the_base(home: Path) -> None:
    """With lessons that the base model knows and an adapter that spoils them; `test_story` asks
    after a real training."""
    from terminal import Terminal

    asked = {"query": "Hello", "correction": "Zeno.", "rating": "critical"}
    own = json.loads(shammah(home, "ask", "Thank you", "--json", "--adapter", "none").stdout)
    known = {"query": "Thank you", "correction": own["answer"], "rating": "critical"}
    given = "".join(json.dumps(lesson) + "\n" for lesson in (asked, known))
    assert shammah(home, "feedback", "import", "-", given=given).returncode == 0
    database = sqlite3.connect(home / "shammah.db")
    with contextlib.closing(database), database:
        database.execute("UPDATE feedback SET status = 'trained'")
    assert shammah(home, "adapters", "load", "noise").returncode == 0
    with Terminal(home, rows=40, columns=120) as chat:
        chat.wait_for("\n>")
        chat.submit("/eval")
        chat.wait_for("not as taught", 300)
        shown = " ".join(chat.text.split())
        assert "noise answers 0 of 2 lessons as taught; the base model 1 (p = 1)" in shown
        assert "Zeno." in shown
        chat.submit("/eval 1")
        chat.wait_for("(the newest of 2)", 300)
        shown = " ".join(chat.text.split())
        assert "noise answers 0 of 1 lesson" in shown and "base model 1" in shown
        chat.submit_and_wait("/eval x", "takes a number")
        assert chat.leave() == 0
