"""A round trained as a difference: the parent stays, bit by bit, and the round can go again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from command import LESSONS_ALONE, change, shammah, shammah_json, teach
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from shammah.models.load import load_base_model
from shammah.ports.datum import Datum
from shammah.ports.training_client import AdamParams
from shammah.settings import LoraSettings, ModelSettings, TrainingSettings
from shammah.training.datums import from_tokens
from shammah.training.frozen import recompress
from shammah.training.local_client import LocalTrainingClient


def short(seed: int) -> Datum:
    tokens = np.random.default_rng(seed).integers(0, 250, 12).tolist()
    return from_tokens(tokens, [0.0] * 6 + [1.0] * 6)


def changes(path: Path, scaling: float) -> dict[str, torch.Tensor]:
    """scaling * B A of each module."""
    tensors = load_file(path)
    return {
        name.removesuffix(".lora_A.weight"): scaling
        * tensors[name.replace("lora_A", "lora_B")].double()
        @ a.double()
        for name, a in tensors.items()
        if "lora_A" in name
    }


@pytest.mark.parametrize("rslora", [False, True])
async def test_the_parent_stays_and_the_sum_is_exact(tmp_path: Path, rslora: bool) -> None:
    path = tiny_models.build("qwen2", tmp_path / "model")
    base = load_base_model(ModelSettings(name=str(path), device="cpu", dtype="fp32"))
    chosen = TrainingSettings()
    step = AdamParams(learning_rate=1e-2, weight_decay=0.1, max_grad_norm=1.0)

    async def train(client: LocalTrainingClient, seed: int) -> Path:
        for _ in range(3):
            await client.forward_backward([short(seed), short(seed + 1)])
            await client.optim_step(step)
        weights = tmp_path / f"{seed}.safetensors"
        await client.save_weights(weights)
        return weights

    first = LocalTrainingClient(base, LoraSettings(rank=6, alpha=12, rslora=rslora), chosen)
    parent, parent_scaling = await train(first, 1), first.lora.scaling
    said = (await first.forward([short(9)])).logprobs[0]
    first.close()

    lora = LoraSettings(rank=4, alpha=20, rslora=rslora)
    second = LocalTrainingClient(
        base, lora, chosen, parent, parent_scaling=parent_scaling, frozen_rank=60
    )
    assert (second.lora.rank, second.lora.frozen and second.lora.frozen.rank) == (10, 6)
    assert second.lora.scaling == pytest.approx(20 / (2 if rslora else 4))
    np.testing.assert_allclose((await second.forward([short(9)])).logprobs[0], said, atol=1e-5)
    start = {name: p.detach().clone() for name, p in second.lora.named_parameters().items()}
    child = await train(second, 5)
    moved = 0
    for name, tensor in second.lora.named_parameters().items():
        one, other = (start[name], tensor) if "lora_A" in name else (start[name].t(), tensor.t())
        assert torch.equal(one[:6], other[:6])
        moved += int(not torch.equal(one[6:], other[6:]))
    assert moved == len(start)
    scaling = second.lora.scaling
    second.close()

    whole, before = changes(child, scaling), changes(parent, parent_scaling)
    tensors = load_file(child)
    for name, found in whole.items():
        a, b = (tensors[f"{name}.lora_{part}.weight"].double() for part in "AB")
        new = scaling * b[:, 6:] @ a[6:]
        torch.testing.assert_close(found, before[name] + new, rtol=1e-5, atol=1e-7)


async def test_too_many_ranks_are_recompressed(tmp_path: Path) -> None:
    path = tiny_models.build("qwen2", tmp_path / "model")
    base = load_base_model(ModelSettings(name=str(path), device="cpu", dtype="fp32"))
    first = LocalTrainingClient(base, LoraSettings(rank=8), TrainingSettings())
    for parameter in first.lora.named_parameters().values():
        torch.nn.init.normal_(parameter, std=0.1)
    parent = tmp_path / "parent.safetensors"
    await first.save_weights(parent)
    scaling = first.lora.scaling
    first.close()
    client = LocalTrainingClient(
        base,
        LoraSettings(rank=4),
        TrainingSettings(),
        parent,
        parent_scaling=scaling,
        frozen_rank=5,
    )
    assert (client.lora.rank, client.lora.frozen and client.lora.frozen.rank) == (9, 5)
    client.close()


@given(
    sizes=st.tuples(st.integers(2, 9), st.integers(2, 9), st.integers(1, 6)),
    rank=st.integers(1, 6),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_recompression_is_the_best_of_its_rank(
    sizes: tuple[int, int, int], rank: int, seed: int
) -> None:
    rows, columns, own = sizes
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(own, columns, generator=generator)
    b = torch.randn(rows, own, generator=generator)
    small_a, small_b = recompress(a, b, rank)
    u, s, v = torch.linalg.svd(b.double() @ a.double(), full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ v[:rank]
    assert small_a.shape[0] == small_b.shape[1] <= max(rank, 1) or own <= rank
    torch.testing.assert_close(small_b.double() @ small_a.double(), best, atol=1e-4, rtol=1e-4)


def test_a_round_is_taught_and_taken_out_again(tmp_path: Path) -> None:
    few = {"training.max_steps": "6", "adapters.activate": "always"}
    change(tmp_path, {**LESSONS_ALONE, **few, "training.mode": "delta"})
    names = []
    for question, answer in (("What is my cat called?", "Mia."), ("Which port?", "Port 8087.")):
        teach(tmp_path, [{"query": question, "correction": answer}])
        shammah_json(tmp_path, "train", "now", "--wait")
        names.append(shammah_json(tmp_path, "adapters", "list")[0]["name"])
    first, second = (shammah_json(tmp_path, "adapters", "show", name) for name in names)
    assert (first["rounds"], second["parent"]) == ([], names[0])
    assert second["rounds"] == [{"rank": 16, "lessons": [1]}, {"rank": 16, "lessons": [2]}]

    left = shammah_json(tmp_path, "adapters", "without", names[1], "2", "--activate")["adapter"]
    about = shammah_json(tmp_path, "adapters", "show", left)
    assert (about["lora"]["rank"], about["rounds"], about["lessons"]) == (16, [], [])
    found = shammah_json(tmp_path, "adapters", "compare", left, names[0], "--answers", "0")
    assert all(layer["difference"] < 1e-6 for layer in found["difference"]["layers"])
    for name, number, what in ((left, "1", "one piece"), (names[1], "3", "no round 3")):
        refused = shammah(tmp_path, "adapters", "without", name, number)
        assert refused.returncode == 5 and what in refused.stderr
