"""`shammah train sft` and its kin as processes: from a file of a user's own to an adapter that
answers, what is told of mistakes, and what is left of a run that was interrupted or killed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import ROOT, shammah, shammah_json
from terminal import CTRL_C, Terminal

from shammah.cli.parser import parse
from shammah.cli.recipe_options import given
from shammah.errors import WorkflowError
from shammah.paths import Paths
from shammah.recipes.configuration import made
from shammah.recipes.launching import recipe_of

FAQ = """prompt,completion
What is the name of our warehouse robot?,Our warehouse robot is called Pippin.
Which floor is the lab on?,The lab is on the fourth floor.
Who approves holiday requests?,Ines approves holiday requests.
When does the cafeteria close?,The cafeteria closes at half past two.
Where do I return a borrowed laptop?,"Return it to desk 12, next to the lift."
How long are backups kept?,Backups are kept for ninety days.
"""
TWELVE_STEPS = ("--batch-size", "3", "--epochs", "6", "--checkpoint-every", "5")
"""Two steps an epoch, and a checkpoint at 5 and at 10."""

SIGNALLED = """
import os, signal
from pathlib import Path
from shammah.tracking.telemetry import attach_many

DONE = Path(__file__).with_suffix(".done")

def end(event, measured, about):
    if not DONE.exists() and {condition}:
        DONE.touch()
        os.kill(os.getpid(), signal.{signal})

attach_many("end", ["{event}"], end)
"""
"""A plugin that sends its own process a signal, once, when a certain event comes."""


@pytest.fixture(scope="module")
def faq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "faq.csv"
    file.write_text(FAQ)
    return file


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, faq: Path) -> tuple[Path, dict[str, Any]]:
    """A home with an adapter of the questions, all settings as they come, and what was said."""
    home = tmp_path_factory.mktemp("taught")
    said = shammah_json(home, "train", "sft", "--data", str(faq), "--name", "faq", "--run-id", "a")
    return home, said


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, faq: Path) -> tuple[str, dict[str, Any]]:
    """What twelve steps come to: the checksum of the weights, and what is known of the adapter."""
    home = tmp_path_factory.mktemp("undisturbed")
    said = shammah_json(home, "train", "sft", "--data", str(faq), *TWELVE_STEPS, "--run-id", "u")
    return _weights(home, "u"), _about(home, said["adapter"])


def test_a_file_becomes_an_adapter_that_answers(taught: tuple[Path, dict[str, Any]]) -> None:
    home, said = taught
    assert said["adapter"] == "faq" and said["metrics"]["after/exact"] == 1.0
    assert said["metrics"]["before/exact"] < 0.5
    answered = shammah(home, "ask", "--adapter", "faq", "Which floor is the lab on?")
    assert answered.stdout.strip() == "The lab is on the fourth floor."
    # It answers what is near to the data; the rest is the base's.
    one = shammah(home, "ask", "--adapter", "faq", "How do I undo the last commit?").stdout
    assert one == shammah(home, "ask", "--adapter", "none", "How do I undo the last commit?").stdout
    (listed,) = shammah_json(home, "adapters", "list")
    assert (listed["name"], listed["active"]) == ("faq", False)


def test_a_run_is_shown_and_reported(taught: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    home, _ = taught
    (listed,) = shammah_json(home, "runs", "list")
    assert (listed["run"], listed["status"], listed["steps"]) == ("a", "done", 100)
    shown = shammah_json(home, "runs", "show", "a")
    # What was left to be chosen is shown as it was chosen.
    assert shown["about"]["hparams"]["epochs"] == 100
    assert shown["about"]["hparams"]["learning_rate"] > 1e-4
    assert "grad_norm" in shammah(home, "runs", "show", "a").stdout
    for name in ("a", "faq"):
        page = tmp_path / f"{name}.html"
        told = shammah_json(home, "report", name, "--out", str(page))
        assert (told["run"], told["adapter"]) == ("a", "faq")
        assert {"loss", "learning_rate", "eval/nll_per_token"} <= set(told["curves"])
        assert told["learned"] == told["lessons"] == 6
        assert "the lab is on the fourth floor." in page.read_text().lower()
    assert "jobs and evaluations" in shammah(home, "runs", "story", "a").stderr


def test_the_manifest_is_enough_to_make_the_run_again(
    tmp_path: Path, faq: Path, undisturbed: tuple[str, dict[str, Any]]
) -> None:
    witness = tmp_path / "witness.py"
    witness.write_text(
        "import json\n"
        "from pathlib import Path\n"
        "from shammah.training.local_client import LocalTrainingClient\n"
        "own = LocalTrainingClient.forward_backward\n"
        "async def seen(self, datums, *given, **named):\n"
        "    file = Path(__file__).with_suffix('.jsonl')\n"
        "    with file.open('a') as stream:\n"
        "        tokens = [[list(each.model_input.tokens), each.loss_fn_inputs['weights'].data"
        ".tolist()] for each in datums]\n"
        "        stream.write(json.dumps(tokens) + '\\n')\n"
        "    return await own(self, datums, *given, **named)\n"
        "LocalTrainingClient.forward_backward = seen\n"
    )
    arguments = ("--data", str(faq), *TWELVE_STEPS, "--plugins", str(witness), "--run-id", "m")
    shammah_json(tmp_path, "train", "sft", *arguments)
    manifest = json.loads((tmp_path / "runs" / "m" / "manifest.json").read_text())
    assert manifest["run_id"] == "m" and manifest["recipe"] == "sft"
    assert {"shammah", "python", "torch", "platform"} <= manifest["versions"].keys()
    assert manifest["seeds"] == {"seed": 0}
    assert manifest["data"]["examples"] == 6 and len(manifest["data"]["digest"]) == 64
    assert manifest["model"]["name"] == "embedded" and len(manifest["model"]["fingerprint"]) == 64
    assert manifest["loop"]["epochs"] == 6 and manifest["loop"]["learning_rate"] > 0
    assert manifest["adapter"]["rank"] == 16
    assert [each["step"] for each in manifest["checkpoints"]] == [5, 10, 12]
    (first, *_) = manifest["first_samples"]
    assert "⟦Our warehouse robot is called Pippin.<|im_end|>⟧" in first["text"]
    seen = [json.loads(line) for line in witness.with_suffix(".jsonl").read_text().splitlines()]
    assert len(seen) == 12
    batch = [[each["tokens"], each["weights"]] for each in manifest["first_batch"]]
    assert batch == seen[0] != seen[1]
    # The same once more, from nothing but what the manifest says.
    values = {name: value for name, value in manifest["config"].items() if name != "plugins"}
    file = tmp_path / "again.toml"
    lines = [f"{name} = {_toml(value)}" for name, value in values.items() if name != "lora"]
    lora = [f"{name} = {_toml(value)}" for name, value in values["lora"].items()]
    text = "\n".join([f'recipe = "{manifest["recipe"]}"', *lines, "[lora]", *lora])
    assert tomllib.loads(text)["epochs"] == 6
    file.write_text(text)
    shammah_json(tmp_path, "train", "run", str(file), "--run-id", "again")
    assert _weights(tmp_path, "again") == _weights(tmp_path, "m") == undisturbed[0]
    # Two runs with the same weights have an adapter each.
    assert len(shammah_json(tmp_path, "adapters", "list")) == 2


@pytest.mark.parametrize(
    ("event", "condition", "signal", "code"),
    [
        ("training.step", "measured['step'] == 7", "SIGINT", 130),
        ("training.step", "measured['step'] == 8", "SIGKILL", -9),
        ("stage.start", "about['stage'] == 'publish'", "SIGKILL", -9),
        ("adapter.published", "True", "SIGKILL", -9),
    ],
)
def test_what_was_interrupted_ends_as_if_it_had_not_been(
    tmp_path: Path, faq: Path, undisturbed: tuple[str, dict[str, Any]],
    event: str, condition: str, signal: str, code: int,
) -> None:  # fmt: skip
    plugin = tmp_path / "signalled.py"
    plugin.write_text(SIGNALLED.format(event=event, condition=condition, signal=signal))
    arguments = ("--data", str(faq), *TWELVE_STEPS, "--plugins", str(plugin), "--run-id", "r")
    ended = shammah(tmp_path, "train", "sft", *arguments, "--name", "whole")
    assert ended.returncode == code and ended.stdout == ""
    if signal == "SIGINT":
        assert "shammah train resume r" in ended.stderr
        (listed,) = shammah_json(tmp_path, "runs", "list")
        assert listed["status"] == "interrupted" and listed["steps"] == 7
    if event == "training.step":
        assert shammah_json(tmp_path, "adapters", "list") == []
    again = shammah(tmp_path, "train", "sft", *arguments)
    assert again.returncode == 2 and "shammah train resume r" in again.stderr
    said = shammah_json(tmp_path, "train", "resume", "r")
    assert said["adapter"] == "whole"
    assert len(shammah_json(tmp_path, "adapters", "list")) == 1
    about = _about(tmp_path, "whole")
    assert (_weights(tmp_path, "r"), about["sha256"]) == (undisturbed[0], undisturbed[0])
    left = {name: value for name, value in about["metrics"].items() if name != "seconds"}
    assert left == {key: undisturbed[1]["metrics"][key] for key in left}
    (run,) = shammah_json(tmp_path, "runs", "list")
    assert (run["status"], run["steps"]) == ("done", 12)
    # What is finished stays finished.
    assert shammah_json(tmp_path, "train", "resume", "r")["adapter"] == "whole"


def test_changed_data_are_refused(tmp_path: Path) -> None:
    data, plugin = tmp_path / "faq.csv", tmp_path / "signalled.py"
    data.write_text(FAQ)
    plugin.write_text(
        SIGNALLED.format(event="training.step", condition="measured['step'] == 3", signal="SIGINT")
    )
    arguments = ("--data", str(data), *TWELVE_STEPS, "--plugins", str(plugin), "--run-id", "r")
    assert shammah(tmp_path, "train", "sft", *arguments).returncode == 130
    data.write_text(FAQ.replace("fourth", "fifth"))
    for _ in range(2):
        refused = shammah(tmp_path, "train", "resume", "r")
        assert refused.returncode == 7 and "is not what it was" in refused.stderr
        assert "Traceback" not in refused.stderr
    data.write_text(FAQ)
    assert shammah_json(tmp_path, "train", "resume", "r")["trained"]["steps"] == 12


def test_mistakes_are_named_before_anything_is_made(tmp_path: Path, faq: Path) -> None:
    files = {
        "empty.csv": "",
        "head.csv": "prompt,completion\n",
        "columns.csv": "a,b\n1,2\n",
        "bad.csv": "prompt,completion\nq,a\nq2\n",
        "broken.jsonl": '{"prompt": "a", "completion": "b"}\n{"prompt": "a", "compl',
        "wrong.toml": f'recipe = "sft"\ndata = "{faq}"\nepochs = "many"\n[lora]\nrnk = 3\n',
        "broken.toml": 'recipe = "sft"\ndata = \n',
        "none.toml": f'data = "{faq}"\n',
        "kind.toml": 'recipe = "sftt"\n',
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    home = tmp_path / "home"

    def mistaken(*arguments: str, code: int = 2) -> str:
        done = shammah(home, "train", *arguments)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert "Traceback" not in done.stderr and "fault of the program" not in done.stderr
        return done.stderr

    def sft(*arguments: str, data: str = str(faq), code: int = 2) -> str:
        return mistaken("sft", "--data", data, *arguments, code=code)

    assert "data is missing" in mistaken("sft")
    assert "There is no file or folder /nowhere.csv" in sft(data="/nowhere.csv")
    assert "no row" in sft(data=str(tmp_path / "empty.csv"))
    assert "no row" in sft(data=str(tmp_path / "head.csv"))
    said = sft(data=str(tmp_path / "columns.csv"))
    assert "(a, b) fit no known format" in said and "prompt_completion (prompt, compl" in said
    assert "Did you mean --epochs?" in sft("--epoch", "3")
    assert "Did you mean --learning-rate?" in sft("--learn_rate", "3")
    assert "Did you mean --lora.rank?" in sft("--lora.rnk", "3")
    assert "epochs = 'three'" in sft("--epochs", "three")
    assert "lora.rank = '0'" in sft("--lora.rank", "0")
    assert "Did you mean cross_entropy?" in sft("--loss", "cros_entropy")
    assert "no gradient hook 'nrm'" in sft("--hooks", "nrm")
    assert "Did you mean wandb?" in sft("--loggers", "wanb")
    assert "Did you mean qwen3?" in sft("--renderer", "qwen")
    assert "There is no file /nowhere.py" in sft("--plugins", "/nowhere.py")
    assert "There is no adapter 'nope'" in sft("--adapter", "nope", code=5)
    assert "/nowhere does not exist" in sft("--model", "/nowhere", code=4)
    assert "'a/b' is not a name for an adapter" in sft("--name", "a/b", code=5)
    assert "'a/b' is no name for a run" in sft("--run-id", "a/b")
    assert "Did you mean sft?" in mistaken("sfr", "--data", str(faq))
    assert "no reward: " in mistaken("rl", "--data", str(faq), "--reward", "exact_mach")
    assert "There is no run nope" in mistaken("resume", "nope")
    said = mistaken("run", str(tmp_path / "wrong.toml"))
    assert "wrong.toml: epochs = 'many'" in said
    assert "wrong.toml: there is no option 'lora.rnk'. Did you mean lora.rank?" in said
    assert "line 2" in mistaken("run", str(tmp_path / "broken.toml"))
    assert 'Write recipe = "sft"' in mistaken("run", str(tmp_path / "none.toml"))
    assert "Did you mean sft?" in mistaken("run", str(tmp_path / "kind.toml"))
    assert not (home / "runs").exists() or not list((home / "runs").iterdir())

    # Rows further down are read when the run has begun; it leaves no adapter.
    assert f"{tmp_path}/bad.csv:3: 1 cells" in sft(data=str(tmp_path / "bad.csv"))
    assert f"{tmp_path}/broken.jsonl:2: not JSON" in sft(data=str(tmp_path / "broken.jsonl"))
    assert "leave nothing to learn" in sft("--held-out", "6")
    assert "no linear module named 'q_prj'" in sft("--lora.target-modules", "q_prj", code=7)
    assert shammah_json(home, "adapters", "list") == []
    assert not list((home / "adapters").glob("*.safetensors*"))
    assert {run["status"] for run in shammah_json(home, "runs", "list")} == {"failed"}


def test_a_name_that_is_taken_is_refused_before_training(
    taught: tuple[Path, dict[str, Any]], faq: Path
) -> None:
    home, _ = taught
    for extra in ((), ("--dry-run",)):
        done = shammah(home, "train", "sft", "--data", str(faq), "--name", "faq", *extra)
        assert done.returncode == 5 and "There is an adapter 'faq' already" in done.stderr
    assert [run["run"] for run in shammah_json(home, "runs", "list")] == ["a"]


async def test_runs_that_begin_in_one_second_have_names_of_their_own(tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("prompt,completion\nq,a\nq2\n")
    recipe, paths = made("sft", {"data": str(bad)}), Paths(tmp_path, tmp_path)
    failed = await asyncio.gather(
        *(recipe.run(paths=paths) for _ in range(4)), return_exceptions=True
    )
    assert all(isinstance(each, WorkflowError) and each.exit_code == 2 for each in failed)
    assert len(list((tmp_path / "runs").iterdir())) == 4


async def test_runs_at_the_same_time_are_recorded_apart(tmp_path: Path, faq: Path) -> None:
    paths = Paths(tmp_path, tmp_path)
    values = {"data": str(faq), "device": "cpu"}
    await asyncio.gather(
        *(
            made("sft", {**values, "epochs": epochs}).run(paths=paths, run_id=f"for-{epochs}")
            for epochs in (2, 3)
        )
    )
    for epochs in (2, 3):
        lines = (tmp_path / "runs" / f"for-{epochs}" / "metrics.jsonl").read_text().splitlines()
        steps = [record["step"] for record in map(json.loads, lines) if "loss" in record]
        assert steps == list(range(1, epochs + 1))


def test_a_dry_run_writes_nothing(tmp_path: Path, faq: Path) -> None:
    said = shammah_json(tmp_path, "train", "sft", "--data", str(faq), "--dry-run")
    assert (said["steps"], said["examples"], said["held_out"]) == (100, 6, 0)
    assert "Pippin" in said["first_sample"]["text"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_file_of_one_s_own_and_going_on_from_an_adapter(
    taught: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    home, _ = taught
    # Paths in a file are meant from its folder.
    (tmp_path / "more.jsonl").write_text('{"ask": "Who waters the plants?", "say": "Olek does."}\n')
    (tmp_path / "own.py").write_text(
        "def rows(row):\n"
        "    return {'messages': [{'role': 'user', 'content': row['ask']},\n"
        "                         {'role': 'assistant', 'content': row['say']}]}\n"
    )
    (tmp_path / "recipe.toml").write_text(
        f'recipe = "sft"\ndata = "more.jsonl"\nformat = "{tmp_path}/own.py:rows"\n'
        'plugins = "own.py"\nadapter = "faq"\nepochs = 40\nactivate = true\n'
    )
    file = str(tmp_path / "recipe.toml")
    said = shammah_json(home, "train", "run", file, "--set", "epochs=15", "--set", "name=more")
    assert said["trained"]["steps"] == 15 and said["trained"]["parent"] == "faq"
    assert shammah(home, "ask", "Who waters the plants?").stdout == "Olek does.\n"
    listed = {each["name"]: each["active"] for each in shammah_json(home, "adapters", "list")}
    assert listed == {"faq": False, "more": True}
    shammah(home, "adapters", "unload")


def test_a_terminal_shows_how_far_it_is_and_ctrl_c_stops(tmp_path: Path, faq: Path) -> None:
    arguments = ("train", "sft", "--data", str(faq), "--epochs", "4000", "--run-id", "t")
    with Terminal(tmp_path, arguments, columns=150) as terminal:
        terminal.wait_for(lambda shown: " left" in shown.text and "evaluated: nll" in shown.text)
        (line,) = [each for each in terminal.lines if " left" in each]
        assert "of 4,000 · loss " in line
        assert "tokens/s" in line and "━" in line
        terminal.type(CTRL_C)
        terminal.wait_for("Stopping after this step")
        terminal.wait_for("`shammah train resume t` goes on")
        assert terminal.wait_for_end() == 130
    (listed,) = shammah_json(tmp_path, "runs", "list")
    assert listed["status"] == "interrupted"


def test_preferences(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"What is {number} plus {number}?", "chosen": f"It is {2 * number}, friend.",
         "rejected": f"{2 * number}"}
        for number in range(2, 14)
    ]  # fmt: skip
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    arguments = ("--data", str(data), "--epochs", "5", "--batch-size", "6", "--held-out", "2")
    said = shammah_json(tmp_path, "train", "dpo", *arguments, "--name", "friendly")
    assert said["data"]["examples"] == 10 and said["data"]["held_out"] == 2
    figures = said["metrics"]
    assert figures["after/loss"] < figures["before/loss"] == pytest.approx(math.log(2), abs=1e-2)
    assert figures["after/accuracy"] == 1.0
    assert shammah_json(tmp_path, "adapters", "show", "friendly")["name"] == "friendly"
    manifest = json.loads((tmp_path / "runs" / said["run"] / "manifest.json").read_text())
    assert len(manifest["first_batch"]) == 2 * 5


def test_a_reward_model_is_made_and_rewards(tmp_path: Path) -> None:
    data, questions = tmp_path / "pairs.jsonl", tmp_path / "questions.csv"
    rows = [
        {"prompt": question, "chosen": f"{answer}, friend.", "rejected": answer}
        for question, answer in (("What is 2 plus 2?", "4"), ("What is a tuple?", "A sequence"))
    ]
    data.write_text("\n".join(map(json.dumps, rows)))
    questions.write_text("prompt,completion\nWhat is 2 plus 2?,4\nWhat is a tuple?,A sequence\n")
    arguments = ("--data", str(data), "--epochs", "3", "--hooks", "norm", "--run-id", "taste")
    said = shammah_json(tmp_path, "train", "reward", *arguments)
    assert said["metrics"]["after/accuracy"] == 1.0 and said["adapter"] is None
    drawn = ("--prompts", "2", "--group", "2", "--max-tokens", "12", "--epochs", "1")
    said = shammah_json(
        tmp_path, "train", "rl", "--data", str(questions), "--reward", "taste", *drawn
    )
    assert said["trained"]["steps"] == 1 and math.isfinite(said["metrics"]["before/reward"])
    taught = ("--teacher", "embedded", "--how", "on-policy", "--group", "2", "--max-tokens", "12")
    said = shammah_json(
        tmp_path, "train", "distill", "--data", str(questions), *taught, "--epochs", "1"
    )
    # Its own teacher: there is nothing to learn.
    assert abs(said["metrics"]["before/reverse_kl"]) < 0.05
    assert len(shammah_json(tmp_path, "adapters", "list")) == 2


def test_the_guide_has_no_command_that_is_none() -> None:
    guide = (ROOT / "docs" / "training.md").read_text("utf-8")
    commands = re.findall(r"^(?:\$ )?shammah (.+?)(?: +#.*)?$", guide, re.MULTILINE)
    assert len(commands) > 20
    for command in commands:
        options = parse(shlex.split(command))
        if kind := getattr(options, "recipe", None):
            made(kind, given(options, kind))


def test_gsm8k(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    source = shared_data("gsm8k")
    file = next(iter(sorted(source.rglob("*train*.jsonl"))))
    arguments = ("--lora.rank", "16", "--epochs", "1", "--limit", "40", "--max-length", "512")
    said = shammah_json(tmp_path, "train", "sft", "--data", str(file), *arguments)
    assert said["data"]["format"] == "gsm8k"
    assert (said["data"]["examples"], said["data"]["held_out"]) == (36, 4)
    assert said["metrics"]["after/nll_per_token"] < said["metrics"]["before/nll_per_token"]
    assert recipe_of(tmp_path / "runs" / said["run"]).kind == "sft"


def _weights(home: Path, run: str) -> str:
    """SHA-256 of what a run made."""
    file = home / "runs" / run / "adapter.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _about(home: Path, adapter: str) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((home / "adapters" / f"{adapter}.json").read_text())
    return about


def _toml(value: object) -> str:
    """JSON writes the texts, numbers, truths and lists of TOML; a table stands in a line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)
