"""The price of changing what layers say: by the definition, and what it does to training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shammah.learning.neighbours import chosen
from shammah.models.load import load_base_model
from shammah.ports.training_client import AdamParams
from shammah.settings import LoraSettings, ModelSettings, TrainingSettings
from shammah.training.datums import from_tokens
from shammah.training.holding import Holding, moments_of
from shammah.training.local_client import LocalTrainingClient
from shammah.training.lora import attach_lora, linear_modules


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_the_price_is_the_mean_change_of_the_outputs(kind: str, tmp_path: Path) -> None:
    path = tiny_models.build(kind, tmp_path)
    base = load_base_model(ModelSettings(name=str(path), device="cpu", dtype="fp32"))
    ids = torch.randint(0, 250, (3, 20), generator=torch.Generator().manual_seed(1))
    given: dict[str, torch.Tensor] = {}
    handles = [
        base.model.get_submodule(name).register_forward_pre_hook(
            lambda layer, args, name=name: given.__setitem__(
                name, args[0].reshape(-1, args[0].shape[-1])
            )
        )
        for name in linear_modules(base.model)
    ]
    with torch.no_grad(), moments_of(base.model) as moments:
        base.model(ids)
    for handle in handles:
        handle.remove()
    lora = attach_lora(base.model, LoraSettings(rank=3, target_modules="all-linear"))
    generator = torch.Generator().manual_seed(2)
    for parameter in lora.named_parameters().values():
        parameter.data.normal_(std=0.1, generator=generator)
    holding = Holding(lora, moments)

    expected = torch.zeros((), dtype=torch.float64)
    for name in lora.layers:
        a, b = (factor.double() for factor in lora.factors(name))
        layer = lora.layers[name].get_base_layer()
        weight = (
            layer.weight.double().t() if linear_modules_transposed(layer) else layer.weight.double()
        )
        x = given[name].double()
        change = lora.scaling * x @ a.t() @ b.t()
        expected = expected + change.square().sum() / (x @ weight.t()).square().sum()
    assert holding.price() == pytest.approx(float(expected.detach()), rel=1e-4)

    parameters = list(lora.named_parameters().values())
    slow = torch.autograd.grad(2.5 * expected, parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    holding.add_gradients(2.5)
    for parameter, gradient in zip(parameters, slow, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient.float() + 1.0, rtol=1e-3, atol=1e-5)
    lora.detach()


def linear_modules_transposed(layer: torch.nn.Module) -> bool:
    return type(layer).__name__ == "Conv1D"


async def test_a_high_price_holds_the_model(tmp_path: Path) -> None:
    path = tiny_models.build("qwen2", tmp_path)
    base = load_base_model(ModelSettings(name=str(path), device="cpu", dtype="fp32"))
    datums = [
        from_tokens(
            np.random.default_rng(seed).integers(0, 250, 12).tolist(), [0.0] * 6 + [1.0] * 6
        )
        for seed in range(4)
    ]
    with torch.no_grad(), moments_of(base.model) as moments:
        base.model(torch.tensor([datum.model_input.tokens for datum in datums]))
    prices = []
    for hold in (0.0, 100.0):
        client = LocalTrainingClient(
            base, LoraSettings(rank=4), TrainingSettings(hold=hold), moments=moments
        )
        for _ in range(10):
            await client.forward_backward(datums)
            await client.optim_step(AdamParams(learning_rate=1e-2))
        prices.append(Holding(client.lora, moments).price())
        client.close()
    assert prices[1] < prices[0] / 4


@given(st.integers(0, 60), st.integers(1, 5), st.integers(0, 40), st.integers(0, 9))
@settings(deadline=None)
def test_neighbours_and_others_are_chosen(
    anchors: int, lessons: int, count: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    first, second = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for rows in (rng.normal(size=(n, 8)).astype(np.float32) for n in (anchors, lessons))
    )
    found = chosen(first, second, count, seed)
    assert found == sorted(set(found)) == chosen(first, second, count, seed)
    assert len(found) == min(anchors, count)
    if 2 * lessons <= count < anchors:
        # Of every lesson the nearest is there.
        assert set((second @ first.T).argmax(1).tolist()) <= set(found)
