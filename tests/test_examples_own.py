"""The examples in scripts/examples with rewards, teachers and code of one's own."""

from __future__ import annotations

import asyncio
import csv
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from command import ROOT, shammah, shammah_json

from shammah import Distillation, Paths
from shammah.errors import WorkflowError
from shammah.own_code import own_module
from shammah.recipes.launching import launch, resumed

EXAMPLES = ROOT / "scripts" / "examples"
FAQ = (
    ("What is my project called?", "Your project is called Zeno."),
    ("Which port does my server use?", "Your server listens on port 8087."),
    ("Who reviews my pull requests?", "Marta reviews your pull requests."),
)


def example(name: str) -> Any:
    return own_module(str(EXAMPLES / f"{name}.py"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return Paths(tmp_path / "home", tmp_path / "home").ensure().data


@pytest.fixture
def faq(tmp_path: Path) -> str:
    file = tmp_path / "faq.csv"
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([("prompt", "completion"), *FAQ])
    return str(file)


def rows_of(folder: Path, rows: list[dict[str, str]]) -> str:
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def sft(home: Path, data: str, run: str, *others: str) -> list[dict[str, Any]]:
    """Train, and what was measured at each step."""
    done = shammah(
        home, "train", "sft", "--data", data, "--max-steps", "6", "--run-id", run, *others
    )
    assert done.returncode == 0, done.stderr
    lines = (home / "runs" / run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


# --- rewards ----------------------------------------------------------------------------------


def test_a_reward_of_ones_own_rises(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(example("own_reward").main(home, "", 5))
    printed = capsys.readouterr().out
    figures = {
        name: (float(before), float(after))
        for name, before, after in re.findall(r"^(\S+) +(\S+) -> (\S+)$", printed, re.M)
    }
    before, after = figures["reward"]
    assert after > before + 0.05, printed
    assert figures["reward/short"][1] > figures["reward/short"][0]
    assert printed.count("before:") == 2


def test_a_reward_from_the_shell(home: Path, tmp_path: Path) -> None:
    module = example("own_reward")
    data = rows_of(tmp_path, list(module.ROWS))
    options = ["--max-tokens", "16", "--max-steps", "1", "--prompts", "1", "--group", "2"]
    reward = "scripts/examples/own_reward.py:reward"
    found = shammah_json(
        home, "train", "rl", "--data", data, "--reward", reward, *options, "--run-id", "short"
    )
    assert {"before/reward/right", "after/reward/short"} <= found["metrics"].keys()
    # Gone on with from anywhere.
    manifest = json.loads((home / "runs" / "short" / "manifest.json").read_text())
    assert manifest["config"]["reward"] == f"{ROOT / reward}"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("return example.metadata['x']", "failed: KeyError: 'x'"),
        ("return None", "gave None"),
        ("return {'a': 'much'}", "gave {'a': 'much'}"),
        ("return float('nan')", "finite"),
    ],
)
def test_a_bad_reward_is_named(home: Path, tmp_path: Path, code: str, said: str) -> None:
    own = tmp_path / "own.py"
    own.write_text(f"async def reward(answer, example):\n    {code}\n")
    data = rows_of(tmp_path, [{"prompt": "hello"}])
    options = ["--max-tokens", "2", "--max-steps", "1", "--reward", f"{own}:reward"]
    done = shammah(home, "train", "rl", "--data", data, *options)
    assert done.returncode != 0 and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_a_reward_model_is_trained_for(home: Path, tmp_path: Path) -> None:
    code = "\n\n```python\nprint(1)\n```"
    pairs = [
        {"prompt": row["prompt"], "chosen": "Use it.", "rejected": f"Use it.{code}"}
        for row in example("own_reward").ROWS
    ]
    judged = shammah(
        home, "train", "reward", "--data", rows_of(tmp_path, pairs), "--max-steps", "8",
        "--run-id", "judge", "--hooks", "norm",
    )  # fmt: skip
    assert judged.returncode == 0, judged.stderr
    assert "shammah train rl --reward judge" in judged.stdout
    lines = (home / "runs" / "judge" / "metrics.jsonl").read_text().splitlines()
    last = [json.loads(line) for line in lines if "eval/accuracy" in line][-1]
    assert last["eval/accuracy"] == 1.0 and last["eval/margin"] > 0.5
    asked = rows_of(tmp_path, [{"prompt": pair["prompt"]} for pair in pairs[:2]])
    found = shammah_json(
        home, "train", "rl", "--data", asked, "--reward", "judge", "--max-tokens", "40",
        "--max-steps", "4", "--prompts", "2", "--group", "6", "--evaluate-every", "4",
    )  # fmt: skip
    assert found["metrics"]["after/reward"] >= found["metrics"]["before/reward"]

    # The reward is the judge as it was kept.
    from shammah.messages import assistant, user
    from shammah.models.load import load_base_model
    from shammah.renderers.registry import renderer_for
    from shammah.settings import ModelSettings
    from shammah.training.reward_model import RewardModel

    base = load_base_model(ModelSettings())
    renderer = renderer_for(base.tokenizer, base.stop_tokens)
    model = RewardModel.load(base, renderer, home / "runs" / "judge" / "adapter.safetensors")
    scores = [
        float(
            model.score([(user(pair["prompt"]), assistant(pair[which])) for pair in pairs]).mean()
        )
        for which in ("chosen", "rejected")
    ]
    assert scores == pytest.approx(
        [last["eval/score_chosen"], last["eval/score_rejected"]], abs=0.02
    )


# --- a teacher behind HTTP --------------------------------------------------------------------


def test_the_student_answers_as_the_server(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = example("distill_from_server")
    asyncio.run(module.main(home, "", 20))
    printed = capsys.readouterr().out
    assert "asked 5 questions" in printed
    before, after = map(float, re.findall(r"loss (\S+) -> (\S+)", printed)[0])
    assert after < 0.2 < before
    for answer in module.HOURS.values():
        assert f"\n  {answer}\n" in printed


class Failing:
    """A server that answers so many questions and then fails, until it is well again."""

    def __init__(self, healthy: int) -> None:
        self.left = healthy
        self.answered: list[str] = []
        self.keys: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                question = body["messages"][-1]["content"]
                outer.keys.append(self.headers.get("authorization"))
                status, message = 500, {"error": {"message": "the teacher has gone"}}
                if outer.left > 0:
                    outer.left -= 1
                    outer.answered.append(question)
                    said = {"role": "assistant", "content": f"You asked: {question}"}
                    cut = "length" if "7" in question else "stop"
                    status, message = 200, {"choices": [{"message": said, "finish_reason": cut}]}
                data = json.dumps(message).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"


async def test_a_server_that_dies_is_asked_only_what_is_missing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shammah.backends.openai_llm.FIRST_WAIT", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-everybody")
    server = Failing(healthy=6)
    questions = [f"what is {number}?" for number in range(10)]
    rows = [{"prompt": each} for each in [*questions, questions[0]]]
    recipe = Distillation(
        data=rows_of(tmp_path, rows), teacher=server.url, teacher_model="t", max_steps=1
    )
    paths = Paths(home, home)
    with pytest.raises(WorkflowError) as failed:
        await launch(recipe, paths=paths, run_id="taught")
    assert failed.value.stage == "ask"
    assert "the teacher has gone" in failed.value.message and server.url in failed.value.message
    kept = home / "runs" / "taught" / "teacher.jsonl"
    assert len(kept.read_text().splitlines()) == len(server.answered) == 6
    # As a kill in the middle of a write would leave it.
    with kept.open("a") as stream:
        stream.write('["torn')
    server.left = 100
    _, result = await resumed("taught", paths=paths)
    assert sorted(server.answered) == sorted(questions)
    assert result.context.state["asked"] == 10
    # What was cut off is not learned, and told of.
    assert result.context.state["data"]["unanswered"] == 1
    assert len(kept.read_text().splitlines()) == 10
    # The key of one server is not for another.
    assert set(server.keys) == {None}


# --- code of one's own ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["loss", "hook", "logger", "renderer"])
def test_each_is_short(name: str) -> None:
    assert len((EXAMPLES / f"custom_{name}.py").read_text().splitlines()) < 30


def test_a_loss_of_ones_own(home: Path, faq: str) -> None:
    figures = sft(
        home, faq, "loss", "--plugins", "scripts/examples/custom_loss.py",
        "--loss", "0.8 focal(gamma=2), 0.2 cross_entropy",
    )  # fmt: skip
    steps = [each for each in figures if "focal" in each]
    assert len(steps) == 6
    for each in steps:
        mixed = 0.8 * each["focal"] + 0.2 * each["cross_entropy"]
        assert each["loss"] == pytest.approx(mixed, rel=1e-4)
        assert each["focal"] < each["cross_entropy"]
    assert steps[-1]["loss"] < 0.5 * steps[0]["loss"]
    assert steps[-1]["focal/known"] > steps[0]["focal/known"]


def test_a_hook_and_a_logger_of_ones_own(home: Path, faq: str) -> None:
    plugins = "scripts/examples/custom_hook.py,scripts/examples/custom_logger.py"
    sft(home, faq, "seen", "--plugins", plugins, "--hooks", "norm,halves", "--loggers", "csv")
    with (home / "runs" / "seen" / "figures.csv").open(newline="") as stream:
        rows = [(int(step), name, float(value)) for step, name, value in csv.reader(stream)]
    shares = {step: value for step, name, value in rows if name == "gradients/b_share"}
    # B begins at zero, so that at first nothing reaches A.
    assert list(shares) == [1, 2, 3, 4, 5, 6]
    assert shares[1] == 1.0 and all(0.0 < shares[step] < 1.0 for step in range(2, 7))
    losses = [value for _, name, value in rows if name == "loss"]
    assert len(losses) == 6 and losses[-1] < losses[0]


def test_a_renderer_of_ones_own(home: Path, faq: str) -> None:
    own = f"{EXAMPLES / 'custom_renderer.py'}:Briefed"
    sft(home, faq, "first", "--renderer", "briefed", "--activate",
        "--plugins", "scripts/examples/custom_renderer.py",
        "--max-steps", "12", "--learning-rate", "0.004")  # fmt: skip
    manifest = json.loads((home / "runs" / "first" / "manifest.json").read_text())
    text = manifest["first_samples"][0]["text"]
    assert text.startswith("<|im_start|>system\nAnswer in a line.<|im_end|>\n<|im_start|>user\n")
    assert f"⟦{FAQ[0][1]}<|im_end|>⟧" in text
    (about,) = (home / "adapters").glob("*.json")
    assert json.loads(about.read_text())["renderer"] == "briefed"
    # The chat says that it writes otherwise, and writes so where it is told to.
    asked = shammah(home, "ask", FAQ[0][0])
    assert "as `briefed` writes them" in asked.stderr and "model.renderer" in asked.stderr
    asked = shammah(home, "ask", "--renderer", own, FAQ[0][0])
    assert asked.stdout.strip() == FAQ[0][1] and "briefed" not in asked.stderr
    # The same without a plugin.
    wrong = shammah(home, "ask", "--renderer", f"{own}er", FAQ[0][0])
    assert wrong.returncode != 0 and "has no function Briefeder" in wrong.stderr


def test_feedback_in_rounds(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = example("feedback_rounds")
    data = rows_of(
        tmp_path,
        [
            {"query": query, "rating": "critical", "response": "No.", "correction": told}
            for query, told in module.LESSONS[:2]
        ],
    )
    asyncio.run(module.main(home, data, 2, {**module.SHORT, **module.FORGETFUL}))
    printed = capsys.readouterr().out
    assert printed.startswith("round 1: 100% of all lessons so far are held")
    assert "in the library: lora_adapter_" in printed
