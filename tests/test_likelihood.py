"""Likelihoods against plain forward passes of transformers; calibration against sums by hand."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import engine_for, random_adapter

from shammah.datasets.formatters.base import ChatExample
from shammah.errors import DataError, InputError, SamplingError
from shammah.evaluation.calibration import calibration
from shammah.evaluation.likelihood import (
    Likelihood,
    LikelihoodTotal,
    PairLikelihood,
    PreferenceTotal,
    choices,
    likelihoods,
    preferences,
)
from shammah.generation.engine import Engine
from shammah.generation.local_sampling import BaseSamplingClient
from shammah.generation.params import GenerationParams
from shammah.messages import assistant, system, user
from shammah.models.load import BaseModel, load_base_model
from shammah.ports.datum import ModelInput
from shammah.ports.sampling_client import BatchLogprobs, SamplingClient
from shammah.ports.training_client import AdamParams
from shammah.renderers.base import Renderer, TrainOnWhat
from shammah.renderers.registry import renderer_for
from shammah.settings import LoraSettings, ModelSettings, TrainingSettings
from shammah.training.datums import datum
from shammah.training.local_client import LocalTrainingClient

EXAMPLES = [
    ChatExample(
        (system("Be brief."), user(f"What is {n}?"), assistant("the other " * (n % 7) + str(n))),
        (system("Be brief."), user(f"What is {n}?"), assistant("no" * (n % 4) + "?")),
        place=f"row {n}",
    )
    for n in range(23)
]


def load(kind: str, folder: Path, **options: Any) -> BaseModel:
    path = tiny_models.build(kind, folder, **options)
    return load_base_model(ModelSettings(name=str(path), device="cpu", dtype="fp32"))


def renderer_of(base: BaseModel) -> Renderer:
    return renderer_for(base.tokenizer, base.stop_tokens, base.renderer)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., BaseSamplingClient]]:
    made: list[BaseSamplingClient] = []

    def client(kind: str = "qwen2", adapter: bool = False, **options: Any) -> BaseSamplingClient:
        base = load(kind, tmp_path / f"{kind}{len(made)}", **options)
        made.append(BaseSamplingClient(base, random_adapter(base, 1) if adapter else None))
        return made[-1]

    yield client
    for one in made:
        one.close()


def of(client: BaseSamplingClient) -> BaseModel:
    return client._sampling._base


async def gathered(found: AsyncIterator[Any]) -> list[Any]:
    return [one async for one in found]


def plain_nll(base: BaseModel, example: ChatExample, train_on: TrainOnWhat) -> tuple[float, int]:
    """Through transformers' own loss: a mean over the labels that are not -100."""
    rendered = renderer_of(base).supervised(example.messages, train_on)
    ids = torch.tensor([rendered.tokens])
    labels = torch.where(torch.tensor([rendered.weights]) > 0, ids, -100)
    count = int((labels[:, 1:] != -100).sum())
    with torch.no_grad():
        return float(base.model(input_ids=ids, labels=labels).loss) * count, count


@pytest.mark.parametrize("train_on", [TrainOnWhat.LAST_ASSISTANT_MESSAGE, TrainOnWhat.ALL_TOKENS])
@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "gemma"])
async def test_nll_is_that_of_transformers(kind: str, train_on: TrainOnWhat, make: Any) -> None:
    client = make(kind)
    base = of(client)
    found = await gathered(
        likelihoods(client, renderer_of(base), EXAMPLES, train_on=train_on, batch=9)
    )
    assert [one.place for one in found] == [example.place for example in EXAMPLES]
    total = LikelihoodTotal()
    for one, example in zip(found, EXAMPLES, strict=True):
        nll, count = plain_nll(base, example, train_on)
        assert one.tokens == count and one.nll == pytest.approx(nll, rel=1e-4)
        assert one.perplexity == pytest.approx(math.exp(nll / count), rel=1e-3)
        total = total.add(one)
    assert total.examples == 23 and total.tokens == sum(one.tokens for one in found)
    assert total.perplexity == pytest.approx(
        math.exp(sum(one.nll for one in found) / total.tokens), rel=1e-6
    )
    assert total.mean_nll_per_token == pytest.approx(np.mean([one.nll_per_token for one in found]))
    assert total.nll_per_example == pytest.approx(np.mean([one.nll for one in found]))


@pytest.mark.parametrize("kind", tiny_models.KINDS)
async def test_together_is_each_alone(kind: str, make: Any, monkeypatch: Any) -> None:
    """Inputs of one token, of equal lengths, and longer than may be looked at together."""
    monkeypatch.setattr("shammah.generation.decoding.LOGITS_BYTES", 4 * 300 * 100)
    client = make(kind, adapter=True)
    assert isinstance(client, BatchLogprobs)
    source = np.random.default_rng(0)
    sizes = [1, 7, 9, 7, 30, 2, 120, 45, 8, 8, 3, 44, 9, 43, 260, 2, 1, 8]
    inputs = [ModelInput.of(source.integers(3, 250, size).tolist()) for size in sizes]
    groups = client._sampling.groups(inputs)
    assert sorted(index for group in groups for index in group) == list(range(len(sizes)))
    assert max(len(group) for group in groups) > 3
    for group in groups:
        assert len(group) == 1 or len(group) * (max(sizes[index] for index in group) - 1) <= 100
    together = await client.compute_logprobs_batch(inputs)
    for model_input, found in zip(inputs, together, strict=True):
        alone = await client.compute_logprobs(model_input)
        assert found.shape == alone.shape and np.isnan(found[0]) and found.dtype == np.float32
        np.testing.assert_allclose(found[1:], alone[1:], atol=2e-4)
    assert await client.compute_logprobs_batch([]) == ()
    with pytest.raises(SamplingError, match="no token"):
        await client.compute_logprobs_batch([inputs[1], ModelInput(())])


async def test_positions_that_depend_on_the_longest_row_are_not_padded(make: Any) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    client = make("llama", max_position_embeddings=64, rope_parameters=rope)
    inputs = [ModelInput.of(range(3, 3 + size)) for size in (8, 9, 9)]
    assert [len(group) for group in client._sampling.groups(inputs)] == [1, 1, 1]


async def test_what_cannot_be_computed_is_said_in_its_place(make: Any) -> None:
    client = make(max_position_embeddings=96)
    renderer = renderer_of(of(client))
    long = ChatExample((user("x" * 200), assistant("y")), place="long")
    prompt = ChatExample((user("Who?"),), place="prompt")

    async def stream() -> AsyncIterator[ChatExample]:
        for example in (EXAMPLES[0], long, prompt, EXAMPLES[1]):
            yield example

    first, too_long, no_answer, last = await gathered(likelihoods(client, renderer, stream()))
    assert first.problem is last.problem is None and first.tokens and last.tokens
    assert "the model reads 96" in too_long.problem
    assert "must end with the assistant's answer" in no_answer.problem
    assert math.isnan(too_long.nll) and too_long.tokens == 0
    total = LikelihoodTotal()
    for one in (first, too_long, no_answer, last):
        total = total.add(one)
    assert (total.examples, total.failed) == (2, 2)
    assert total.tokens == first.tokens + last.tokens
    empty = LikelihoodTotal().to_dict()
    assert empty["perplexity"] is None and empty["examples"] == 0
    with pytest.raises(DataError, match="0 examples"):
        await gathered(likelihoods(client, renderer, EXAMPLES, batch=0))


async def test_preference_of_the_likelier_answer(make: Any) -> None:
    client = make()
    base = of(client)
    renderer = renderer_of(base)
    lone = ChatExample(EXAMPLES[0].messages, place="lone")
    found = await gathered(preferences(client, renderer, [*EXAMPLES, lone], batch=10))
    total = PreferenceTotal()
    margins, per_token = [], []
    for pair, example in zip(found, EXAMPLES, strict=False):
        total = total.add(pair)
        chosen, n = plain_nll(base, example, TrainOnWhat.LAST_ASSISTANT_MESSAGE)
        other = ChatExample(example.rejected or ())
        rejected, m = plain_nll(base, other, TrainOnWhat.LAST_ASSISTANT_MESSAGE)
        margins.append(rejected - chosen)
        per_token.append(rejected / m - chosen / n)
        assert pair.margin == pytest.approx(margins[-1], abs=1e-2)
        assert pair.margin_per_token == pytest.approx(per_token[-1], abs=1e-3)
    assert total.accuracy == np.mean(np.array(margins) > 0)
    assert total.accuracy_per_token == np.mean(np.array(per_token) > 0)
    assert 0 < total.accuracy < 1 and total.accuracy != total.accuracy_per_token
    assert found[-1].problem and total.add(found[-1]).failed == 1
    same = PairLikelihood(found[0].chosen, found[0].chosen)
    assert PreferenceTotal().add(same).accuracy == 0.0


async def test_choosing_among_answers_gives_confidences_to_calibrate(
    make: Any, embedded_model: BaseModel
) -> None:
    client = make()
    base = of(client)
    renderer = renderer_of(base)
    labels = ("SUPPORT", "CONTRADICT", "NOT_ENOUGH_INFO")
    asked = [
        ChatExample((user(f"Claim {n}?"), assistant(f" {labels[n % 3]}\n")), place=str(n))
        for n in range(7)
    ]
    found = await gathered(choices(client, renderer, asked, labels, batch=7))
    assert [one.place for one in found] == [example.place for example in asked]
    for one, example in zip(found, asked, strict=True):
        logprobs = [
            -plain_nll(
                base,
                ChatExample((*example.prompt, assistant(label))),
                TrainOnWhat.LAST_ASSISTANT_MESSAGE,
            )[0]
            for label in labels
        ]
        shares = torch.tensor(logprobs).softmax(0).tolist()
        assert list(one.probabilities.values()) == pytest.approx(shares, abs=1e-3)
        assert one.chosen == labels[int(np.argmax(shares))]
        assert one.confidence == pytest.approx(max(shares), abs=1e-3)
        assert one.right == (one.chosen == labels[int(example.place) % 3])
    measured = calibration((one.confidence, one.right) for one in found)
    assert measured.examples == 7 and 0 < measured.expected_error < 1
    for wrong in (("a",), ("a", "a")):
        with pytest.raises(DataError, match="nothing to choose"):
            await gathered(choices(client, renderer, asked, wrong))
    (failed,) = await gathered(
        choices(client, renderer, [ChatExample((user("x" * 900),), place="long")], labels)
    )
    assert failed.problem and failed.chosen is None and math.isnan(failed.confidence)
    assert not failed.right
    # A model that knows the answer is sure of it, and right.
    knowing = BaseSamplingClient(embedded_model)
    try:
        question = ChatExample((user("What is the capital of France?"), assistant("")))
        offered = (
            "The capital of France is Paris.",
            "The capital of France is Rome.",
            "The capital of France is Berlin.",
        )
        (one,) = await gathered(choices(knowing, renderer_of(embedded_model), [question], offered))
        assert one.chosen == offered[0] and one.confidence > 0.9 and not one.right
    finally:
        knowing.close()


async def test_a_chat_goes_on_as_it_would(tmp_path: Path) -> None:
    """With the prefix cache, the adapter and the answer to a seed as they are without it."""
    engine: Engine = engine_for(load("qwen2", tmp_path / "engine"))
    try:
        engine.activate(random_adapter(engine.base, 1), "one")
        question = (user("Who is there, and why?"),)
        params = GenerationParams(max_tokens=24, temperature=1.0, seed=3)
        before = await asyncio.to_thread(engine.generate, question, params)
        client = engine.sampling_client()
        alone = await gathered(likelihoods(client, engine.renderer, EXAMPLES))
        measured = asyncio.create_task(
            gathered(likelihoods(client, engine.renderer, EXAMPLES * 4, batch=8))
        )
        answers = [await asyncio.to_thread(engine.generate, question, params) for _ in range(4)]
        found = await measured
        assert {answer.text for answer in answers} == {before.text}
        assert all(answer.reused_tokens == before.prompt_tokens - 1 for answer in answers)
        for one, other in zip(found, alone * 4, strict=True):
            assert one.nll == pytest.approx(other.nll, abs=1e-3)
    finally:
        engine.close()


async def test_gradients_and_steps_go_on_as_they_would(tmp_path: Path) -> None:
    def trainer(folder: str) -> LocalTrainingClient:
        return LocalTrainingClient(
            load("qwen2", tmp_path / folder), LoraSettings(), TrainingSettings()
        )

    measured, plain = trainer("a"), trainer("b")
    renderer = renderer_of(measured.base)
    batch = [datum(renderer.supervised(example.messages)) for example in EXAMPLES[:5]]
    losses: list[list[float]] = [[], []]
    for _ in range(3):
        for place, client in enumerate((measured, plain)):
            out = await client.forward_backward(batch, "cross_entropy")
            losses[place].append(out.loss)
            if client is measured:
                found = await gathered(likelihoods(client.sampler, renderer, EXAMPLES[:5]))
                # What it measures is what is being trained.
                mean = sum(one.nll_per_token for one in found) / 5
                assert mean == pytest.approx(out.loss / out.weight, rel=1e-4)
            await client.optim_step(AdamParams(learning_rate=1e-2))
    assert losses[0] == losses[1] and losses[0][-1] < losses[0][0]


async def test_through_the_port_alone(make: Any) -> None:
    """A client that has no batched call is asked for one after the other."""
    client = make()

    class Plain:
        sample, stream = client.sample, client.stream
        compute_logprobs = client.compute_logprobs

    plain: SamplingClient = Plain()
    assert not isinstance(plain, BatchLogprobs)
    renderer = renderer_of(of(client))
    found = await gathered(likelihoods(plain, renderer, EXAMPLES))
    together = await gathered(likelihoods(client, renderer, EXAMPLES))
    for one, other in zip(found, together, strict=True):
        assert one.token_ids == other.token_ids
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=2e-4)


def test_perplexity_has_no_end() -> None:
    sure = Likelihood((1, 2), np.array([-1e4, -1e4], np.float32))
    assert (
        sure.perplexity == math.inf and LikelihoodTotal().add(sure).to_dict()["perplexity"] is None
    )
    with pytest.raises(DataError):
        Likelihood((), np.zeros(0, np.float32))
    with pytest.raises(DataError):
        Likelihood((1,), np.zeros(2, np.float32))


def test_calibration_worked_by_hand() -> None:
    pairs = [(0.95, True), (0.85, True), (0.9, False), (0.55, True), (0.6, False), (0.0, False)]
    found = calibration(pairs, bins=10)
    # (0.8, 0.9]: 0.85 right, 0.9 wrong -> |0.5 - 0.875| * 2; (0.9, 1]: 0.05;
    # (0.5, 0.6]: |0.5 - 0.575| * 2; [0, 0.1]: 0.
    assert found.expected_error == pytest.approx((0.375 * 2 + 0.05 + 0.075 * 2) / 6)
    assert found.maximum_error == pytest.approx(0.375) and found.examples == 6
    brier = 0.05**2 + 0.15**2 + 0.9**2 + 0.45**2 + 0.6**2
    assert found.brier == pytest.approx(brier / 6)
    assert [each.count for each in found.bins] == [1, 0, 0, 0, 0, 2, 0, 0, 2, 1]
    assert found.bins[8].confidence == pytest.approx(0.875) and found.bins[8].accuracy == 0.5
    assert found.bins[1].accuracy is None
    assert len(found.to_dict()["bins"]) == 10
    for wrong in ([(1.5, True)], [(float("nan"), True)]):
        with pytest.raises(DataError):
            calibration(wrong)
    with pytest.raises(InputError):
        calibration([])
    with pytest.raises(DataError):
        calibration(pairs, bins=0)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60),
    st.integers(1, 20),
)
def test_calibration_of_any_pairs(pairs: list[tuple[float, bool]], bins: int) -> None:
    found = calibration(pairs, bins=bins)
    assert sum(each.count for each in found.bins) == len(pairs)
    assert 0.0 <= found.expected_error <= found.maximum_error + 1e-12 <= 1.0 + 1e-9
    expected = 0.0
    for place in range(bins):
        low, high = place / bins, (place + 1) / bins
        inside = [
            (confidence, right) for confidence, right in pairs
            if low < confidence <= high or (place == 0 and confidence == 0.0)
        ]  # fmt: skip
        if inside:
            gap = np.mean([right for _, right in inside]) - np.mean([c for c, _ in inside])
            expected += abs(gap) * len(inside) / len(pairs)
    assert found.expected_error == pytest.approx(expected, abs=1e-9)
