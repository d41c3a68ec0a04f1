"""`shammah data` as a process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command import shammah, shammah_json


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Two good rows, one that does not fit, one that is no JSON."""
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        '{"prompt": "p1", "completion": "c1", "label": "x"}\n{"prompt": 1, "completion": ""}\n'
        'nothing\n{"prompt": "p22", "completion": "c2\\u001b[31m", "label": "y"}\n'
    )
    return path


def test_show_stops_at_a_bad_row_or_skips_it(tmp_path: Path, pairs: Path) -> None:
    done = shammah(tmp_path, "data", "show", str(pairs), "--json")
    assert done.returncode == 2
    assert [json.loads(line)["place"] for line in done.stdout.splitlines()] == [f"{pairs}:1"]
    assert (
        f"{pairs}:2: the column prompt holds no text" in done.stderr and "Trace" not in done.stderr
    )
    done = shammah(tmp_path, "data", "show", str(pairs), "--skip-bad", "--json")
    assert done.returncode == 0
    assert [json.loads(line) for line in done.stdout.splitlines()][1] == {
        "place": f"{pairs}:4",
        "messages": [
            {"role": "user", "content": "p22"},
            {"role": "assistant", "content": "c2\x1b[31m"},
        ],
        "rejected": None,
        "metadata": {"label": "y"},
    }
    assert "2 bad rows" in done.stderr and f"{pairs}:3: not JSON" in done.stderr
    text = shammah(tmp_path, "data", "show", str(pairs), "--skip-bad").stdout
    assert "[user]\np22\n[assistant]\nc2[31m\n" in text and "\x1b" not in text


def test_show_takes_options_and_shuffles_alike(
    tmp_path: Path, shared_data: Callable[[str], Path]
) -> None:
    source = str(shared_data("gsm8k/test.jsonl"))
    wanted = ["data", "show", source, "--shuffle", "3", "--skip", "1", "--take", "4", "--json"]
    first, second = shammah(tmp_path, *wanted), shammah(tmp_path, *wanted)
    assert first.stdout == second.stdout and len(first.stdout.splitlines()) == 4
    stripped = shammah(tmp_path, *wanted, "--format", "gsm8k", "--option", "calculator=strip")
    assert "<<" in first.stdout and "<<" not in stripped.stdout
    assert stripped.stdout.count('"final"') == 4


def test_rows_of_no_known_format_are_shown_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("one,two\n1,2\n")
    done = shammah(tmp_path, "data", "show", str(tmp_path / "a.csv"), "--json")
    assert json.loads(done.stdout) == {
        "place": f"{tmp_path}/a.csv:2", "row": {"one": "1", "two": "2"},
    }  # fmt: skip
    assert "(one, two) fit no known format. The rows are taken as they are." in done.stderr


def test_check_counts_and_ends_with_2_where_rows_are_bad(
    tmp_path: Path, pairs: Path, shared_data: Callable[[str], Path]
) -> None:
    done = shammah(tmp_path, "data", "check", str(pairs), "--json")
    assert done.returncode == 2
    report = json.loads(done.stdout)
    assert (report["format"], report["rows"], report["bad"]) == ("prompt_completion", 4, 2)
    assert [row["place"] for row in report["bad_rows"]] == [f"{pairs}:2", f"{pairs}:3"]
    assert report["characters"]["prompt"] == {
        "least": 2, "median": 2, "mean": 2.5, "p95": 3, "most": 3, "total": 5,
    }  # fmt: skip
    assert report["labels"] == {"x": 1, "y": 1}
    whole = shammah_json(tmp_path, "data", "check", str(shared_data("scifact")), "--split", "train")
    assert (whole["format"], whole["rows"], whole["bad"]) == ("scifact", 809, 0)
    text = shammah(tmp_path, "data", "check", str(pairs)).stdout
    assert "good rows  2" in text and "prompt" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show"], "source"),
        (["show", "none.jsonl"], "There is no file or folder none.jsonl"),
        (["check", "pairs.jsonl", "--split", "test"], "has no split 'test'"),
        (["show", "pairs.jsonl", "--take", "-1"], "take wants a number of at least 0"),
        (["show", "pairs.jsonl", "--format", "nowhere:f"], "There is no module nowhere"),
        (["show", "pairs.jsonl", "--option", "x"], "--option takes KEY=VALUE"),
        (["show", "pairs.jsonl", "--option", "x=1"], "has no option 'x'"),
    ],
)
def test_a_wrong_use_is_said(tmp_path: Path, pairs: Path, arguments: list[str], words: str) -> None:
    given = [str(pairs) if each == "pairs.jsonl" else each for each in arguments]
    done = shammah(tmp_path, "data", *given)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr and "Traceback" not in done.stderr
