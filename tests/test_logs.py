"""The log: private, turned over, written by several processes, without a word of what is said."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import ROOT, shammah

from shammah.errors import TrainingError
from shammah.feedback.secrets import redacted
from shammah.tracking import telemetry
from shammah.tracking.logs import EVENTS, start_logging, stop_logging

log = logging.getLogger("shammah")
TOKEN = "hf_" + "aB3" * 12


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    before = logging.getLogger().level, log.level
    yield
    stop_logging()
    logging.getLogger().setLevel(before[0])
    log.setLevel(before[1])
    logging.captureWarnings(False)


def test_every_event_has_a_level() -> None:
    assert set(EVENTS) == set(telemetry.NAMES)


def test_levels_say_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "data" / "x.log"
    for level, expected in (
        ("debug", ["d", "i", "w", "training.step", "adapter.activated"]),
        ("info", ["i", "w", "adapter.activated"]),
        ("warning", ["w"]),
    ):
        path.unlink(missing_ok=True)
        start_logging(path, level=level)
        log.debug("d")
        log.info("i")
        log.warning("w")
        logging.getLogger("other").debug("theirs")
        telemetry.emit("training.step", {"step": 3, "loss": 0.25})
        telemetry.emit("adapter.activated", metadata={"adapter": "a", "unknown": "private"})
        lines = [line.split("]: ")[1] for line in path.read_text().splitlines()]
        assert [line.split()[0] for line in lines] == expected
        assert "adapter=a" in lines[-1] or level == "warning"
        assert "private" not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700


def test_full_files_are_put_aside_and_are_private_too(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.touch(0o644)
    start_logging(path, max_bytes=2000, files=2)
    for number in range(200):
        log.info("line %d", number)
    found = sorted(p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock"))
    assert found == ["x.log", "x.log.1", "x.log.2"]
    assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {0o600}
    assert all(p.stat().st_size <= 2000 for p in tmp_path.iterdir())
    assert path.read_text().splitlines()[-1].endswith("line 199")


def test_several_processes_write_into_one_file_and_lose_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, logging; from pathlib import Path\n"
        "from shammah.tracking.logs import start_logging\n"
        "start_logging(Path(sys.argv[1]), max_bytes=20_000, files=20)\n"
        "for n in range(300): logging.getLogger('shammah').info('%s-%d', sys.argv[2], n)\n"
    )
    path = tmp_path / "x.log"
    command = [sys.executable, "-c", code, str(path)]
    running = [subprocess.Popen([*command, word], cwd=ROOT) for word in ("a", "b", "c")]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    files = [file for file in tmp_path.glob("x.log*") if not file.name.endswith(".lock")]
    lines = [line for file in files for line in file.read_text().splitlines()]
    said = {line.split("]: ")[1] for line in lines}
    assert said == {f"{word}-{n}" for word in "abc" for n in range(300)} and len(files) > 2


def test_json_lines_and_secrets(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    start_logging(path, format="json", redact=redacted)
    log.info("asked with %s and https://me:sesame1@host/", TOKEN)
    telemetry.emit("workflow.start", {"time": 1.0}, {"workflow": "job"})
    telemetry.emit("feedback.recorded", {"feedback": 7, "weight": 3.0}, {"rating": "medium"})
    first, second, third = map(json.loads, path.read_text().splitlines())
    assert first["message"] == "asked with [Hugging Face token] and https://me:[password]@host/"
    assert first["level"] == "info" and first["logger"] == "shammah"
    assert second["event"] == "workflow.start" and isinstance(second["time"], str)
    assert third["rating"] == "medium" and third["feedback"] == 7


def test_errors_do_not_quote_what_was_said_unless_everything_is_wanted(tmp_path: Path) -> None:
    from pydantic import TypeAdapter

    said = "my dog is called Biscuit"

    def fail() -> None:
        try:
            TypeAdapter(int).validate_python(said)
        except ValueError as error:
            raise TrainingError(f"The model's answer {said!r} is not it.") from error

    for level in ("info", "debug"):
        path = tmp_path / level
        start_logging(path, level=level, redact=redacted)
        for cause in (fail, lambda: int(said), lambda: {}[said]):
            try:
                cause()
            except Exception:
                log.exception("it failed")
        stop_logging()
    careful, full = (tmp_path / "info").read_text(), (tmp_path / "debug").read_text()
    assert "Biscuit" not in careful
    assert "my dog" in full and "input_value" in full and "input_value" not in careful
    assert "shammah.errors.TrainingError: The model's answer '…' is not it." in careful
    assert "ValidationError: 1 validation error for int" in careful and "which led to" in careful
    assert "invalid literal for int() with base 10: '…'" in careful


def test_nowhere_to_write_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    start_logging(tmp_path / "file" / "x.log")
    log.error("unheard")


def test_a_conversation_is_not_in_the_log(tmp_path: Path) -> None:
    question = "Which Zanzibarian quetzal wrote this limerick?"
    done = shammah(tmp_path, "ask", question, "--max-tokens", "12", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)["answer"]
    lines = [question, "/critical Xylophonic nonsense", "/correct Ptarmigan Pemberton."]
    chat = shammah(tmp_path, "chat", "--no-train", given="\n".join(lines) + "\n")
    assert chat.returncode == 0, chat.stderr
    text = (tmp_path / "shammah.log").read_text()
    assert text.count("generation.complete") == 2 and text.count("feedback.recorded") == 2
    words = {"quetzal", "limerick", "Ptarmigan", "Pemberton", "Xylophonic", answer}
    assert not [word for word in words if word and word in text]


def test_the_level_can_be_said_for_one_command(tmp_path: Path) -> None:
    wrong = shammah(tmp_path, "runs", "--log-level", "loud")
    assert wrong.returncode == 2 and "logging.level" in wrong.stderr
    rows = json.dumps({"query": "q?", "correction": "a.", "rating": "good"}) + "\n"
    for level, told in (("warning", False), ("info", True)):
        done = shammah(tmp_path, "feedback", "import", "-", "--log-level", level, given=rows)
        assert done.returncode == 0, done.stderr
        assert ("feedback.recorded" in (tmp_path / "shammah.log").read_text()) is told
