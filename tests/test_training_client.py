"""The local training client: where adapters go, what a step does, how training resumes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from safetensors.torch import load_file

from shammah.errors import (
    AdapterInvalidError,
    DivergenceError,
    EmptyLessonError,
    TrainingError,
)
from shammah.models.load import BaseModel, load_base_model
from shammah.ports.datum import Datum, ModelInput
from shammah.ports.sampling_client import SamplingParams
from shammah.ports.training_client import AdamParams
from shammah.settings import LoraSettings, ModelSettings, TrainingSettings
from shammah.training.datums import datum_weight, from_tokens, reweighted
from shammah.training.local_client import LocalTrainingClient, tokens_for
from shammah.training.optimizer import AdamW


@pytest.fixture(params=["fp32", "bf16"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> BaseModel:
    return load("qwen2", tmp_path, request.param)


def load(kind: str, folder: Path, dtype: str = "fp32") -> BaseModel:
    path = tiny_models.build(kind, folder / kind)
    return load_base_model(ModelSettings(name=str(path), device="cpu", dtype=dtype))  # type: ignore[arg-type]


def example(seed: int, length: int = 20, weight: float = 1.0) -> Datum:
    tokens = np.random.default_rng(seed).integers(0, 250, length).tolist()
    return from_tokens(tokens, [0.0] * 8 + [1.0] * (length - 8), weight)


def client_of(base: BaseModel, parent: Path | None = None, **lora: object) -> LocalTrainingClient:
    settings = LoraSettings.model_validate({"rank": 4, "alpha": 8, "layers": 1.0, **lora})
    return LocalTrainingClient(base, settings, TrainingSettings(), parent)


async def steps(client: LocalTrainingClient, count: int, first: int = 0) -> list[float]:
    losses = []
    for number in range(first, first + count):
        output = await client.forward_backward([example(number), example(number + 1, 13, 3.0)])
        losses.append(output.loss)
        await client.optim_step(AdamParams(learning_rate=1e-2, max_grad_norm=1.0))
    return losses


def test_a_parameter_with_a_rate_of_its_own_steps_like_one_alone() -> None:
    start, gradients = torch.tensor([1.0, -2.0]), torch.tensor([[0.3, -4.0], [1e-3, 2.0]])
    one, fast = (torch.nn.Parameter(start.clone()) for _ in range(2))
    mine = AdamW({"one": one, "fast": fast}, {"fast": 20.0})
    plain = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    # Weights decay by the rate times `weight_decay`, which is the same for both.
    theirs = [
        torch.optim.AdamW([parameter], lr=rate, betas=(0.9, 0.99), weight_decay=decay)
        for parameter, rate, decay in zip(plain, (0.01, 0.2), (0.1, 0.005), strict=True)
    ]
    for gradient in gradients:
        for parameter in (one, fast, *plain):
            parameter.grad = gradient.clone()
        mine.step(1.0, AdamParams(0.01, weight_decay=0.1))
        for optimizer in theirs:
            optimizer.step()
    torch.testing.assert_close([one.data, fast.data], [each.data for each in plain])


async def test_what_is_computed_ahead_of_a_step(base: BaseModel) -> None:
    client = client_of(base)
    datums = [example(1, weight=10.0), example(2, 31, weight=1.0)]
    output = await client.forward_backward(datums)
    looked = await client.forward(datums)
    assert output.weight == pytest.approx(11.0, rel=1e-5)
    assert output.tokens == sum(len(one.model_input) for one in datums)
    for one, logprobs, other in zip(datums, output.logprobs, looked.logprobs, strict=True):
        weights = one.loss_fn_inputs["weights"].data
        assert logprobs.shape == weights.shape
        assert np.all(logprobs[weights == 0] == 0) and np.all(logprobs[weights > 0] < 0)
        np.testing.assert_allclose(logprobs, other, atol=1e-5)
    by_hand = -sum(
        float((logprobs * one.loss_fn_inputs["weights"].data).sum())
        for one, logprobs in zip(datums, output.logprobs, strict=True)
    )
    assert output.loss == pytest.approx(by_hand, rel=1e-4)
    assert output.mean_loss == pytest.approx(output.loss / output.weight)


async def test_greedy_is_what_greedy_decoding_gives(tmp_path: Path) -> None:
    base = load("qwen2", tmp_path)
    client = client_of(base)
    prompt = (3, 1, 4, 1, 5)
    read = ModelInput.of(prompt)
    (sample,) = await client.sampler.sample(read, SamplingParams(max_tokens=6))
    answer = sample.tokens
    assert len(answer) == 6
    right = from_tokens([*prompt, *answer], [0.0] * 5 + [1.0] * 6)
    wrong = from_tokens([*prompt, *answer[:-1], (answer[-1] + 1) % 250], [0.0] * 5 + [1.0] * 6)
    assert (await client.forward([right, wrong])).greedy == (True, False)
    ending = SamplingParams(max_tokens=6, stop_tokens=(answer[2],))
    (stopped,) = await client.sampler.sample(read, ending)
    assert stopped.answer_tokens == answer[: answer.index(answer[2])]
    assert (stopped.stop_reason, stopped.stop_token) == ("stop", answer[2])
    warm = SamplingParams(max_tokens=8, temperature=1.5, seed=4)
    assert await client.sampler.sample(read, warm) == await client.sampler.sample(read, warm)


async def test_a_step_divides_by_the_weight_of_the_window(tmp_path: Path) -> None:
    """Two calls of weight 1 and 3 are one window of weight 4; what all weigh does not matter."""
    norms = []
    for factor in (1.0, 100.0):
        base = load("llama", tmp_path)
        client = client_of(base)
        await client.forward_backward([reweighted(example(1), factor)])
        await client.forward_backward([reweighted(example(2), 3 * factor)])
        norms.append((await client.optim_step(AdamParams(learning_rate=1e-3))).grad_norm)
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


async def test_weights_act_inside_a_batch(tmp_path: Path) -> None:
    """Of two answers to one prompt, the heavier one is learned."""
    chances = []
    for weights in ((10.0, 1.0), (1.0, 10.0)):
        base = load("qwen2", tmp_path)
        client = client_of(base)
        pair = [
            from_tokens([5, 6, 7, answer], [0, 0, 0, 1], weight)
            for answer, weight in zip((20, 21), weights, strict=True)
        ]
        for _ in range(60):
            await client.forward_backward(pair)
            await client.optim_step(AdamParams(learning_rate=1e-2))
        output = await client.forward(pair)
        chances.append([float(np.exp(logprobs[-1])) for logprobs in output.logprobs])
    assert chances[0][0] > 5 * chances[0][1]
    assert chances[1][1] > 5 * chances[1][0]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
async def test_resuming_gives_the_same_bits(
    base: BaseModel, tmp_path: Path, dropout: float
) -> None:
    client = client_of(base, dropout=dropout)
    await steps(client, 3)
    await client.forward_backward([example(90)])  # not part of the state: no step followed
    await client.save_state(tmp_path / "state")
    client.close()
    after = []
    for _ in range(2):
        again = client_of(base, dropout=dropout)
        await steps(again, 1, first=50)
        await again.load_state(tmp_path / "state")
        after.append(await steps(again, 3, first=3))
        again.close()
    straight = client_of(base, dropout=dropout)
    assert (await steps(straight, 6))[3:] == after[0] == after[1]
    assert {path.suffix for path in (tmp_path / "state").iterdir()} == {".safetensors"}


async def test_a_broken_checkpoint_is_refused(base: BaseModel, tmp_path: Path) -> None:
    client = client_of(base)
    with pytest.raises(TrainingError, match="cannot be read"):
        await client.load_state(tmp_path / "nothing")
    await client.save_state(tmp_path / "state")
    client.close()
    with pytest.raises(AdapterInvalidError) as caught:
        await client_of(base, rank=8).load_state(tmp_path / "state")
    assert isinstance(caught.value, TrainingError) and caught.value.backend == "local torch"


async def test_divergence_leaves_the_weights_alone(base: BaseModel) -> None:
    client = client_of(base)
    await steps(client, 1)
    before = {name: tensor.clone() for name, tensor in client.lora.named_parameters().items()}
    await client.forward_backward([example(1)])
    next(iter(client.lora.named_parameters().values())).grad.fill_(float("nan"))  # type: ignore[union-attr]
    with pytest.raises(DivergenceError, match="gradient"):
        await client.optim_step(AdamParams(learning_rate=1e-2))
    for name, tensor in client.lora.named_parameters().items():
        assert torch.equal(tensor, before[name])
    with torch.no_grad():
        client.lora.factors(next(iter(client.lora.layers)))[1].fill_(float("inf"))
    with pytest.raises(DivergenceError, match="loss"):
        await client.forward_backward([example(1)])
    with pytest.raises(TrainingError, match="nothing to step"):
        await client.optim_step(AdamParams(learning_rate=1e-2))


async def test_what_cannot_be_learned_is_refused(base: BaseModel) -> None:
    with pytest.raises(EmptyLessonError):
        from_tokens([1, 2, 3], [1.0, 0.0, 0.0])  # the first token is never a target
    client = client_of(base)
    masked = example(1)
    masked.loss_fn_inputs["weights"].data.fill(0.0)
    with pytest.raises(EmptyLessonError):
        await client.forward_backward([masked])
    with pytest.raises(TrainingError, match="cross_entropy"):
        await client.forward_backward([example(1)], "cross_entropi")


def test_datums() -> None:
    one = from_tokens([5, 6, 7, 8, 9], [0, 0, 1, 3, 0], weight=8.0)
    assert one.model_input.tokens == (5, 6, 7)  # nothing is learned after 8
    assert one.loss_fn_inputs["target_tokens"].data.tolist() == [6, 7, 8]
    assert one.loss_fn_inputs["weights"].data.tolist() == [0.0, 2.0, 6.0]
    assert datum_weight(reweighted(one, 0.5)) == pytest.approx(0.5)


async def test_saved_weights_are_pefts(tmp_path: Path) -> None:
    """PEFT loads them onto the same model and gives the same logits."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    base = load("qwen2", tmp_path)
    client = client_of(base, rslora=True, target_modules=["q_proj", "down_proj"])
    await steps(client, 3)
    await client.save_weights(tmp_path / "peft" / "adapter_model.safetensors")
    config = LoraConfig(
        r=4, lora_alpha=8, use_rslora=True, target_modules=client.lora.target_modules
    )
    get_peft_model(AutoModelForCausalLM.from_pretrained(base.path), config).save_pretrained(
        tmp_path / "fresh"
    )
    (tmp_path / "peft" / "adapter_config.json").write_bytes(
        (tmp_path / "fresh" / "adapter_config.json").read_bytes()
    )
    loaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base.path), tmp_path / "peft"
    )
    tokens = example(5).model_input.tokens
    logits = loaded(torch.tensor([tokens])).logits[0].log_softmax(-1)
    output = await client.forward([example(5)])
    targets = torch.from_numpy(example(5).loss_fn_inputs["target_tokens"].data)
    expected = logits.gather(-1, targets[:, None])[:, 0].detach().numpy()
    where = output.logprobs[0] != 0
    np.testing.assert_allclose(output.logprobs[0][where], expected[where], atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"rank": 6, "alpha": 3},
        {"rank": 2},
        {"rslora": True},
        {"target_modules": ["q_proj"]},
        {"target_modules": "all-linear", "rank": 5},
    ],
)
async def test_a_parent_goes_on_as_it_was(tmp_path: Path, change: dict[str, object]) -> None:
    base = load("llama", tmp_path)
    targets = ["q_proj", "v_proj"]
    first = client_of(base, target_modules=targets)
    await steps(first, 4)
    expected = (await first.forward([example(3)])).logprobs[0]
    await first.save_weights(tmp_path / "parent.safetensors")
    first.close()
    record = {"lora": {"rank": 4, "alpha": 8, "rslora": False}}
    (tmp_path / "parent.json").write_text(json.dumps(record))
    settings = LoraSettings.model_validate(
        {"rank": 4, "alpha": 8, "layers": 1.0, "target_modules": targets, **change}
    )
    for scaling in (None, 2.0):
        second = LocalTrainingClient(
            base,
            settings,
            TrainingSettings(),
            tmp_path / "parent.safetensors",
            parent_scaling=scaling,
        )
        found = (await second.forward([example(3)])).logprobs[0]
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert second.lora.rank == max(4, settings.rank)
        assert set(targets) <= set(second.lora.target_modules)
        second.close()


async def test_a_parent_of_another_model_is_refused(tmp_path: Path) -> None:
    llama = client_of(load("llama", tmp_path))
    await llama.save_weights(tmp_path / "llama.safetensors")
    with pytest.raises(AdapterInvalidError, match="does not fit"):
        client_of(load("gpt2", tmp_path), tmp_path / "llama.safetensors")
    (tmp_path / "rubbish.safetensors").write_bytes(b"no")
    with pytest.raises(AdapterInvalidError, match="cannot be read"):
        client_of(load("llama", tmp_path), tmp_path / "rubbish.safetensors")


@pytest.mark.parametrize(
    ("kind", "wanted", "found"),
    [
        ("qwen2", "auto", ["q_proj", "v_proj"]),
        ("gpt2", "auto", ["c_attn"]),
        ("gpt2", "all-linear", ["c_attn", "c_fc", "c_proj"]),
        ("phi", ["dense", "fc1"], ["dense", "fc1"]),
    ],
)
async def test_target_modules(kind: str, wanted: object, found: list[str], tmp_path: Path) -> None:
    client = client_of(load(kind, tmp_path), target_modules=wanted)
    assert client.lora.target_modules == found
    first = (await client.forward([example(1)])).loss
    await client.forward_backward([example(1)])
    await client.optim_step(AdamParams(learning_rate=1e-2))
    assert (await client.forward([example(1)])).loss < first
    assert all(
        parameter.dtype == torch.float32 for parameter in client.lora.named_parameters().values()
    )


@pytest.mark.parametrize("name", ["qproj", "lm_head", "embed_tokens"])
def test_modules_that_are_not_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=name) as caught:
        client_of(load("llama", tmp_path), target_modules=["q_proj", name])
    assert caught.value.hint is not None and "gate_proj" in caught.value.hint


async def test_adapter_files_and_the_memory_estimate(tmp_path: Path) -> None:
    base = load("qwen2", tmp_path)
    assert tokens_for(base.model) == 4096
    client = client_of(base)
    await client.save_weights(tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    assert tensors.keys() == client.lora.named_parameters().keys()
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o600
    name = "base_model.model.model.layers.0.mlp.gate_proj.lora_A.weight"
    assert tensors[name].shape == (4, 32) and tensors[name].dtype == torch.float32


@pytest.mark.parametrize("kind", ["qwen2", "mistral", "gpt2", "gemma", "phi"])
@pytest.mark.parametrize("share", [0.5, 1.0])
async def test_what_lies_below_the_adapter_is_computed_once(
    kind: str, share: float, tmp_path: Path
) -> None:
    """Steps from what is remembered are those without; only where layers lie below is it used."""
    found, read = [], []
    for remembers in (False, True):
        base = load(kind, tmp_path / str(remembers))
        lowest = next(m for m in base.model.modules() if isinstance(m, torch.nn.ModuleList))[0]
        lowest.register_forward_pre_hook(lambda *_: read.append(1))
        client = client_of(base, layers=share)
        paths = list(client.lora.layers)
        assert any(".0." in path for path in paths) == (share == 1.0)
        if remembers:
            client.remember([example(number) for number in range(9)])
            client.remember([example(number, 13, 3.0) for number in range(9)])
        read.clear()
        found.append(await steps(client, 4))
        assert bool(read) == (not remembers or share == 1.0)
    np.testing.assert_allclose(found[1], found[0], rtol=2e-4)


def test_two_clients_with_a_seed_begin_alike(tmp_path: Path) -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(torch.seed() % 2**31)
        client = client_of(load("qwen2", tmp_path))
        weights.append([tensor.clone() for tensor in client.lora.named_parameters().values()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_computing_in_a_running_loop_is_fine(tmp_path: Path) -> None:
    client = client_of(load("qwen2", tmp_path))
    assert len(asyncio.run(steps(client, 1))) == 1
