"""The best checkpoint of a run: kept by its figure, found again, evaluated."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from command import shammah

from shammah.adapters.weights import load_checked
from shammah.errors import TrainingError, UsageError
from shammah.messages import assistant, user
from shammah.models.load import BaseModel, load_base_model
from shammah.renderers.registry import renderer_for
from shammah.settings import LoraSettings, ModelSettings, TrainingSettings
from shammah.training.best import BEST, BestCheckpoint, best_in
from shammah.training.datums import datum, from_tokens
from shammah.training.examples import supervised
from shammah.training.local_client import LocalTrainingClient
from shammah.training.supervised import train_supervised

SETTINGS = TrainingSettings(
    learning_rate=1e-2, epochs=20, max_steps=9, batch_size=2, replay=0, hold=0, warmup_steps=0,
    stop_when_learned=False,
)  # fmt: skip


def tiny(folder: Path) -> LocalTrainingClient:
    path = tiny_models.build("qwen2", folder)
    base = load_base_model(ModelSettings(name=str(path), device="cpu", dtype="fp32"))
    return LocalTrainingClient(base, LoraSettings(rank=2, rslora=True), SETTINGS)


async def train(client: LocalTrainingClient, best: BestCheckpoint, scores: list[float]) -> Any:
    """Evaluated after each second step, and once more at the end."""
    kept: dict[int, dict[str, torch.Tensor]] = {}
    events: list[dict[str, Any]] = []
    given = iter(scores)

    async def evaluate() -> Mapping[str, float]:
        step = (await client.info()).step
        kept[step] = {n: p.detach().clone() for n, p in client.lora.named_parameters().items()}
        figures = {"nll": next(given), "step": float(step)}
        await best.offer(client, figures)
        return figures

    example = supervised(from_tokens(list(range(40, 60)), [0.0] * 8 + [1.0] * 12))
    await train_supervised(
        client, [example], [1.0], [], SETTINGS,
        on_event=events.append, evaluate=evaluate, evaluate_every=2,
    )  # fmt: skip
    return kept, [event for event in events if event["event"] == "evaluation"]


async def test_the_best_of_a_run_is_kept_and_nothing_else(tmp_path: Path) -> None:
    client = tiny(tmp_path / "model")
    best = BestCheckpoint(tmp_path / "best", "nll", lower=True)
    assert best.kept is None
    kept, events = await train(client, best, [3.0, 1.0, float("nan"), 1.0, 2.0])
    assert [event["step"] for event in events] == [2, 4, 6, 8, 9]
    record = best_in(tmp_path / "best")
    assert record is not None and record == best.kept
    assert (record.value, record.step, record.figures) == (1.0, 4, {"nll": 1.0, "step": 4.0})
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == [BEST, record.file]
    shape, path = client.base.shape, tmp_path / "best" / record.file
    weights = load_checked(path, record.adapter, shape)
    assert weights.scaling == pytest.approx(client.lora.alpha / 2**0.5)
    for module, (a, _) in weights.modules.items():
        torch.testing.assert_close(a, kept[4][f"base_model.model.{module}.lora_A.weight"])
    # A run that goes on compares with it.
    again = BestCheckpoint(tmp_path / "best", "nll", lower=True)
    assert not await again.offer(client, {"nll": 1.5})
    assert await again.offer(client, {"nll": 0.5})
    assert [path.suffix for path in (tmp_path / "best").glob("best_*")] == [".safetensors"]
    with pytest.raises(UsageError, match="no figure 'nll'"):
        await again.offer(client, {"loss": 1.0})
    with pytest.raises(UsageError, match="chosen by nll"):
        BestCheckpoint(tmp_path / "best", "accuracy", lower=False)
    (tmp_path / "best" / BEST).write_text("{}")
    with pytest.raises(TrainingError, match="cannot be read"):
        best_in(tmp_path / "best")
    client.close()


async def test_a_step_that_is_better_again_replaces_its_file(tmp_path: Path) -> None:
    client = tiny(tmp_path / "model")
    best = BestCheckpoint(tmp_path / "best", "accuracy", lower=False)
    for value, better in ((0.5, True), (0.4, False), (0.6, True), (0.7, True)):
        assert await best.offer(client, {"accuracy": value}) is better
        assert best.kept is not None and (tmp_path / "best" / best.kept.file).is_file()
    assert len(list((tmp_path / "best").glob("best_*"))) == 1
    client.close()


async def learn_hello(base: BaseModel, best: BestCheckpoint) -> None:
    renderer = renderer_for(base.tokenizer, base.stop_tokens)
    client = LocalTrainingClient(base, LoraSettings(rank=4), SETTINGS)
    lesson = datum(renderer.supervised((user("Hello"), assistant("Zeno."))))

    async def evaluate() -> Mapping[str, float]:
        figures = {"learned": float((await client.forward([lesson])).greedy[0])}
        await best.offer(client, figures)
        return figures

    try:
        await train_supervised(
            client, [supervised(lesson)], [1.0], [],
            SETTINGS.model_copy(update={"max_steps": 20}), evaluate=evaluate, evaluate_every=5,
        )  # fmt: skip
    finally:
        client.close()


def test_eval_asks_the_best_checkpoint_of_a_run(embedded_model: BaseModel, tmp_path: Path) -> None:
    best = BestCheckpoint(tmp_path / "job" / "checkpoint" / "best", "learned", lower=False)
    asyncio.run(learn_hello(embedded_model, best))
    assert best.kept is not None and best.kept.value == 1.0
    pairs, home = tmp_path / "pairs.jsonl", tmp_path / "home"
    pairs.write_text(json.dumps({"prompt": "Hello", "completion": "Zeno."}) + "\n")
    wanted = ["eval", "--data", str(pairs), "--scorers", "exact_match", "--dtype", "fp32"]
    done = shammah(
        home, *wanted, "--run", str(tmp_path / "job"), "--against", "base", "--json",
        "--require", "exact_match>=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"learned 1 after step {best.kept.step}" in done.stderr
    told = json.loads(done.stdout)
    assert told["adapter"] == f"job/best_{best.kept.step:06d}"
    assert told["against_report"]["metrics"][0]["mean"] == 0
    done = shammah(home, *wanted, "--run", str(tmp_path / "nothing"))
    assert done.returncode == 7 and "kept no best checkpoint" in done.stderr
    done = shammah(home, *wanted, "--run", str(tmp_path / "job"), "--adapter", "base")
    assert done.returncode == 2 and "do not go together" in done.stderr
