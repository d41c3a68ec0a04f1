"""Learning from pairs: what rises, what a step's gradient is, and that a resume changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from torch.nn.functional import logsigmoid

from shammah.datasets.formatters.base import ChatExample
from shammah.errors import TrainingError
from shammah.messages import assistant, user
from shammah.models.anchors import read_anchors
from shammah.models.load import BaseModel, load_base_model
from shammah.ports.training_client import AdamParams
from shammah.renderers.registry import renderer_for
from shammah.settings import LoraSettings, ModelSettings, TrainingSettings
from shammah.training.datums import from_tokens
from shammah.training.local_client import LocalTrainingClient
from shammah.training.loops.engine import Callbacks, LoopResult, run_loop
from shammah.training.loops.pairs import Pair, Windows, pairs_of
from shammah.training.loops.preference import PreferenceMethod
from shammah.training.loops.settings import LoopSettings

EMBEDDED = Path(tiny_models.__file__).parents[1] / "shammah" / "models" / "embedded"


def short_pairs(count: int, seed: int = 0) -> list[Pair]:
    """Pairs of six random tokens after six of a prompt."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        prompt = random.integers(0, 250, 6).tolist()
        answers = [random.integers(0, 250, size).tolist() for size in (6, 4)]
        one, other = (
            from_tokens(prompt + answer, [0.0] * 6 + [1.0] * len(answer)) for answer in answers
        )
        found.append(Pair(one, other))
    return found


def tiny_client(folder: Path, **changes: Any) -> LocalTrainingClient:
    path = tiny_models.build("qwen2", folder)
    base = load_base_model(ModelSettings(name=str(path), device="cpu", dtype="fp32"))
    lora = LoraSettings(rank=4, layers=1.0, **changes)
    return LocalTrainingClient(base, lora, TrainingSettings(micro_batch_tokens=48))


def plain_examples(count: int) -> list[ChatExample]:
    """Anchors whose answers are to be said without capitals, rather than as they are."""
    anchors = [each for each in read_anchors(EMBEDDED) if 20 < len(each.answer) < 90]
    return [
        ChatExample(
            (user(each.query), assistant(each.answer.lower())),
            (user(each.query), assistant(each.answer)),
        )
        for each in anchors
        if each.answer != each.answer.lower()
    ][:count]


async def test_margin_and_held_out_accuracy_rise(embedded_model: BaseModel) -> None:
    renderer = renderer_for(embedded_model.tokenizer, embedded_model.stop_tokens)
    pairs = pairs_of(plain_examples(64), renderer)
    client = LocalTrainingClient(embedded_model, LoraSettings(), TrainingSettings())
    steps: list[dict[str, Any]] = []
    try:
        result = await run_loop(
            client,
            PreferenceMethod(pairs[:48], pairs[48:], batch_size=8),
            LoopSettings(learning_rate=4e-3, epochs=3),
            callbacks=Callbacks(on_step_end=[steps.append]),
        )
    finally:
        client.close()
    before, after = result.before, result.figures
    assert before["margin"] == before["accuracy"] == before["kl"] == 0
    assert before["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert after["accuracy"] >= 0.8 and after["margin"] > 2
    assert after["reward_chosen"] - after["reward_rejected"] == pytest.approx(after["margin"])
    assert after["loss"] < 0.6 and 0 < after["kl"] < 1
    assert steps[-1]["margin"] > steps[1]["margin"] > 0
    assert {"accuracy", "reward_chosen", "reward_rejected", "kl"} <= steps[-1].keys()


def plain_dpo(model: Any, pairs: Sequence[Pair], beta: float) -> torch.Tensor:
    """DPO's mean loss as its paper writes it, one sequence at a time, the adapter off for the
    reference."""

    def logprob(datum: Any) -> torch.Tensor:
        logits = model(input_ids=torch.tensor([datum.model_input.tokens])).logits[0]
        targets = torch.from_numpy(datum.loss_fn_inputs["target_tokens"].data)
        said = torch.from_numpy(datum.loss_fn_inputs["weights"].data) > 0
        return torch.log_softmax(logits, -1)[torch.arange(len(targets)), targets][said].sum()

    losses = []
    for pair in pairs:
        with torch.no_grad(), model.disable_adapter():
            was = [logprob(each) for each in (pair.chosen, pair.rejected)]
        now = [logprob(each) for each in (pair.chosen, pair.rejected)]
        losses.append(-logsigmoid(beta * ((now[0] - was[0]) - (now[1] - was[1]))))
    return torch.stack(losses).mean()


async def test_the_gradient_is_that_of_plain_torch_and_peft(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    client = tiny_client(tmp_path / "model")
    pairs = short_pairs(6)
    method = PreferenceMethod(pairs, loss="dpo:beta=0.5", batch_size=2, accumulation=2, seed=3)
    await method.step(client, 0)
    await client.optim_step(AdamParams(learning_rate=0.02))
    ours = client.lora.named_parameters()
    fresh = load_base_model(ModelSettings(name=str(tmp_path / "model"), device="cpu", dtype="fp32"))
    config = LoraConfig(
        r=client.lora.rank, lora_alpha=client.lora.alpha, target_modules=list(client.lora.layers)
    )
    plain: Any = get_peft_model(copy.deepcopy(fresh.model), config)
    theirs = {
        name.replace(".default.", "."): parameter
        for name, parameter in plain.named_parameters()
        if parameter.requires_grad
    }
    assert theirs.keys() == ours.keys()
    with torch.no_grad():
        for name, parameter in theirs.items():
            parameter.copy_(ours[name])
    found = await method.step(client, 1)
    window = np.concatenate(Windows(6, 2, 2, 3).batches(1))
    assert len(window) == 3  # an uneven window: the mean is over its pairs all the same
    loss = plain_dpo(plain, [pairs[index] for index in window], 0.5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert found.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    for name, parameter in theirs.items():
        given = ours[name].grad
        assert given is not None and parameter.grad is not None
        torch.testing.assert_close(given / len(window), parameter.grad, rtol=1e-3, atol=2e-6)
    expected = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in theirs.values()]))
    stepped = await client.optim_step(AdamParams(learning_rate=0.02))
    assert stepped.grad_norm == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("loss", ["dpo:variant=ipo", "kto"])
async def test_accumulation_changes_nothing(loss: str, tmp_path: Path) -> None:
    found = []
    for size, accumulation in ((8, 1), (2, 4), (3, 3)):
        client = tiny_client(tmp_path / "model")
        method = PreferenceMethod(
            short_pairs(8), loss=loss, batch_size=size, accumulation=accumulation
        )
        for number in range(3):
            step = await method.step(client, number)
            stepped = await client.optim_step(AdamParams(learning_rate=0.01))
        found.append((step.loss, stepped.grad_norm, step.measures["margin"]))
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-3)


async def run(
    loss: str, model: Path, folder: Path | None, stop_after: int | None = None
) -> LoopResult:
    looks = 0

    def should_stop() -> bool:
        nonlocal looks
        looks += 1
        return stop_after is not None and looks > stop_after

    return await run_loop(
        tiny_client(model, dropout=0.1),
        PreferenceMethod(short_pairs(7), short_pairs(3, 1), loss=loss, batch_size=2, seed=5),
        LoopSettings(learning_rate=5e-3, epochs=2, evaluate_every=3),
        folder=folder,
        should_stop=should_stop,
    )


@pytest.mark.parametrize(
    "loss", ["dpo", "kto", "npo", "dpo:variant=ipo,supervised=0.3", "1 dpo, 0.2 cross_entropy"]
)
async def test_stopping_and_going_on_changes_nothing(loss: str, tmp_path: Path) -> None:
    whole = await run(loss, tmp_path / "model", None)
    assert whole.steps == 8 and whole.figures["margin"] != 0
    for looks in (0, 5):
        folder = tmp_path / f"state{looks}"
        first = await run(loss, tmp_path / "model", folder, looks)
        assert first.stopped and first.steps == looks
        second = await run(loss, tmp_path / "model", folder)
        assert first.losses + second.losses == whole.losses
        assert second.figures == whole.figures
    with pytest.raises(TrainingError, match="another method, material"):
        await run("dpo:beta=0.7", tmp_path / "model", tmp_path / "state5")


async def test_each_loss_moves_what_it_is_to_move(tmp_path: Path) -> None:
    for loss in ("dpo", "kto", "npo", "dpo:supervised=1.0"):
        client = tiny_client(tmp_path / "model")
        pairs = short_pairs(4)
        method = PreferenceMethod(pairs, pairs, loss=loss, batch_size=4)
        settings = LoopSettings(learning_rate=5e-3, epochs=12)
        result = await run_loop(client, method, settings)
        assert result.figures["loss"] < result.before["loss"]
        assert result.figures["reward_rejected"] < 0
        if loss != "npo":
            assert result.figures["margin"] > 1 and result.figures["accuracy"] == 1
        if "supervised" in loss or loss == "kto":
            assert result.figures["reward_chosen"] > 0


def test_what_cannot_be_learned_from_is_refused() -> None:
    pairs = short_pairs(2)
    with pytest.raises(TrainingError, match="no loss of preferences"):
        PreferenceMethod(pairs, loss="cross_entropy")
    with pytest.raises(TrainingError, match="count of 0"):
        PreferenceMethod([])
    alone = ChatExample((user("Who?"), assistant("I.")), place="lines.jsonl:4")
    with pytest.raises(TrainingError, match=r"no rejected answer \(lines.jsonl:4\)"):
        pairs_of([alone], None)  # type: ignore[arg-type]


def test_windows_hold_every_pair_once() -> None:
    windows = Windows(11, 3, 2, 4)
    for epoch in range(3):
        numbers = range(epoch * windows.per_epoch, (epoch + 1) * windows.per_epoch)
        batches = [batch for number in numbers for batch in windows.batches(number)]
        assert sorted(np.concatenate(batches)) == list(range(11))
        assert max(map(len, batches)) <= 3
    assert [b.tolist() for b in windows.batches(0)] != [b.tolist() for b in windows.batches(2)]
