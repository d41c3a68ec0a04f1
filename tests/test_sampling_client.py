"""Samples and log-probabilities against plain forward passes of the same model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from tiny_models import engine_for, random_adapter

from shammah.errors import AdapterInvalidError, ModelError, SamplingError
from shammah.generation.engine import Engine
from shammah.generation.local_sampling import BaseSamplingClient, LocalSamplingClient, row_seed
from shammah.generation.params import GenerationParams
from shammah.messages import user
from shammah.models.load import BaseModel, load_base_model
from shammah.ports.datum import ImageChunk, ModelInput
from shammah.ports.sampling_client import SampledToken, SamplingClient, SamplingParams
from shammah.ports.training_client import AdamParams
from shammah.settings import LoraSettings, ModelSettings, TrainingSettings
from shammah.training.datums import from_tokens
from shammah.training.local_client import LocalTrainingClient

PROMPT = tuple(range(3, 40))
WARM = SamplingParams(max_tokens=12, temperature=1.0, seed=7)

Make = Callable[..., BaseSamplingClient]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[BaseSamplingClient] = []

    def client(kind: str = "qwen2", adapter: int | None = None, **options: Any) -> Any:
        base = load(kind, tmp_path / f"{kind}{len(made)}", **options)
        weights = None if adapter is None else random_adapter(base, adapter)
        made.append(BaseSamplingClient(base, weights, "one"))
        return made[-1]

    yield client
    for one in made:
        one.close()


def load(kind: str, folder: Path, dtype: Any = "fp32", **options: Any) -> BaseModel:
    path = tiny_models.build(kind, folder, **options)
    return load_base_model(ModelSettings(name=str(path), device="cpu", dtype=dtype))


def plainly(base: BaseModel, tokens: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Log-probabilities [T - 1] of the tokens after the first, by one forward pass over all."""
    with torch.no_grad():
        logits = base.model(torch.tensor([tokens]), use_cache=False).logits[0].float()
    following = torch.tensor(tokens[1:])[:, None]
    found: np.ndarray[Any, np.dtype[np.float32]] = (
        logits[:-1].log_softmax(-1).gather(-1, following)[:, 0].numpy()
    )
    return found


def of(client: BaseSamplingClient) -> BaseModel:
    return client._sampling._base


@pytest.mark.parametrize("kind", tiny_models.KINDS)
@pytest.mark.parametrize("adapter", [None, 1], ids=["base", "adapter"])
async def test_logprobs_are_the_models(
    kind: str, adapter: int | None, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shammah.generation.decoding.LOGITS_BYTES", 4 * 300 * 16)
    client = make(kind, adapter)
    await client.sample(ModelInput.of(PROMPT), SamplingParams(max_tokens=1))  # sets the adapter
    found = await client.compute_logprobs(ModelInput.of(PROMPT))
    assert found.shape == (len(PROMPT),) and found.dtype == np.float32 and np.isnan(found[0])
    np.testing.assert_allclose(found[1:], plainly(of(client), PROMPT), atol=2e-4)
    samples = await client.sample(ModelInput.of(PROMPT), WARM, 5)
    assert len(samples) == 5 and len({sample.tokens for sample in samples}) > 1
    for sample in samples:
        assert len(sample) == 12 and sample.stop_reason == "length" and sample.stop_token is None
        again = await client.compute_logprobs(ModelInput.of(PROMPT + sample.tokens))
        np.testing.assert_allclose(again[len(PROMPT) :], sample.logprobs, atol=2e-4)


async def test_logprobs_are_at_temperature_one_whatever_it_is_drawn_with(make: Make) -> None:
    client = make()
    for params in (
        SamplingParams(max_tokens=6),
        SamplingParams(max_tokens=6, temperature=0.3, top_k=4, seed=1),
        SamplingParams(max_tokens=6, temperature=3.0, top_p=0.5, seed=1),
    ):
        (sample,) = await client.sample(ModelInput.of(PROMPT), params)
        expected = plainly(of(client), PROMPT + sample.tokens)[len(PROMPT) - 1 :]
        np.testing.assert_allclose(sample.logprobs, expected, atol=2e-4)


@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "mistral"])
async def test_rows_of_a_batch_are_what_each_is_alone(kind: str, make: Make) -> None:
    client = make(kind, 2)
    prompt = ModelInput.of(PROMPT)
    # A stop token that is likely enough for the rows to end at different times.
    (greedy,) = await client.sample(prompt, SamplingParams(max_tokens=3))
    stops = tuple({greedy.tokens[0], *range(100, 130)})
    params = SamplingParams(max_tokens=30, temperature=1.3, seed=11, stop_tokens=stops)
    together = await client.sample(prompt, params, 6)
    assert len({len(sample) for sample in together}) > 2
    for row, sample in enumerate(together):
        seeded = SamplingParams(30, 1.3, row_seed(11, row), stops)
        (alone,) = await client.sample(prompt, seeded)
        assert alone.tokens == sample.tokens and alone.stop_reason == sample.stop_reason
        np.testing.assert_allclose(alone.logprobs, sample.logprobs, atol=2e-4)
        if sample.stop_reason == "stop":
            assert sample.stop_token == sample.tokens[-1] in stops
            assert sample.answer_tokens == sample.tokens[:-1]
        assert not set(stops) & set(sample.answer_tokens)
    assert await client.sample(prompt, params, 6) == together
    assert row_seed(11, 0) == 11 and len({row_seed(11, row) for row in range(100)}) == 100


async def test_a_model_that_holds_more_than_keys_draws_one_row_after_another(
    tmp_path: Path,
) -> None:
    """Short convolutions have a state of their own, which no row can be given a copy of."""
    import transformers as hf

    torch.manual_seed(0)
    path = tiny_models.build("qwen2", tmp_path / "model")
    config = hf.Lfm2Config(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention"],
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    hf.Lfm2ForCausalLM(config).save_pretrained(path)
    client = BaseSamplingClient(
        load_base_model(ModelSettings(name=str(path), device="cpu", dtype="fp32"))
    )
    try:
        assert not client._sampling._decoder.batches
        samples = await client.sample(ModelInput.of(PROMPT), WARM, 3)
        assert len({sample.tokens for sample in samples}) == 3
        for sample in samples:
            expected = plainly(of(client), PROMPT + sample.tokens)[len(PROMPT) - 1 :]
            np.testing.assert_allclose(sample.logprobs, expected, atol=2e-4)
        found = await client.compute_logprobs(ModelInput.of(PROMPT))
        np.testing.assert_allclose(found[1:], plainly(of(client), PROMPT), atol=2e-4)
        assert await client.sample(ModelInput.of(PROMPT), WARM, 3) == samples
    finally:
        client.close()


async def test_samples_are_spread_as_the_model_says(make: Make) -> None:
    client = make()
    with torch.no_grad():
        logits = of(client).model(torch.tensor([PROMPT])).logits[0, -1].float()
    chances = (logits / 2.0).softmax(-1).numpy()
    params = SamplingParams(max_tokens=1, temperature=2.0, seed=0)
    samples = await client.sample(ModelInput.of(PROMPT), params, 2000)
    counts = np.bincount([sample.tokens[0] for sample in samples], minlength=len(chances))
    likely = chances > 0.01
    deviation = (counts - 2000 * chances)[likely] / np.sqrt(2000 * chances[likely])
    assert likely.sum() > 5 and np.abs(deviation).max() < 4.5


async def test_a_stream_is_the_sample_and_can_be_dropped(make: Make) -> None:
    client = make()
    prompt = ModelInput.of(PROMPT)
    (sample,) = await client.sample(prompt, WARM)
    streamed = [token async for token in client.stream(prompt, WARM)]
    assert tuple(token.token for token in streamed) == sample.tokens
    assert tuple(token.logprob for token in streamed) == sample.logprobs
    assert [token.stop_reason for token in streamed] == [None] * 11 + ["length"]
    endless = client.stream(prompt, SamplingParams(max_tokens=400, temperature=1.0, seed=1))
    other = client.stream(prompt, WARM)
    taken: list[SampledToken] = []
    async for token in endless:
        taken.append(token)
        if len(taken) <= 3:  # two streams at once do not disturb each other
            assert (await anext(other)).token == sample.tokens[len(taken) - 1]
        if len(taken) == 5:
            break
    await endless.aclose()  # type: ignore[attr-defined]
    assert [token.token async for token in other] == list(sample.tokens[3:])
    assert await client.sample(prompt, WARM) == (sample,)


async def test_stop_texts_end_with_the_token_that_completes_them(make: Make) -> None:
    client = make()
    tokenizer = of(client).tokenizer
    prompt = ModelInput.of(PROMPT)
    free = await client.sample(prompt, WARM, 4)
    text = tokenizer.decode(free[0].tokens[4:6])
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=7, stop_texts=(text,))
    stopped = await client.sample(prompt, params, 4)
    assert stopped[0].stop_reason == "stop" and stopped[0].stop_token is None
    assert stopped[0].tokens == free[0].tokens[: len(stopped[0])] and len(stopped[0]) <= 6
    assert text in tokenizer.decode(stopped[0].answer_tokens)
    for one, other in zip(stopped[1:], free[1:], strict=True):
        assert one.tokens == other.tokens[: len(one)]


async def test_the_context_is_the_end(make: Make) -> None:
    client = make(max_position_embeddings=48)
    (sample,) = await client.sample(ModelInput.of(PROMPT), SamplingParams(max_tokens=100))
    assert len(sample) == 48 - len(PROMPT) and sample.stop_reason == "length"
    whole = PROMPT + sample.tokens
    assert len(await client.compute_logprobs(ModelInput.of(whole))) == 48
    for call in (
        client.sample(ModelInput.of(whole), WARM),
        client.compute_logprobs(ModelInput.of((*whole, 1))),
    ):
        with pytest.raises(SamplingError, match="the model reads 48"):
            await call


async def test_what_cannot_be_sampled(make: Make) -> None:
    client = make()
    image = ModelInput((ImageChunk(b"\xff\xd8\xff", "jpeg", 2),))
    for prompt, words in (
        (ModelInput.of(()), "no token to begin with"),
        (ModelInput.of((1, 99_999)), "token 99999 is not in the vocabulary"),
        (image, "an image"),
    ):
        with pytest.raises(SamplingError, match=words) as caught:
            await client.sample(prompt, WARM)
        with pytest.raises(SamplingError, match=words):
            await client.compute_logprobs(prompt)
        with pytest.raises(SamplingError, match=words):
            _ = [token async for token in client.stream(prompt, WARM)]
        assert (caught.value.port, caught.value.backend) == ("SamplingClient", "local torch")
    with pytest.raises(SamplingError, match="0 samples"):
        await client.sample(ModelInput.of(PROMPT), WARM, 0)
    with pytest.raises(ModelError, match="another engine"):
        BaseSamplingClient(of(client))
    assert len(await client.sample(ModelInput.of(PROMPT), WARM)) == 1
    client.close()
    with pytest.raises(SamplingError, match="closed"):
        await client.sample(ModelInput.of(PROMPT), WARM)
    wrong = random_adapter(load("llama", Path(of(client).path).parent / "other"), 1, rank=2)
    with pytest.raises(AdapterInvalidError):
        BaseSamplingClient(load("gpt2", Path(of(client).path).parent / "gpt"), wrong)


async def test_a_failure_inside_the_model_has_its_cause(make: Make) -> None:
    client = make()

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("no more")

    of(client).model.forward = fail
    with pytest.raises(SamplingError, match="not enough memory") as caught:
        await client.sample(ModelInput.of(PROMPT), WARM, 3)
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    del of(client).model.forward
    assert len(await client.sample(ModelInput.of(PROMPT), WARM, 3)) == 3


async def test_giving_up_on_a_sample_ends_it(make: Make) -> None:
    client = make(max_position_embeddings=200_000)
    long = SamplingParams(max_tokens=150_000, temperature=1.0, seed=1)
    task = asyncio.create_task(client.sample(ModelInput.of(PROMPT), long, 4))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # The thread is free again at once.
    await asyncio.wait_for(client.sample(ModelInput.of(PROMPT), WARM), 30)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = engine_for(load("qwen2", tmp_path / "engine"))
    yield engine
    engine.close()


async def test_beside_a_chat(engine: Engine) -> None:
    """On the engine's thread, with the adapter asked for, and without touching its prefix cache."""
    question = (user("Who is there, and why?"),)
    params = GenerationParams(max_tokens=20)
    prompt = ModelInput.of(engine.renderer.generation_prompt(question))
    active = engine.sampling_client()
    before = await asyncio.to_thread(engine.generate, question, params)
    plain = await active.sample(prompt, WARM, 3)
    engine.activate(random_adapter(engine.base, 1), "one")
    pinned = engine.sampling_client(engine.active)
    adapted = await active.sample(prompt, WARM, 3)
    assert adapted != plain
    aside = engine.sampling_client(engine.prepare_aside(None, None))
    assert await aside.sample(prompt, WARM, 3) == plain
    answers, sampled = await asyncio.gather(
        asyncio.to_thread(engine.generate, question, params), pinned.sample(prompt, WARM, 3)
    )
    assert sampled == adapted and answers.adapter == "one" and answers.text != before.text
    engine.activate(None, None)
    assert await active.sample(prompt, WARM, 3) == plain
    again = await asyncio.to_thread(engine.generate, question, params)
    assert again.text == before.text
    third = await asyncio.to_thread(engine.generate, question, params)
    assert third.reused_tokens == third.prompt_tokens - 1
    engine.close()
    with pytest.raises(SamplingError, match="closed"):
        await active.sample(prompt, WARM)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
async def test_the_trainers_samples_are_of_the_weights_as_they_are(
    tmp_path: Path, dtype: str
) -> None:
    base = load("llama", tmp_path / "model", dtype)
    client = LocalTrainingClient(base, LoraSettings(rank=4, alpha=8), TrainingSettings())
    sampler: SamplingClient = client.sampler
    assert isinstance(sampler, LocalSamplingClient)
    prompt = ModelInput.of(PROMPT)
    answer = (50, 51, 52, 53)
    lesson = from_tokens([*PROMPT, *answer], [0.0] * len(PROMPT) + [1.0] * 4)
    before = await sampler.sample(prompt, SamplingParams(max_tokens=4))
    for _ in range(40):
        output = await client.forward_backward([lesson])
        if output.greedy[0]:
            break
        await client.optim_step(AdamParams(2e-2))
        await sampler.sample(prompt, SamplingParams(max_tokens=1))
    (after,) = await sampler.sample(prompt, SamplingParams(max_tokens=4))
    assert after.tokens == answer != before[0].tokens
    looked = (await client.forward([lesson])).logprobs[0][-4:]
    tolerance = 2e-4 if dtype == "fp32" else 0.1
    np.testing.assert_allclose(after.logprobs, looked, atol=tolerance)
    computed = await sampler.compute_logprobs(ModelInput.of(PROMPT + answer))
    np.testing.assert_allclose(computed[-4:], looked, atol=tolerance)
    streamed = [token.token async for token in sampler.stream(prompt, SamplingParams(max_tokens=4))]
    assert tuple(streamed) == answer
    # Training goes on as if nobody had sampled.
    await client.forward_backward([lesson])
    client.close()
