"""The `shammah` command as a process: what it prints where, and what it ends with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from command import ROOT, shammah, started

from shammah.cli.parser import build_parser


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def test_lines_are_conversations_of_their_own_and_repeat(home: Path) -> None:
    drawn = ["--temperature", "1.5", "--seed", "7", "--max-tokens", "20"]
    questions = ["What is your name?", "And what did I ask before?", "What is your name?"]
    done = shammah(home, "ask", "--lines", "--json", *drawn, given="\n\n".join(questions))
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["question"] for row in rows] == questions
    assert rows[0]["prompt_tokens"] == rows[2]["prompt_tokens"]
    for row in rows:
        assert row["answer"] and 0 < row["tokens"] <= 20
        assert row["seconds"] > 0 and row["adapter"] is None
    # Another process, from its arguments and the input together: the same answer, alone on stdout.
    alone = started(home, "ask", *drawn, "What is", "your name?", given="  \n")
    assert (alone.returncode, alone.stderr) == (0, "")
    assert rows[0]["answer"] == rows[2]["answer"]
    assert alone.stdout == rows[0]["answer"].rstrip("\n") + "\n"


def test_a_reader_that_goes_away_is_no_noise(home: Path) -> None:
    done = subprocess.run(
        f"yes 'What is your name?' | head -n 200 | {sys.executable} -m shammah ask --lines"
        " | head -n 1",
        shell=True, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "SHAMMAH_HOME": str(home)},
    )  # fmt: skip
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["ask"], 2, "There is no question"),
        (["ask", "--lines", "q"], 2, "--lines takes its questions from the input"),
        (["ask", "--temperature", "-1", "q"], 2, "generation.temperature"),
        (["ask", "--model", "/no/such/model", "q"], 4, "/no/such/model"),
        (["ask", "--adapter", "nothing", "q"], 5, "nothing"),
        (["adapters", "load", "nothing"], 5, "nothing"),
        (["feedback", "show", "7"], 6, "7"),
        (["feedback", "undo"], 6, "no feedback left"),
        (["train", "now"], 7, "nothing to train on"),
        (["config", "set", "lora.rnk", "3"], 2, "Did you mean lora.rank?"),
        (["--config", "/no/such/file"], 2, "There is no settings file"),
        (["adaptrs"], 2, "Did you mean adapters?"),
        (["adapters", "lst"], 2, "Did you mean list?"),
    ],
)
def test_errors_are_sentences_with_exit_codes(
    tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    done = shammah(tmp_path, *arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_what_needs_no_model_loads_no_torch(tmp_path: Path) -> None:
    program = (
        "import json, sys; from shammah.cli.main import main\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    code = main(arguments)\n"
        "    loaded = [name for name in ('torch', 'transformers') if name in sys.modules]\n"
        "    print(json.dumps([arguments, loaded, code]), file=sys.stderr)\n"
    )
    commands = [
        ["adapters", "list", "--json"],
        ["feedback", "list", "--json"],
        ["feedback", "export"],
        ["train", "queue", "--json"],
        ["train", "status"],
        ["config", "show"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(commands)],
        cwd=ROOT, env={**os.environ, "SHAMMAH_HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    told = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("[[")]
    assert told == [[arguments, [], 0] for arguments in commands], done.stderr


def test_the_model_card_says_what_the_model_is(tmp_path: Path) -> None:
    about = json.loads(shammah(tmp_path, "model", "card", "--json").stdout)
    assert about["licence"] == "mit" and about["parameters"] <= 20_000_000
    assert 0 < about["trainable"] < about["parameters"]
    assert about["figures"].keys() >= {"answers", "unknown", "revisions", "listening"}
    assert about["card"].startswith("# Shammah embedded")


def test_feedback_goes_in_and_out(tmp_path: Path) -> None:
    rows = [
        {"query": "What is 1 + 1?", "correction": "2.", "rating": "medium"},
        {"query": "Who are you?", "response": "I am Shammah.", "rating": "good", "note": "yes"},
        {"response": "no query"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    strict = started(tmp_path, "feedback", "import", str(file), "--strict")
    assert strict.returncode == 2 and "0 taken" in strict.stdout
    done = shammah(tmp_path, "feedback", "import", str(file))
    assert done.returncode == 2
    assert "2 taken, 1 rejected." in done.stdout and "line 3:" in done.stderr
    exported = shammah(tmp_path, "feedback", "export")
    assert [json.loads(line)["query"] for line in exported.stdout.splitlines()] == [
        "What is 1 + 1?",
        "Who are you?",
    ]
    listed = shammah(tmp_path, "feedback", "list", "--json")
    numbers = {row["query"]: row["id"] for row in json.loads(listed.stdout)}
    number = str(numbers["Who are you?"])
    edited = shammah(tmp_path, "feedback", "edit", number, "--note", "indeed", "--json")
    assert json.loads(edited.stdout)["note"] == "indeed"
    assert shammah(tmp_path, "feedback", "delete", number).returncode == 0
    assert len(json.loads(shammah(tmp_path, "feedback", "list", "--json").stdout)) == 1
    assert shammah(tmp_path, "feedback", "undo").returncode == 0
    assert len(json.loads(shammah(tmp_path, "feedback", "list", "--json").stdout)) == 2


def test_settings_keep_their_comments(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("# mine\n[lora]\nrank = 4  # small\n")
    done = shammah(tmp_path, "config", "set", "lora.rank", "8")
    assert (done.returncode, done.stdout) == (0, "lora.rank = 8\n")
    assert file.read_text() == "# mine\n[lora]\nrank = 8  # small\n"
    assert shammah(tmp_path, "config", "get", "lora.rank").stdout == "8\n"
    other = tmp_path / "other.toml"
    other.write_text("[lora]\nrank = 2\n")
    shown = shammah(tmp_path, "config", "--config", str(other), "get", "lora.rank")
    assert shown.stdout == "2\n"


def test_the_doctor_finds_what_is_wrong(tmp_path: Path) -> None:
    done = shammah(tmp_path, "doctor", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 0, checks
    assert {"python", "torch", "device", "settings", "database", "model"} <= set(checks)
    (tmp_path / "config.toml").write_text("[model]\nname = '/no/such/model'\n")
    (tmp_path / "shammah.db").write_text("this is no database" * 100)
    broken = shammah(tmp_path, "doctor", LC_ALL="C", COLUMNS="40")
    assert broken.returncode == 1
    assert "failed  database" in broken.stdout and "failed  model" in broken.stdout


def test_piped_lines_are_a_chat(home: Path) -> None:
    done = started(home, given="What is your name?\n/good\n/feedbak\n/quit\n")
    assert "Feedback recorded (weight: 1x)" in done.stdout
    assert "Did you mean /feedback?" in done.stderr
    assert done.returncode == 2


def test_every_subcommand_explains_itself() -> None:
    def walk(parser: Any, names: Sequence[str]) -> list[Sequence[str]]:
        found = [names]
        for action in parser._actions:
            for name, inner in (
                (getattr(action, "choices", None) or {}).items()
                if hasattr(action, "add_parser")
                else ()
            ):
                found += walk(inner, [*names, name])
        return found

    every = walk(build_parser(), [])
    assert len(every) > 30
    for names in every:
        parser = build_parser()
        with pytest.raises(SystemExit) as ended:
            parser.parse_args([*names, "--help"])
        assert ended.value.code == 0


def test_help_is_quick(home: Path) -> None:
    began = time.monotonic()
    assert "exit codes:" in started(home, "--help").stdout
    assert time.monotonic() - began < 2
