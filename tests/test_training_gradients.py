"""The fast forward and backward passes against slow, plain ones: a padded batch, logits everywhere,
PEFT's own layers, autograd alone."""

from __future__ import annotations

import asyncio
import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shammah.models.load import BaseModel, load_base_model
from shammah.ports.datum import Datum, ModelInput
from shammah.settings import LoraSettings, ModelSettings, TrainingSettings
from shammah.training import attention
from shammah.training.body import Body
from shammah.training.datums import from_tokens
from shammah.training.fused import rms_norm
from shammah.training.head import dense_logprobs, target_logprobs
from shammah.training.local_client import LocalTrainingClient
from shammah.training.lora import ADAPTER

Rows = list[tuple[list[int], list[float]]]
WEIGHTS = (1.0, 10.0, 3.0, 0.5, 1.0)
OTHERS: dict[str, dict[str, Any]] = {
    "gemma2": {"head_dim": 8, "sliding_window": 6},
    "gemma3_text": {"head_dim": 8, "sliding_window": 6},
    "gpt_oss": {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
}


def rows_of(vocabulary: int, lengths: tuple[int, ...] = (5, 17, 9, 40, 12)) -> Rows:
    draw = np.random.default_rng(0)
    rows: Rows = []
    for length in lengths:
        tokens = [int(token) for token in draw.integers(0, vocabulary, length)]
        rows.append((tokens, [0.0] * (length // 2) + [1.0] * (length - length // 2)))
    return rows


def datums_of(rows: Rows, weights: tuple[float, ...] = WEIGHTS) -> list[Datum]:
    return [
        from_tokens(tokens, token_weights, weight)
        for (tokens, token_weights), weight in zip(rows, weights, strict=True)
    ]


def base_of(model: Any) -> BaseModel:
    model.eval().requires_grad_(False)
    # The trainer needs nothing of a base model but the model.
    return cast(BaseModel, SimpleNamespace(model=model))


def tiny(kind: str, folder: Path) -> Any:
    """A model of a kind with uneven weights everywhere, norms and biases too."""
    if kind in OTHERS:
        import transformers as hf

        config = hf.AutoConfig.for_model(
            kind,
            vocab_size=97,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
            **OTHERS[kind],
        )
        model = hf.AutoModelForCausalLM.from_config(config)
    else:
        path = tiny_models.build(kind, folder)
        model = load_base_model(ModelSettings(name=str(path), device="cpu", dtype="fp32")).model
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            size = 0.25 if parameter.ndim > 1 else 0.1
            parameter.copy_(parameter + size * torch.randn_like(parameter))
    return model


def by_plain_peft(
    model: Any,
    client: LocalTrainingClient,
    rows: Rows,
    *,
    dropout: float = 0.0,
    seed: int = 0,
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one padded batch through a copy of the model with PEFT's layers."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=client.lora.rank,
        lora_alpha=client.lora.alpha,
        lora_dropout=dropout,
        target_modules=list(client.lora.layers),
        fan_in_fan_out=model.config.model_type == "gpt2",
    )
    inject_adapter_in_model(config, model, ADAPTER)
    model.requires_grad_(False)
    modules = dict(model.named_modules())
    named = {}
    for path in client.lora.layers:
        for name, own in zip("AB", client.lora.factors(path), strict=True):
            parameter = getattr(modules[path], f"lora_{name}")[ADAPTER].weight
            parameter.data.copy_(own.data)
            named[f"base_model.model.{path}.lora_{name}.weight"] = parameter.requires_grad_(True)
    width = max(len(tokens) for tokens, _ in rows)
    # The last column is only ever a target.
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    weights = torch.zeros(len(rows), width)
    for number, (tokens, token_weights) in enumerate(rows):
        ids[number, : len(tokens)] = torch.tensor(tokens)
        mask[number, : len(tokens)] = 1
        row = torch.tensor(token_weights[1:])
        weights[number, 1 : len(tokens)] = row / row.sum() * WEIGHTS[number]
    model.train(dropout > 0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        logits = model(
            input_ids=ids[:, :-1], attention_mask=mask[:, :-1], use_cache=False
        ).logits.float()
    logprobs = torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None])[..., 0]
    loss = -(logprobs * weights[:, 1:]).sum()
    loss.backward()
    return float(loss.detach()), {name: parameter.grad for name, parameter in named.items()}


def disturb(client: LocalTrainingClient) -> None:
    """B begins at zero, where half of the gradients are zero too."""
    torch.manual_seed(2)
    with torch.no_grad():
        for path in client.lora.layers:
            client.lora.factors(path)[1].normal_(0.0, 0.2)


def assert_same_gradients(client: LocalTrainingClient, expected: dict[str, torch.Tensor]) -> None:
    found = client.lora.named_parameters()
    assert found.keys() == expected.keys()
    for name, parameter in found.items():
        if expected[name] is None:
            assert parameter.grad is None
            continue
        assert parameter.grad is not None, name
        size = expected[name].abs().max().clamp(min=1e-6)
        assert float((parameter.grad - expected[name]).abs().max() / size) < 1e-4, name


@pytest.mark.parametrize(
    ("kind", "packed"),
    [
        ("qwen2", True),
        ("llama", True),
        ("mistral", True),
        ("gemma", True),
        ("gemma3_text", True),
        ("qwen3", True),
        ("phi", True),
        ("gpt2", True),
        ("gemma2", False),
        ("gpt_oss", False),
    ],
)
def test_gradients_are_those_of_a_padded_batch(kind: str, packed: bool, tmp_path: Path) -> None:
    model = tiny(kind, tmp_path / kind)
    reference = copy.deepcopy(model)
    client = LocalTrainingClient(
        base_of(model),
        LoraSettings(rank=4, alpha=8, target_modules="all-linear"),
        TrainingSettings(micro_batch_tokens=30),  # less than the longest example
    )
    assert client.body.packed is packed
    disturb(client)
    rows = rows_of(model.config.vocab_size)
    loss, gradients = by_plain_peft(reference, client, rows)
    output = asyncio.run(client.forward_backward(datums_of(rows)))
    assert output.loss == pytest.approx(loss, rel=1e-5)
    assert output.weight == pytest.approx(sum(WEIGHTS))
    assert_same_gradients(client, gradients)


@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "gemma2", "gpt_oss"])
def test_what_is_read_is_what_the_model_says(kind: str, tmp_path: Path) -> None:
    """Packed and with the head apart, with logits that are more than the head's, one by one."""
    model = tiny(kind, tmp_path / kind).eval()
    rows = [tokens for tokens, _ in rows_of(model.config.vocab_size, (5, 17, 9))]
    places = [np.array(each) for each in ([0, 4], [16], [2, 3, 8])]
    told = [np.array(each, dtype=np.int64) for each in ([1, 4], [], [5, 6, 8])]
    with torch.no_grad():
        outputs = [model(torch.tensor([row]), output_hidden_states=True) for row in rows]
        states = [
            each.hidden_states[-1][0, where] for each, where in zip(outputs, places, strict=True)
        ]
        logprobs = [
            torch.log_softmax(each.logits[0], -1)[where - 1, torch.tensor(row)[where]]
            for each, where, row in zip(outputs, told, rows, strict=True)
        ]
        body = Body(model)
        hidden, likely = body.read([Datum(ModelInput.of(row)) for row in rows], places, told)
        body.close()
    torch.testing.assert_close(hidden, torch.cat(states), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(likely, torch.cat(logprobs), rtol=1e-4, atol=1e-5)


def test_dropout_is_pefts(tmp_path: Path) -> None:
    """One example of 16 positions in one row, so that both draw the same random numbers."""
    model = tiny("qwen2", tmp_path / "model")
    reference = copy.deepcopy(model)
    client = LocalTrainingClient(
        base_of(model),
        LoraSettings(rank=4, alpha=8, dropout=0.3, target_modules=["q_proj", "v_proj"]),
        TrainingSettings(seed=5),
    )
    disturb(client)
    rows = rows_of(97, (17,))
    # The model has no dropout of its own.
    loss, gradients = by_plain_peft(reference, client, rows, dropout=0.3, seed=5)
    outside = torch.get_rng_state()
    output = asyncio.run(client.forward_backward(datums_of(rows, WEIGHTS[:1])))
    assert output.loss == pytest.approx(loss, rel=1e-5)
    assert_same_gradients(client, gradients)
    assert torch.equal(outside, torch.get_rng_state())
    without = asyncio.run(client.forward(datums_of(rows, WEIGHTS[:1])))
    assert without.loss != pytest.approx(loss, rel=1e-6)


def test_frozen_weights_and_the_model_stay_as_they_were(tmp_path: Path) -> None:
    model = tiny("llama", tmp_path / "model")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.tensor([[1, 2, 3, 4]])
    logits = model(ids).logits
    client = LocalTrainingClient(base_of(model), LoraSettings(rank=4), TrainingSettings())
    disturb(client)
    asyncio.run(client.forward_backward(datums_of(rows_of(97))))
    frozen = [tensor for name, tensor in model.named_parameters() if "lora_" not in name]
    assert all(parameter.grad is None for parameter in frozen)
    client.close()
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(model(ids).logits, logits)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 40),
    vocabulary=st.integers(2, 60),
    chunk=st.integers(1, 50),
    scale=st.sampled_from([0.1, 3.0, 60.0]),
    seed=st.integers(0, 1000),
)
def test_head_equals_full_logits(
    rows: int, vocabulary: int, chunk: int, scale: float, seed: int
) -> None:
    torch.manual_seed(seed)
    hidden = torch.randn(rows, 8).mul_(scale).requires_grad_()
    weight, bias = torch.randn(vocabulary, 8), torch.randn(vocabulary)
    targets = torch.randint(0, vocabulary, (rows,))
    outer = torch.randn(rows)
    logprobs, greedy = target_logprobs(hidden, weight, bias, targets, chunk=chunk)
    (logprobs * outer).sum().backward()
    fast = hidden.grad
    hidden.grad = None
    wide = hidden.double()
    expected, expected_greedy = dense_logprobs_double(wide, weight, bias, targets)
    (expected * outer.double()).sum().backward()
    assert torch.allclose(logprobs.double(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(greedy, expected_greedy)
    assert fast is not None and hidden.grad is not None
    assert torch.allclose(fast, hidden.grad, rtol=1e-3, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=20),
    chunk=st.integers(1, 30),
    scale=st.sampled_from([0.1, 3.0, 60.0]),
    seed=st.integers(0, 1000),
)
def test_several_targets_of_a_position_share_its_logits(
    counts: list[int], chunk: int, scale: float, seed: int
) -> None:
    torch.manual_seed(seed)
    hidden = torch.randn(len(counts), 8).mul_(scale).requires_grad_()
    weight, bias = torch.randn(30, 8), torch.randn(30)
    rows = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    targets, outer = torch.randint(0, 30, (len(rows),)), torch.randn(len(rows))
    logprobs, greedy = target_logprobs(hidden, weight, bias, targets, rows, chunk=chunk)
    (logprobs * outer).sum().backward()
    fast, hidden.grad = hidden.grad, None
    expected, right = dense_logprobs_double(hidden.double()[rows], weight, bias, targets)
    (expected * outer.double()).sum().backward()
    assert torch.allclose(logprobs.double(), expected, rtol=1e-4, atol=1e-3)
    assert torch.equal(greedy, right)
    assert fast is not None and hidden.grad is not None
    assert torch.allclose(fast, hidden.grad, rtol=1e-3, atol=1e-4)


def dense_logprobs_double(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = hidden @ weight.double().t() + bias.double()
    logprobs = torch.log_softmax(logits, -1).gather(-1, targets[:, None])[:, 0]
    return logprobs, logits.argmax(-1) == targets


def test_head_in_bf16_is_as_good_as_plain_bf16() -> None:
    """Against float64, the chunked head errs no more than logits in bf16 and a float32 softmax."""
    torch.manual_seed(0)
    hidden = torch.randn(64, 32).bfloat16()
    weight = torch.randn(500, 32).bfloat16()
    logits = hidden.float() @ weight.float().t()
    targets = torch.where(torch.arange(64) % 2 == 0, logits.argmax(-1), torch.arange(64))
    exact, _ = dense_logprobs_double(hidden.double(), weight, torch.zeros(500), targets)
    plain, _ = dense_logprobs(hidden @ weight.t(), targets)
    ours, _ = target_logprobs(hidden, weight, None, targets)
    error, plain_error = (ours - exact).abs().max(), (plain - exact).abs().max()
    assert error < plain_error * 1.1 + 0.01


def masked_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: list[tuple[int, int]],
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    """[Hq, T, D] -> [T, Hq, D], by one big mask."""
    groups, length = query.shape[0] // key.shape[0], query.shape[1]
    key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
    mask = torch.zeros(length, length, dtype=torch.bool)
    for start, end in spans:
        for row in range(start, end):
            first = start if window is None else max(start, row - window + 1)
            mask[row, first : row + 1] = True
    scores = (query @ key.transpose(1, 2) * scaling).masked_fill(~mask, -1e9)
    return (torch.softmax(scores, -1) @ value).transpose(0, 1)


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    heads=st.sampled_from([(4, 4), (4, 2), (6, 1)]),
    window=st.one_of(st.none(), st.integers(1, 50)),
    seed=st.integers(0, 1000),
)
def test_segments_attend_to_themselves_alone(
    lengths: list[int], heads: tuple[int, int], window: int | None, seed: int
) -> None:
    check_attention(lengths, heads, window, seed)


def test_segments_longer_than_a_block() -> None:
    check_attention([attention.BLOCK + 70, 33], (4, 2), None, 0)
    check_attention([attention.BLOCK + 70], (2, 2), 100, 0)


def check_attention(
    lengths: list[int], heads: tuple[int, int], window: int | None, seed: int
) -> None:
    torch.manual_seed(seed)
    total = sum(lengths)
    ends = np.cumsum(lengths).tolist()
    spans = [(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    shapes = [(heads[0], total, 8), (heads[1], total, 8), (heads[1], total, 8)]
    inputs = [torch.randn(shape).requires_grad_() for shape in shapes]
    outer = torch.randn(total, heads[0], 8)
    gradients = []
    results = []
    for function in (attention.segment_attention, attention._by_kernel, masked_attention):
        output = function(*inputs, spans, 0.3, window)
        (output * outer).sum().backward()
        results.append(output.detach())
        gradients.append([tensor.grad for tensor in inputs])
        for tensor in inputs:
            tensor.grad = None
    for number in (0, 1):
        assert torch.allclose(results[number], results[2], atol=1e-5)
        for found, expected in zip(gradients[number], gradients[2], strict=True):
            assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_equals_autograd_and_changes_no_input(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 7, 16).to(dtype).requires_grad_()
    weight, outer = torch.randn(16).to(dtype), torch.randn(3, 7, 16).to(dtype)
    kept = [tensor.detach().clone() for tensor in (x, weight, outer)]
    rms_norm(x, weight, 1e-6).backward(outer)
    found, x.grad = x.grad, None
    wide = x.float()
    normal = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    (weight * normal.to(dtype)).backward(outer)
    assert found is not None and x.grad is not None
    assert torch.allclose(found, x.grad, atol=1e-5 if dtype == torch.float32 else 0.05)
    assert all(torch.equal(a, b) for a, b in zip((x, weight, outer), kept, strict=True))


def test_long_examples_keep_less_and_give_the_same(tmp_path: Path) -> None:
    """An example above the budget computes feed-forward blocks twice instead of keeping them."""
    model = tiny("qwen2", tmp_path / "model")
    rows = rows_of(97, (60, 9, 9, 9, 9))
    gradients = []
    for budget in (20, 200):
        client = LocalTrainingClient(
            base_of(model), LoraSettings(rank=4), TrainingSettings(micro_batch_tokens=budget)
        )
        disturb(client)
        asyncio.run(client.forward_backward(datums_of(rows)))
        gradients.append(
            {name: tensor.grad for name, tensor in client.lora.named_parameters().items()}
        )
        client.close()
    for name, expected in gradients[1].items():
        assert torch.allclose(gradients[0][name], expected, atol=1e-4), name
