"""The examples that learn from data, run as their readers run them, on small sizes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import shammah_json

from shammah.own_code import own_module

EXAMPLES = Path(__file__).parents[1] / "scripts" / "examples"
NUMBER = r"(-?\d+\.\d+)"

Run = Callable[..., str]


@pytest.fixture
def example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs an example, and gives what it printed."""

    def go(name: str, *arguments: str) -> str:
        module: Any = own_module(str(EXAMPLES / f"{name}.py"))
        module.main(["--home", str(tmp_path / "home"), *arguments])
        return capsys.readouterr().out

    return go


def figures(printed: str, name: str) -> tuple[float, float]:
    """A figure before and after."""
    found = re.search(rf"^{re.escape(name)} +{NUMBER} -> +{NUMBER}", printed, re.MULTILINE)
    assert found is not None, printed
    return float(found[1]), float(found[2])


def manifest(home: Path) -> Any:
    """That of the only run in a home."""
    (file,) = (home / "runs").glob("*/manifest.json")
    return json.loads(file.read_text())


def test_gsm8k_learns_the_form_of_its_answers(example: Run, tmp_path: Path) -> None:
    printed = example("gsm8k", "--rows", "50", "--epochs", "6")
    assert "40 problems learned in 18 steps, 10 held out" in printed
    before, after = figures(printed, "surprise a token")
    assert after < before / 5
    before, after = figures(printed, "ends with ####")
    assert before == 0 and after > 0.1
    assert manifest(tmp_path / "home")["data"]["format"] == "gsm8k"


def test_gsm8k_takes_the_data_set_itself(example: Run, shared_data: Callable[[str], Path]) -> None:
    data = shared_data("gsm8k/train.jsonl")
    printed = example("gsm8k", "--data", str(data), "--rows", "10", "--epochs", "1")
    before, after = figures(printed, "surprise a token")
    assert after < before and "8 problems learned in 1 steps, 2 held out" in printed


def test_scifact_is_decided_by_its_targets(example: Run, tmp_path: Path) -> None:
    printed = example("scifact")
    assert "└─ meets_targets" in printed and "├─ sft" in printed
    for name in ("claim_format", "citation_validity.accurate"):
        before, after = figures(printed, name)
        assert after > before
    for part in ("cross_entropy", "topological", "chirality", "citation_validity"):
        found = re.findall(rf"^{part} +{NUMBER} -> +{NUMBER}", printed, re.MULTILINE)
        before, after = map(float, found[-1])
        assert after < before, part
    assert printed.endswith("3 of 3 targets met; done: meets_targets/then/take_it\n")
    assert active(tmp_path / "home") is not None
    about = manifest(tmp_path / "home")
    assert about["config"]["loss"].startswith("0.55 cross_entropy")
    assert "CLAIM[c1]" in about["first_samples"][0]["text"]
    (metrics,) = (tmp_path / "home" / "runs").glob("*/metrics.jsonl")
    log = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [each["step"] for each in log if "loss" in each]
    for hook in ("norm", "nonfinite"):
        assert [each["step"] for each in log if f"gradients/{hook}" in each] == steps


def test_scifact_answers_in_the_chat_only_where_it_meets_its_targets(
    example: Run, tmp_path: Path, shared_data: Callable[[str], Path]
) -> None:
    data = shared_data("scifact")
    printed = example("scifact", "--data", str(data), "--rows", "2", "--epochs", "1")
    assert "targets met; missed: " in printed
    assert printed.endswith("done: meets_targets/otherwise/leave_it\n")
    assert len(list((tmp_path / "home" / "adapters").glob("*.safetensors"))) == 1
    assert active(tmp_path / "home") is None


def test_corrections_of_the_chat_are_preferred(example: Run, tmp_path: Path) -> None:
    printed = example("dpo_from_chat", "--steps", "8")
    assert "6 pairs learned; passed over: 1 without two answers" in printed
    for name in ("margin", "reward_chosen"):
        before, after = figures(printed, name)
        assert before == 0 and after > 1
    assert figures(printed, "reward_rejected")[1] < 0
    assert figures(printed, "likelier")[1] > 0.5
    about = manifest(tmp_path / "home")
    assert about["data"]["format"] == "feedback"
    assert about["data"]["lacking"] == {"two answers": 1}


@pytest.mark.parametrize("good_below", ["100", "0"])
def test_a_workflow_goes_on_and_asks_only_what_is_worth_it(
    example: Run, tmp_path: Path, good_below: str
) -> None:
    sizes = ("--ranks", "1", "2", "--steps", "3")
    printed = example("own_workflow", *sizes, "--good-below", good_below)
    assert printed.count("The data set is written.") == 1, "it was stopped after this, once"
    stopped, done = re.findall(r"^(?:stopped|done): (.*)$", printed, re.MULTILINE)
    trained = ["write", "ranks[0]/train", "ranks[1]/train", "choose"]
    assert stopped == "write" and done.split(", ")[:4] == trained
    rest = done.split(", ")[4:]
    if good_below == "0":
        assert rest == ["good_enough/otherwise/give_up"] and "not good enough" in printed
        assert "exact_match" not in printed
    else:
        asked = [f"good_enough/then/parallel/ask_{name}" for name in ("base", "best")]
        assert sorted(rest) == asked and printed.count("exact_match") == 2
    assert len(list((tmp_path / "home" / "adapters").glob("rank*.safetensors"))) == 2


def active(home: Path) -> str | None:
    """The adapter that answers in the chat."""
    status = shammah_json(home, "adapters", "list")
    found = [each["name"] for each in status if each["active"]]
    return found[0] if found else None
