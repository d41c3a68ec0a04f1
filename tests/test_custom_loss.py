"""Losses of a caller's own through the training client, against plain autograd through PEFT."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_training_gradients as slow
import torch

from shammah.errors import DivergenceError, EmptyLessonError, TrainingError
from shammah.ports.datum import Datum, ImageChunk, ModelInput, TensorData, TextChunk
from shammah.ports.training_client import AdamParams, CustomLoss
from shammah.settings import LoraSettings, ModelSettings, TrainingSettings
from shammah.training.local_client import LocalTrainingClient
from shammah.training.service import LocalTrainingService

Tensors = Sequence[torch.Tensor]


def contrast(datums: Sequence[Datum], logprobs: Tensors) -> tuple[torch.Tensor, dict[str, float]]:
    """Nothing that a sum over tokens could say: products across examples."""
    sums = torch.stack([one.sum() for one in logprobs])
    loss = torch.nn.functional.softplus(sums[0] - sums[1]) + (sums[2:].exp() * sums[3]).sum()
    return loss + 0.1 * (logprobs[4] ** 2).mean(), {"margin": sums[0] - sums[1], "n": 5}


def datums_of(rows: list[tuple[list[int], list[float]]]) -> list[Datum]:
    made = slow.datums_of(rows)
    # The last one without weights: all of its targets count.
    targets = {"target_tokens": made[-1].loss_fn_inputs["target_tokens"]}
    return [*made[:-1], Datum(made[-1].model_input, targets)]


def by_autograd(
    model: Any, client: LocalTrainingClient, datums: list[Datum], fn: CustomLoss
) -> tuple[float, dict[str, torch.Tensor]]:
    """One datum at a time through a copy of the model with PEFT's layers, all graphs kept."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=client.lora.rank, lora_alpha=client.lora.alpha, target_modules=list(client.lora.layers)
    )
    inject_adapter_in_model(config, model, "default")
    model.eval().requires_grad_(False)
    modules = dict(model.named_modules())
    named = {}
    for path in client.lora.layers:
        for name, own in zip("AB", client.lora.factors(path), strict=True):
            parameter = getattr(modules[path], f"lora_{name}")["default"].weight
            parameter.data.copy_(own.data)
            named[f"base_model.model.{path}.lora_{name}.weight"] = parameter.requires_grad_(True)
    logprobs = []
    for datum in datums:
        targets = datum.loss_fn_inputs["target_tokens"].to_torch()
        logits = model(torch.tensor([datum.model_input.tokens]), use_cache=False).logits[0].float()
        row = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
        if "weights" in datum.loss_fn_inputs:
            row = row * (datum.loss_fn_inputs["weights"].to_torch() != 0)
        logprobs.append(row)
    loss, _ = fn(datums, logprobs)
    loss.backward()
    return float(loss.detach()), {name: parameter.grad for name, parameter in named.items()}


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gemma2"])
@pytest.mark.parametrize("budget", [30, 4096], ids=["packs", "one pack"])
def test_gradients_are_those_of_plain_autograd(kind: str, budget: int, tmp_path: Path) -> None:
    model = slow.tiny(kind, tmp_path / kind)
    reference = copy.deepcopy(model)
    client = LocalTrainingClient(
        slow.base_of(model),
        LoraSettings(rank=4, alpha=8, target_modules="all-linear"),
        TrainingSettings(micro_batch_tokens=budget),
    )
    slow.disturb(client)
    datums = datums_of(slow.rows_of(model.config.vocab_size))
    loss, gradients = by_autograd(reference, client, datums, contrast)
    called = []

    def fn(given: Sequence[Datum], logprobs: Tensors) -> tuple[torch.Tensor, dict[str, float]]:
        called.append([tuple(one.shape) for one in logprobs])
        assert list(given) == datums
        return contrast(given, logprobs)

    output = asyncio.run(client.forward_backward_custom(datums, fn))
    assert called == [[datum.loss_fn_inputs["target_tokens"].shape for datum in datums]]
    assert output.loss == pytest.approx(loss, rel=1e-4) and output.weight == 1.0
    assert set(output.metrics) == {"margin", "n"} and type(output.metrics["margin"]) is float
    assert np.count_nonzero(output.logprobs[-1]) == len(datums[-1].model_input)
    slow.assert_same_gradients(client, gradients)


async def test_the_step_divides_by_the_weight_and_adds_to_other_losses(tmp_path: Path) -> None:
    norms = []
    for weight in (1.0, 4.0):
        client = LocalTrainingClient(
            slow.base_of(slow.tiny("llama", tmp_path / str(weight))),
            LoraSettings(rank=4),
            TrainingSettings(),
        )
        datums = slow.datums_of(slow.rows_of(97))

        def likely(given: Any, logprobs: Tensors) -> tuple[torch.Tensor, dict[str, float]]:
            pairs = zip(given, logprobs, strict=True)
            return -sum(
                (d.loss_fn_inputs["weights"].to_torch() * one).sum() for d, one in pairs
            ), {}  # type: ignore[return-value]

        plain = await client.forward_backward(datums)
        wanted = (await client.optim_step(AdamParams(0.0))).grad_norm
        for _ in range(2):
            output = await client.forward_backward_custom(datums, likely, weight=weight)
        assert output.loss == pytest.approx(plain.loss, rel=1e-5)
        assert output.greedy == plain.greedy
        norm = (await client.optim_step(AdamParams(0.0))).grad_norm
        assert norm == pytest.approx(wanted * plain.weight / weight, rel=1e-4)
        norms.append(norm)
    assert norms[0] == pytest.approx(4 * norms[1], rel=1e-4)


async def test_two_passes_draw_the_same_dropout(tmp_path: Path) -> None:
    """The loss of the second pass, weighted by its own derivative, is that of the first."""
    model = slow.tiny("qwen2", tmp_path / "model")
    settings = TrainingSettings(micro_batch_tokens=30, seed=3)
    lora = LoraSettings(rank=4, dropout=0.3)
    gradients = []
    for custom in (True, False):
        client = LocalTrainingClient(slow.base_of(model), lora, settings)
        slow.disturb(client)
        datums = slow.datums_of(slow.rows_of(97))

        def likely(given: Any, logprobs: Tensors) -> tuple[torch.Tensor, dict[str, float]]:
            pairs = zip(given, logprobs, strict=True)
            return -sum(
                (d.loss_fn_inputs["weights"].to_torch() * one).sum() for d, one in pairs
            ), {}  # type: ignore[return-value]

        if custom:
            output = await client.forward_backward_custom(datums, likely)
        else:
            output = await client.forward_backward(datums)
        following = await client.forward_backward(datums)
        gradients.append((output.loss, following.loss, client.lora.named_parameters()))
        client.close()
    (loss, after, own), (plain, plain_after, theirs) = gradients
    assert loss == pytest.approx(plain, rel=1e-5)
    # What is drawn afterwards is the same as well.
    assert after == pytest.approx(plain_after, rel=1e-5)
    for name, parameter in own.items():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-5)


async def test_custom_losses_that_cannot_be(tmp_path: Path) -> None:
    client = LocalTrainingClient(
        slow.base_of(slow.tiny("llama", tmp_path)), LoraSettings(rank=4), TrainingSettings()
    )
    datums = slow.datums_of(slow.rows_of(97))

    def broken(given: Any, logprobs: Tensors) -> Any:
        raise KeyError("gold")

    for fn, words in (
        (broken, "KeyError: 'gold'"),
        (lambda d, p: (p[0], {}), r"one number in a tensor, not \[\d+\]"),
        (lambda d, p: (1.5, {}), "not float"),
        (lambda d, p: (torch.zeros(()), {}), "does not depend"),
        (lambda d, p: (p[0].sum().detach(), {}), "does not depend"),
        (lambda d, p: (p[0].sum(), None), "metrics are a mapping"),
        (lambda d, p: p[0].sum(), "failed"),
    ):
        with pytest.raises(TrainingError, match=words) as caught:
            await client.forward_backward_custom(datums, fn)
        assert caught.value.backend == "local torch"
    await client.forward_backward(datums)
    with pytest.raises(DivergenceError):
        await client.forward_backward_custom(datums, lambda d, p: (p[0].sum() * torch.inf, {}))
    with pytest.raises(TrainingError, match="nothing to step"):
        await client.optim_step(AdamParams(1e-3))
    with pytest.raises(TrainingError, match="0 datums"):
        await client.forward_backward_custom([], contrast)


async def test_datums_that_the_model_cannot_take(tmp_path: Path) -> None:
    client = LocalTrainingClient(
        slow.base_of(slow.tiny("llama", tmp_path)), LoraSettings(rank=4), TrainingSettings()
    )
    right = slow.datums_of(slow.rows_of(97))[0]
    image = ImageChunk(b"\xff\xd8\xff", "jpeg", 2)
    seen = ModelInput((TextChunk((1,)), image))
    pair = {"target_tokens": TensorData.ints([1, 2, 3]), "weights": TensorData.floats([0, 0, 1])}
    for datum, words in (
        (Datum(seen, pair), "Datum 2 of 2 has an image"),
        (Datum(ModelInput.of([1]), {}), "Datum 2 of 2 has no target_tokens"),
        (Datum(ModelInput.of([1, 2, 5000]), pair), "token 5000, and the model knows"),
    ):
        for call in (
            client.forward_backward([right, datum]),
            client.forward([right, datum]),
            client.forward_backward_custom([right, datum], contrast),
        ):
            with pytest.raises(TrainingError, match=words):
                await call
    zero = {**pair, "weights": TensorData.floats([0, 0, 0])}
    with pytest.raises(EmptyLessonError):
        await client.forward_backward_custom([Datum(ModelInput.of([1, 2, 3]), zero)], contrast)


async def test_failures_inside_torch_are_the_ports(tmp_path: Path) -> None:
    client = LocalTrainingClient(
        slow.base_of(slow.tiny("gpt2", tmp_path)), LoraSettings(rank=4), TrainingSettings()
    )
    long = list(range(90)) * 7  # longer than the table of positions
    with pytest.raises(TrainingError, match="Computing failed: IndexError") as caught:
        await client.forward(slow.datums_of([(long, [1.0] * len(long))], (1.0,)))
    assert isinstance(caught.value.__cause__, IndexError)


async def test_a_session_is_made_from_settings(tmp_path: Path) -> None:
    import tiny_models

    path = tiny_models.build("qwen2", tmp_path / "model")
    service = LocalTrainingService()
    model = ModelSettings(name=str(path), device="cpu", dtype="fp32")
    first = await service.create(
        model, LoraSettings(rank=3, target_modules=["q_proj"], layers=1.0), seed=1
    )
    second = await service.create(
        model, LoraSettings(rank=3, target_modules=["q_proj"], layers=1.0), seed=2
    )
    info = await first.info()
    assert (info.model, info.rank, info.dtype, info.device) == (str(path), 3, "float32", "cpu")
    assert info.trainable_parameters == 2 * 3 * (32 + 32) and info.target_modules == ("q_proj",)
    assert info.max_tokens == 512 and len(info.fingerprint) == 64 and info.step == 0
    datums = slow.datums_of(slow.rows_of(97))
    before = (await second.forward(datums)).loss
    await first.forward_backward(datums)
    await first.optim_step(AdamParams(1e-2))
    assert (await first.info()).step == 1
    # Sessions do not share what they train.
    assert (await first.forward(datums)).loss < before
    assert (await second.forward(datums)).loss == before
    await first.save_weights(tmp_path / "adapter.safetensors")
    third = await service.create(
        model,
        LoraSettings(rank=3, target_modules=["q_proj"], layers=1.0),
        parent=tmp_path / "adapter.safetensors",
    )
    assert (await third.forward(datums)).loss == pytest.approx(
        (await first.forward(datums)).loss, rel=1e-5
    )
    for client in (first, second, third):
        client.close()
    for asked, lora in (
        (ModelSettings(name=str(tmp_path / "nowhere")), LoraSettings()),
        (model, LoraSettings(target_modules=["nothing"])),
    ):
        with pytest.raises(TrainingError) as caught:
            await service.create(asked, lora)
        assert caught.value.backend == "local torch"
