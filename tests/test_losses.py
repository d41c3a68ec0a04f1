"""Losses by name against formulas worked out by hand in float64, and through the real client."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shammah.errors import TrainingError
from shammah.models.load import load_base_model
from shammah.ports.datum import Datum, ModelInput, TensorData
from shammah.ports.training_client import AdamParams
from shammah.settings import LoraSettings, ModelSettings, TrainingSettings
from shammah.training import losses
from shammah.training.datums import from_tokens
from shammah.training.head import dense_logprobs, shared_logprobs
from shammah.training.local_client import LocalTrainingClient
from shammah.training.losses.preference import bradley_terry, kl_baseline

Arrays = dict[str, np.ndarray[Any, Any]]


def sigmoid(x: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-x))


def value(spec: Any, logprobs: np.ndarray[Any, Any], arrays: Arrays) -> float:
    inputs = {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}
    return float(losses.get(spec).compute(torch.from_numpy(logprobs), inputs))


def sums(values: np.ndarray[Any, Any], example: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.array([values[example == number].sum() for number in range(example.max() + 1)])


# Each by hand: f(logprobs, arrays) with numpy alone.


def cross_entropy(p: Any, a: Arrays) -> float:
    return float(-(a["weights"] * p).sum())


def mse(p: Any, a: Arrays) -> float:
    return float((a["weights"] * (p - a["reference"]) ** 2).sum())


def importance(p: Any, a: Arrays) -> float:
    return float(-(a["weights"] * np.exp(p) / np.exp(a["logprobs"]) * a["advantages"]).sum())


def ppo(p: Any, a: Arrays) -> float:
    total = 0.0
    for w, now, before, gain in zip(a["weights"], p, a["logprobs"], a["advantages"], strict=True):
        ratio = math.exp(now - before)
        total -= w * min(ratio * gain, min(max(ratio, 0.8), 1.3) * gain)
    return total


def dpo(p: Any, a: Arrays) -> float:
    gain = sums(p - a["reference"], a["example"])
    weight = sums(a["weights"], a["example"])
    return float(
        sum(
            -weight[i] * math.log(sigmoid(0.3 * (gain[i] - gain[i + 1])))
            for i in range(0, len(gain), 2)
        )
    )


def ipo(p: Any, a: Arrays) -> float:
    gain = sums(p - a["reference"], a["example"]) / np.bincount(a["example"])
    weight = sums(a["weights"], a["example"])
    supervised = -(a["weights"] * p)[a["example"] % 2 == 0].sum()
    apart = [
        weight[i] * (gain[i] - gain[i + 1] - 1 / (2 * 0.3)) ** 2 for i in range(0, len(gain), 2)
    ]
    return float(sum(apart) + 0.5 * supervised)


def npo(p: Any, a: Arrays) -> float:
    gain = sums(p - a["reference"], a["example"])
    return float((sums(a["weights"], a["example"]) * 2 / 0.5 * np.log1p(np.exp(0.5 * gain))).sum())


def kto(p: Any, a: Arrays) -> float:
    gain = sums(p - a["reference"], a["example"])
    total = 0.0
    for w, gained, z, good in zip(
        sums(a["weights"], a["example"]), gain, a["kl"], a["desirable"], strict=True
    ):
        if good:
            total += w * 2.0 * (1 - sigmoid(0.1 * (gained - z)))
        else:
            total += w * (1 - sigmoid(0.1 * (z - gained)))
    return total


def bradley(p: Any, a: Arrays) -> float:
    score = sums(p * a["coefficients"], a["example"])
    weight, total = sums(a["weights"], a["example"]), 0.0
    for i in range(0, len(score), 2):
        apart = score[i] - score[i + 1] - a["margin"][i]
        total -= weight[i] * math.log(sigmoid(apart))
        total += weight[i] * 0.01 * (score[i] + score[i + 1]) ** 2
    return total


BY_HAND: dict[str, Callable[[Any, Arrays], float]] = {
    "cross_entropy": cross_entropy,
    "mse": mse,
    "importance_sampling": importance,
    "ppo:clip_high=0.3": ppo,
    "dpo:beta=0.3": dpo,
    "dpo:beta=0.3,variant=ipo,supervised=0.5": ipo,
    "npo:beta=0.5": npo,
    "kto:desirable_weight=2": kto,
    "reward_bradley_terry:center=0.01": bradley,
}


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], Arrays]:
    seed = draw(st.integers(0, 2**31))
    sizes = draw(
        st.lists(st.integers(1, 5), min_size=2, max_size=6).filter(lambda s: len(s) % 2 == 0)
    )
    random = np.random.default_rng(seed)
    count, examples = sum(sizes), len(sizes)
    logprobs = -random.gamma(2.0, 1.0, count)
    return logprobs, {
        "weights": random.uniform(0.05, 4.0, count),
        "example": np.repeat(np.arange(examples), sizes),
        "reference": -random.gamma(2.0, 1.0, count),
        "logprobs": logprobs + random.normal(0.0, 0.4, count),
        "advantages": random.normal(0.0, 1.0, count),
        "coefficients": random.normal(0.0, 1.0, count),
        "desirable": random.integers(0, 2, examples),
        "kl": random.uniform(0.0, 2.0, examples),
        "margin": random.uniform(0.0, 1.0, examples),
    }


@pytest.mark.parametrize("spec", BY_HAND)
@settings(max_examples=40, deadline=None)
@given(batch=batches())
def test_it_is_the_formula(spec: str, batch: tuple[np.ndarray[Any, Any], Arrays]) -> None:
    logprobs, arrays = batch
    assert value(spec, logprobs, arrays) == pytest.approx(
        BY_HAND[spec](logprobs, arrays), rel=1e-9, abs=1e-12
    )
    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    loss = losses.get(spec)
    leaf = torch.from_numpy(logprobs).requires_grad_()
    if not spec.startswith("ppo"):  # which has corners
        assert torch.autograd.gradcheck(lambda p: loss.compute(p, inputs), (leaf,))


# Divergences


def distributions(seed: int, positions: int, size: int) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    p, q = (np.log(random.dirichlet(np.ones(size), positions)) for _ in range(2))
    return p, q


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(2, 9), kept=st.integers(2, 9))
def test_divergence_of_whole_and_of_cut_distributions(
    direction: str, seed: int, size: int, kept: int
) -> None:
    p, q = distributions(seed, 3, size)
    first, second = (p, q) if direction == "reverse" else (q, p)
    weights = np.array([0.5, 1.0, 2.0])
    whole = (np.exp(first) * (first - second)).sum(-1)
    kept = min(kept, size)

    def given_(k: int) -> Arrays:
        return {
            "weights": np.repeat(weights / k, k),
            "example": np.zeros(3 * k, dtype=np.int64),
            "position": np.repeat(np.array([4, 7, 9]), k),
            "reference": q[:, :k].reshape(-1),
        }

    spec = f"kl_divergence:direction={direction}"
    found = value(spec, p.reshape(-1), given_(size))
    assert found == pytest.approx(float((weights * whole).sum()), rel=1e-6, abs=1e-9)
    cut = value(spec, p[:, :kept].reshape(-1), given_(kept))
    assert cut <= found + 1e-9, "what is put together can only come nearer"
    if kept < size:
        rest = (
            np.log(1 - np.exp(first[:, :kept]).sum(-1)),
            np.log(1 - np.exp(second[:, :kept]).sum(-1)),
        )
        by_hand = (np.exp(first[:, :kept]) * (first - second)[:, :kept]).sum(-1)
        by_hand += np.exp(rest[0]) * (rest[0] - rest[1])
        assert cut == pytest.approx(float((weights * by_hand).sum()), rel=1e-6, abs=1e-9)


def test_divergence_of_sampled_tokens_has_the_right_mean() -> None:
    p, q = distributions(5, 1, 6)
    arrays = {"weights": np.exp(p[0]), "example": np.zeros(6, np.int64), "reference": q[0]}
    # Each token once, weighing its probability: the expectation over samples.
    found = value("kl_divergence", p[0], arrays)
    assert found == pytest.approx(float((np.exp(p) * (p - q)).sum()), rel=1e-9)
    ratio = np.exp(q[0] - p[0])
    forward = value("kl_divergence:direction=forward", p[0], arrays)
    assert forward == pytest.approx(float((np.exp(q) * (q - p)).sum()), rel=1e-9)
    assert ratio.min() > 0


def test_the_baseline_and_scores_of_a_head() -> None:
    assert kl_baseline(torch.tensor([-1.0, 0.5])) == 0.0
    assert kl_baseline(torch.tensor([1.0, 0.5])) == 0.75
    chosen, rejected = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 1.0])
    wanted = [-math.log(sigmoid(0.5)), -math.log(sigmoid(-2.5))]
    found = bradley_terry(chosen, rejected, margin=0.5)
    assert found.tolist() == pytest.approx(wanted, rel=1e-6)


# By name


def test_names_and_parameters_are_checked() -> None:
    assert {"dpo", "kto", "topological", "citation_validity"} <= set(losses.names())
    with pytest.raises(TrainingError, match="no loss named 'dop'") as wrong:
        losses.get("dop")
    assert "Did you mean dpo?" in str(wrong.value.hint)
    with pytest.raises(TrainingError, match="dpo has no parameter 'betta'") as wrong:
        losses.get("dpo", betta=0.1)
    assert "Did you mean beta?" in str(wrong.value.hint)
    for spec in ("dpo:beta=-1", "dpo:beta=x", "dpo:variant=hinge", "ppo:clip_low=2"):
        with pytest.raises(TrainingError, match="cannot take"):
            losses.get(spec)
    with pytest.raises(TrainingError, match="cannot take 'beta'"):
        losses.get("dpo:beta")
    assert losses.get("dpo") is losses.get("dpo")


def test_a_loss_of_ones_own_has_a_name_too() -> None:
    def squared(logprobs: torch.Tensor, inputs: losses.Inputs) -> torch.Tensor:
        return (inputs["weights"] * logprobs**2).sum()

    def scaled(*, factor: float = 2.0) -> losses.Loss:
        return losses.Loss(lambda p, inputs: factor * squared(p, inputs))

    losses.register("squared_for_test", squared)
    losses.register("scaled_for_test", scaled)
    p, arrays = np.array([-2.0, -1.0]), {"weights": np.array([1.0, 3.0])}
    assert value("squared_for_test", p, arrays) == value(squared, p, arrays) == 7.0
    assert value("scaled_for_test:factor=3", p, arrays) == 21.0
    with pytest.raises(TrainingError, match="already"):
        losses.register("dpo", squared)
    with pytest.raises(TrainingError, match="neither a loss nor a function"):
        losses.register("odd", lambda one: one)


def test_a_mixture_is_the_sum_of_its_parts() -> None:
    random = np.random.default_rng(0)
    p = -random.gamma(2.0, 1.0, 6)
    arrays = {
        "weights": random.uniform(0.1, 1.0, 6),
        "example": np.repeat(np.arange(2), 3),
        "reference": -random.gamma(2.0, 1.0, 6),
    }
    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    parts = [value(name, p, arrays) for name in ("cross_entropy", "mse", "dpo")]
    mixed = losses.composite(["cross_entropy", losses.get("mse"), "dpo"], [0.5, 0.2, 2.0])
    total, told = mixed.evaluate(torch.from_numpy(p), inputs)
    assert float(total) == pytest.approx(0.5 * parts[0] + 0.2 * parts[1] + 2 * parts[2])
    assert mixed.members == 2 and set(mixed.needs) == {"reference"}
    assert float(told["dpo"][0]) == pytest.approx(parts[2]) and "dpo/accuracy" in told
    text = losses.get("0.5 cross_entropy, 0.2*mse")
    assert float(text.compute(torch.from_numpy(p), inputs)) == pytest.approx(
        0.5 * parts[0] + 0.2 * parts[1]
    )
    for wrong in ("0.5 cross_entropy, mse", "0.5 nothing"):
        with pytest.raises(TrainingError):
            losses.get(wrong)
    with pytest.raises(TrainingError, match="no mixture"):
        losses.composite(["mse"], [1.0, 2.0])
    with pytest.raises(TrainingError, match="twice"):
        losses.composite(["mse", "mse"])


# Through the model


def test_many_targets_at_a_position_are_those_of_all_logits() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(37, 8, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(50, 8, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    rows, targets = torch.randint(0, 37, (200,)), torch.randint(0, 50, (200,))
    given_ = torch.randn(200, dtype=torch.float64)
    wanted, wanted_greedy = dense_logprobs((hidden @ weight.t() + bias)[rows], targets)
    # `dense_logprobs` is of float32.
    exact = torch.log_softmax((hidden @ weight.t() + bias)[rows], -1)[torch.arange(200), targets]
    (gradient,) = torch.autograd.grad((exact * given_).sum(), hidden)
    for chunk in (5, 16, 64):
        found, greedy = shared_logprobs(hidden, weight, bias, rows, targets, chunk=chunk)
        torch.testing.assert_close(found, exact)
        torch.testing.assert_close(found.float(), wanted.float(), atol=1e-5, rtol=1e-5)
        assert torch.equal(greedy, wanted_greedy)
        (own,) = torch.autograd.grad((found * given_).sum(), hidden)
        torch.testing.assert_close(own, gradient)


def client_of(folder: Path) -> LocalTrainingClient:
    path = tiny_models.build("qwen2", folder)
    base = load_base_model(ModelSettings(name=str(path), device="cpu", dtype="fp32"))
    return LocalTrainingClient(base, LoraSettings(rank=4), TrainingSettings())


async def test_divergence_from_the_base_is_nothing_and_then_grows(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    vocabulary = client.base.model.get_input_embeddings().weight.shape[0]
    everything = np.tile(np.arange(vocabulary), (5, 1))
    datum = Datum(
        ModelInput.of([3, 1, 4, 1, 5]),
        {
            "target_tokens": TensorData(everything),
            "weights": TensorData(np.full(everything.shape, 1 / vocabulary, dtype=np.float32)),
        },
    )
    (before,) = (await client.forward([datum], "cross_entropy")).logprobs
    np.testing.assert_allclose(np.exp(before.astype(np.float64)).sum(-1), 1.0, rtol=1e-4)
    held = replace(datum, loss_fn_inputs={**datum.loss_fn_inputs, "reference": TensorData(before)})
    same = await client.forward([held], "kl_divergence")
    assert abs(same.loss) < 1e-5 and same.weight == pytest.approx(5.0, rel=1e-4)
    moved = from_tokens([3, 1, 4, 1, 5, 9], [0.0] * 3 + [1.0] * 3)
    for _ in range(5):
        await client.forward_backward([moved])
        await client.optim_step(AdamParams(learning_rate=1e-2))
    apart = await client.forward([held], "kl_divergence")
    (after,) = (await client.forward([datum], "cross_entropy")).logprobs
    by_hand = (np.exp(after.astype(np.float64)) * (after - before)).sum()
    assert apart.loss == pytest.approx(by_hand, rel=1e-3) and apart.loss > 0.1
    assert apart.metrics["kl"] == pytest.approx(apart.mean_loss, rel=1e-4)
    for _ in range(30):
        await client.forward_backward([held], "kl_divergence")
        await client.optim_step(AdamParams(learning_rate=5e-3))
    assert (await client.forward([held], "kl_divergence")).loss < 0.2 * apart.loss


async def test_numbers_of_whole_answers_reach_the_loss(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    plain = [from_tokens(list(range(n, n + 8)), [0.0] * 4 + [1.0] * 4) for n in (3, 30, 60)]
    seen = await client.forward(plain)
    datums = [
        replace(
            datum,
            loss_fn_inputs={
                **datum.loss_fn_inputs,
                "reference": TensorData(logprobs - np.float32(1.0)),
                "desirable": TensorData.ints([number % 2]),
                "kl": TensorData(np.asarray(0.5, dtype=np.float32)),
            },
        )
        for number, (datum, logprobs) in enumerate(zip(plain, seen.logprobs, strict=True))
    ]
    client.micro_batch_tokens = 10  # a pack for each
    found = await client.forward_backward(datums, "kto:beta=0.2")
    wanted = 2 * (1 - sigmoid(0.2 * (0.5 - 4))) + (1 - sigmoid(0.2 * (4 - 0.5)))
    assert found.loss == pytest.approx(float(wanted), rel=1e-4)
    assert found.metrics["desirable"] == pytest.approx(4.0, rel=1e-4)
    with pytest.raises(TrainingError, match="needs 'desirable'"):
        await client.forward(
            [
                replace(
                    d,
                    loss_fn_inputs={k: v for k, v in d.loss_fn_inputs.items() if k != "desirable"},
                )
                for d in datums
            ],
            "kto",
        )
