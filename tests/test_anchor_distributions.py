"""Holding what the base model says: several targets at a position, and its own distribution."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch

from shammah.models.load import BaseModel, load_base_model
from shammah.ports.datum import Datum, TensorData
from shammah.ports.training_client import AdamParams
from shammah.settings import LoraSettings, ModelSettings, TrainingSettings
from shammah.training.body import base_distributions
from shammah.training.datums import datum_weight, from_tokens, reweighted
from shammah.training.local_client import LocalTrainingClient


def model_of(kind: str, folder: Path) -> BaseModel:
    path = tiny_models.build(kind, folder)
    return load_base_model(ModelSettings(name=str(path), device="cpu", dtype="fp32"))


def anchors() -> list[Datum]:
    draw = np.random.default_rng(0)
    return [
        from_tokens(draw.integers(0, 250, size).tolist(), [0.0] * 4 + [1.0] * (size - 4))
        for size in (9, 14, 7)
    ]


def client_for(base: BaseModel) -> LocalTrainingClient:
    return LocalTrainingClient(base, LoraSettings(rank=4), TrainingSettings())


@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "gemma"])
def test_the_distribution_is_the_models_own(kind: str, tmp_path: Path) -> None:
    base = model_of(kind, tmp_path)
    for plain, held in zip(anchors(), base_distributions(base.model, anchors(), 5), strict=True):
        ids = torch.tensor([plain.model_input.tokens])
        with torch.no_grad():
            expected = torch.softmax(base.model(input_ids=ids).logits[0].float(), -1)
        tokens = held.loss_fn_inputs["target_tokens"].data
        weights = held.loss_fn_inputs["weights"].data
        assert tokens.shape == weights.shape == (len(plain.model_input), 5)
        where = np.flatnonzero(plain.loss_fn_inputs["weights"].data)
        assert not weights[: where[0]].any()
        for position in where:
            shares, likeliest = expected[position].topk(5)
            assert tokens[position].tolist() == likeliest.tolist()
            ratio = weights[position] / weights[position].sum()
            assert ratio == pytest.approx((shares / shares.sum()).numpy(), abs=1e-5)
        assert datum_weight(held) == pytest.approx(1.0)
        assert datum_weight(reweighted(held, 3.0)) == pytest.approx(3.0)


def test_a_model_that_is_as_it_was_is_not_pulled_anywhere(tmp_path: Path) -> None:
    base = model_of("qwen2", tmp_path)
    everything = int(base.model.config.vocab_size)
    held = base_distributions(base.model, anchors(), everything)
    client = client_for(base)
    words = asyncio.run(client.forward_backward(anchors()))
    pull = asyncio.run(client.optim_step(AdamParams(1e-3))).grad_norm
    for path in client.lora.layers:
        client.lora.factors(path)[1].data.zero_()
    output = asyncio.run(client.forward_backward(held))
    rest = asyncio.run(client.optim_step(AdamParams(1e-3))).grad_norm
    assert pull > 1e-2 and rest < 1e-4 * pull
    # The words the model would not say itself cost more than its own distribution's entropy.
    assert output.mean_loss < words.mean_loss
    assert [given.shape for given in output.logprobs] == [
        held_one.loss_fn_inputs["weights"].shape for held_one in held
    ]


def test_two_targets_at_a_position_are_two_examples(tmp_path: Path) -> None:
    base = model_of("qwen2", tmp_path)
    (first, *_) = anchors()
    targets = first.loss_fn_inputs["target_tokens"].data
    weights = first.loss_fn_inputs["weights"].data
    other = (targets + 1) % 250
    pair = Datum(
        first.model_input,
        {
            "target_tokens": TensorData(np.stack([targets, other], -1)),
            "weights": TensorData(np.stack([0.75 * weights, 0.25 * weights], -1)),
        },
    )
    alone = Datum(
        first.model_input,
        {"target_tokens": TensorData(other), "weights": first.loss_fn_inputs["weights"]},
    )
    client = client_for(base)
    both, one, two = (asyncio.run(client.forward([d])).loss for d in (pair, first, alone))
    assert both == pytest.approx(0.75 * one + 0.25 * two, rel=1e-5)


def test_the_model_is_left_as_it_came(tmp_path: Path) -> None:
    base = model_of("qwen2", tmp_path)
    attention = base.model.config._attn_implementation
    base_distributions(base.model, anchors(), 2)
    assert base.model.config._attn_implementation == attention
