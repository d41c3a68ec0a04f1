"""The engine against slow references: transformers' own generation, PEFT's own layers, whole-text
decoding."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import engine_for, random_adapter
from torch import Tensor

from shammah.adapters.weights import LoraWeights
from shammah.errors import AdapterInvalidError, ContextTooLongError, GenerationError, ModelError
from shammah.generation.answer import Answer
from shammah.generation.cache import PrefixCache, common_prefix
from shammah.generation.decoding import CHUNK
from shammah.generation.engine import Engine
from shammah.generation.lora import AdaptableModel
from shammah.generation.params import GenerationParams
from shammah.generation.sampling import Sampler, candidates
from shammah.messages import Conversation, TextPart, assistant, system, user
from shammah.models.load import BaseModel, load_base_model
from shammah.renderers.detokenize import Detokenizer
from shammah.renderers.registry import renderer_for
from shammah.settings import GenerationSettings, ModelSettings
from shammah.tracking import telemetry

GREEDY = GenerationParams(max_tokens=24)
WHOLE = GenerationParams(max_tokens=200)


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def make(kind: str, **options: Any) -> Engine:
        folder = tiny_models.build(kind, tmp_path / f"{kind}{len(engines)}", **options)
        engines.append(engine_for(load_base_model(ModelSettings(name=str(folder)))))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def embedded(embedded_model: BaseModel) -> Iterator[Engine]:
    engine = engine_for(embedded_model)
    yield engine
    engine.close()


def slow_answer(engine: Engine, conversation: Conversation, params: GenerationParams) -> list[int]:
    """Greedy decoding by one full forward pass per token, without any cache."""
    tokens = engine.renderer.generation_prompt(conversation)
    answer: list[int] = []
    with torch.no_grad():
        while len(answer) < params.max_tokens:
            logits = engine.base.model(torch.tensor([tokens + answer]), use_cache=False).logits
            token = int(logits[0, -1].argmax())
            if token in engine.renderer.stop_tokens:
                break
            answer.append(token)
    return answer


LONG: Conversation = (system("s" * 30), user("the other " * 8), assistant("ou é"), user("Who?"))


@pytest.mark.parametrize("kind", tiny_models.KINDS)
def test_every_architecture_answers_as_without_cache_with_and_without_adapter(
    kind: str, load: Callable[..., Engine]
) -> None:
    engine = load(kind)
    plain = engine.generate(LONG, GREEDY)
    assert plain.text == said(engine, slow_answer(engine, LONG, GREEDY))
    assert plain.adapter is None
    assert engine.activate(random_adapter(engine.base, 1), "one") == 1
    adapted = engine.generate(LONG, GREEDY)
    assert (adapted.adapter, adapted.generation) == ("one", 1)
    assert adapted.text == said(engine, slow_answer(engine, LONG, GREEDY))
    assert adapted.text != plain.text
    engine.activate(None, None)
    again = engine.generate(LONG, GREEDY)
    assert (again.text, again.adapter, again.generation) == (plain.text, None, 2)


def test_every_answer_is_told_with_its_figures(embedded: Engine) -> None:
    told: list[Any] = []
    with telemetry.attached("test", ["generation.complete"], lambda *event: told.append(event)):
        answer = embedded.generate((user("What is your name?"),), GREEDY)
    ((_, figures, about),) = told
    assert (figures["tokens"], figures["seconds"]) == (answer.tokens, answer.seconds)
    assert about == {"adapter": None, "reason": answer.stop_reason}


def test_greedy_tokens_equal_transformers_generate(embedded: Engine) -> None:
    conversation = (user("What is the capital of France?"),)
    prompt = embedded.renderer.generation_prompt(conversation)
    theirs = embedded.base.model.generate(
        torch.tensor([prompt]), max_new_tokens=40, do_sample=False, use_cache=True
    )
    answer = embedded.generate(conversation, GenerationParams(max_tokens=40))
    assert answer.text == embedded.renderer.decode(theirs[0, len(prompt) :].tolist())


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_lora_logits_equal_pefts(kind: str, load: Callable[..., Engine]) -> None:
    from peft import LoraConfig, get_peft_model

    engine = load(kind)
    weights = random_adapter(engine.base, 3)
    prompt = torch.tensor([engine.renderer.generation_prompt(LONG)])
    engine.activate(weights, "one")
    engine.generate(LONG, GREEDY)  # the answering thread sets the slot
    with torch.no_grad():
        ours = engine.base.model(prompt).logits
    engine.close()
    plain = load_base_model(ModelSettings(name=str(engine.base.path)))
    names = [path.split(".")[-1] for path in weights.modules]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=sorted(set(names)), lora_dropout=0.0)
    peft = get_peft_model(plain.model, config)
    modules = dict(peft.base_model.model.named_modules())
    with torch.no_grad():
        for path, (a, b) in weights.modules.items():
            modules[path].lora_A["default"].weight.copy_(a)
            modules[path].lora_B["default"].weight.copy_(b)
        peft.eval()
        theirs = peft(prompt).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_an_adapter_on_some_layers_leaves_the_others(load: Callable[..., Engine]) -> None:
    engine = load("qwen2")
    engine.activate(random_adapter(engine.base, 1, only="layers.1.self_attn.v_proj"), "some")
    answer = engine.generate(LONG, GREEDY)
    assert answer.text == said(engine, slow_answer(engine, LONG, GREEDY))


def test_an_adapter_that_does_not_fit_is_refused_and_the_running_one_stays(
    load: Callable[..., Engine],
) -> None:
    engine = load("qwen2")
    engine.activate(random_adapter(engine.base, 1), "good")
    other = LoraWeights({"model.layers.9.x": (torch.zeros(4, 32), torch.zeros(32, 4))}, 1.0)
    with pytest.raises(AdapterInvalidError, match="does not have"):
        engine.activate(other, "other")
    path = next(iter(engine.base.shape.modules))
    with pytest.raises(AdapterInvalidError, match="tensors of"):
        engine.activate(LoraWeights({path: (torch.zeros(4, 31), torch.zeros(32, 4))}, 1.0), "wide")
    assert (engine.active_name, engine.generation) == ("good", 1)


def test_two_engines_cannot_have_one_model_and_closing_gives_it_back(
    embedded_model: BaseModel,
) -> None:
    engine = engine_for(embedded_model)
    with pytest.raises(ModelError, match="another engine"):
        AdaptableModel(embedded_model.model)
    engine.close()
    with pytest.raises(GenerationError, match="closed"):
        engine.generate((user("Hi"),), GREEDY)
    engine_for(embedded_model).close()


# The prefix cache.


def test_a_turn_reads_only_what_is_new_and_answers_as_without_the_cache(embedded: Engine) -> None:
    conversation: Conversation = (system("You are Shammah."),)
    for question in ("Hello!", "Who are you?", "What can you do?", "Thanks!"):
        conversation = (*conversation, user(question))
        cached = embedded.generate(conversation, GREEDY)
        new = cached.prompt_tokens - cached.reused_tokens
        if len(conversation) > 2:
            assert new < 40 < cached.prompt_tokens
        embedded.forget()
        fresh = embedded.generate(conversation, GREEDY)
        assert fresh.reused_tokens == 0
        assert fresh.text == cached.text
        conversation = (*conversation, assistant(cached.text))


def test_a_conversation_that_branches_goes_back_to_where_it_did(
    load: Callable[..., Engine],
) -> None:
    for kind in ("mistral", "qwen2"):  # with and without a sliding window
        engine = load(kind)
        engine.generate((*LONG, assistant("x"), user("more " * 20)), GREEDY)
        branched = engine.generate(LONG, GREEDY)
        assert branched.reused_tokens > 40
        again = engine.generate(LONG, GREEDY)
        assert again.reused_tokens == again.prompt_tokens - 1
        expected = said(engine, slow_answer(engine, LONG, GREEDY))
        assert branched.text == again.text == expected


def test_a_swap_reads_everything_again(embedded: Engine) -> None:
    conversation = (user("Hello!"),)
    embedded.generate(conversation, GREEDY)
    embedded.activate(random_adapter(embedded.base, 1, size=0.01), "one")
    assert embedded.generate(conversation, GREEDY).reused_tokens == 0
    assert embedded.generate(conversation, GREEDY).reused_tokens > 0
    embedded.activate(None, None)
    assert embedded.generate(conversation, GREEDY).reused_tokens == 0


def test_a_prompt_longer_than_a_chunk_is_read_as_one(load: Callable[..., Engine]) -> None:
    engine = load("llama", max_position_embeddings=2048)
    conversation = (user("ab" * CHUNK),)
    answer = engine.generate(conversation, GREEDY)
    assert answer.prompt_tokens > 2 * CHUNK
    assert answer.text == said(engine, slow_answer(engine, conversation, GREEDY))


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_prefix(first: list[int], second: list[int]) -> None:
    size = common_prefix(first, second)
    assert first[:size] == second[:size]
    assert first[size : size + 1] != second[size : size + 1] or size == min(len(first), len(second))


def test_a_cache_of_another_generation_is_never_given(load: Callable[..., Engine]) -> None:
    cache = PrefixCache(load("qwen2").base.model.config)
    for generation in (1, 2, 3):
        held, shared = cache.take(generation, [1, 2, 3])
        assert shared == 0
        cache.keep(generation, [1, 2, 3], held)
    assert cache.take(1, [1, 2, 3])[1] == 0  # the one used longest ago gave way
    assert cache.take(2, [1, 2, 3])[1] == cache.take(3, [1, 2, 3])[1] == 2


def said(engine: Engine, tokens: Sequence[int]) -> str:
    """The text of an answer in these tokens."""
    return engine.renderer.parse(tokens).message.text


# Drawing.


def test_seeded_answers_repeat_and_seeds_differ(embedded: Engine) -> None:
    conversation = (user("Tell me something."),)
    params = GenerationParams(max_tokens=30, temperature=1.5, seed=7)
    first = embedded.generate(conversation, params)
    assert first.seed == 7
    assert embedded.generate(conversation, params).text == first.text
    embedded.forget()
    assert embedded.generate(conversation, params).text == first.text
    other = GenerationParams(max_tokens=30, temperature=1.5, seed=8)
    assert embedded.generate(conversation, other).text != first.text
    fresh = embedded.generate(conversation, GenerationParams(max_tokens=30, temperature=1.5))
    recorded = GenerationParams(max_tokens=30, temperature=1.5, seed=fresh.seed)
    assert embedded.generate(conversation, recorded).text == fresh.text


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 3000),
    st.integers(0, 60),
    st.floats(0.05, 1.0),
    st.floats(0.3, 3.0),
    st.integers(0, 9),
)
def test_candidates_equal_transformers_warpers(
    size: int, top_k: int, top_p: float, temperature: float, seed: int
) -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3
    expected = TemperatureLogitsWarper(temperature)(None, scores[None])
    if top_k:
        expected = TopKLogitsWarper(min(top_k, size))(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    params = GenerationParams(temperature=temperature, top_k=top_k, top_p=top_p)
    tokens, probabilities = candidates(scores, params)
    ours = torch.zeros(size).scatter(0, tokens, probabilities)
    # Sums in another order may move the edge of the nucleus by one token.
    difference = (ours - expected.softmax(-1)[0]).abs()
    edge = float(probabilities.min())
    assert float(difference.max()) < max(1e-4, 1.5 * edge)
    if top_p == 1:
        assert float(difference.max()) < 1e-4


def test_a_repetition_penalty_equals_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    scores = torch.randn(50, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(GenerationParams(repetition_penalty=5.0), [3, 7])
    seen = [3, 7]
    for _ in range(5):
        penalised = RepetitionPenaltyLogitsProcessor(5.0)(
            torch.tensor([seen]), scores[None].clone()
        )
        token = sampler.draw(scores)
        assert token == int(penalised[0].argmax())
        seen.append(token)


def test_parameters_come_from_the_settings() -> None:
    chosen = GenerationSettings(temperature=0.5, top_k=3, seed=1)
    params = GenerationParams.from_settings(chosen)
    assert (params.temperature, params.top_k, params.seed) == (0.5, 3, 1)
    assert params.to_dict() == chosen.model_dump()


# Text.


@cache
def byte_decode() -> Callable[[Any], str]:
    return renderer_for(tiny_models.byte_tokenizer()).decode


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_streamed_text_is_the_whole_text_and_never_half_a_character(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    tokens = tiny_models.byte_tokenizer()(text, add_special_tokens=False)["input_ids"]
    stream = Detokenizer(byte_decode())
    pieces = [stream.push(token) for token in tokens]
    assert "�" not in "".join(pieces) or "�" in text
    assert "".join(pieces) + stream.finish() == byte_decode()(tokens)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 258), max_size=60))
def test_streamed_rubbish_is_the_whole_text_too(tokens: list[int]) -> None:
    stream = Detokenizer(byte_decode())
    pieces = [stream.push(token) for token in tokens]
    streamed = "".join(pieces) + stream.finish()
    # Broken bytes may be counted as one or as several replacement characters.
    assert streamed.replace("�", "") == byte_decode()(tokens).replace("�", "")


def test_streaming_a_sentencepiece_vocabulary_keeps_its_spaces(
    shared_data: Callable[[str], Path],
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_data("models/stories260K"))
    decode = renderer_for(tokenizer).decode
    tokens = tokenizer("Once upon a time, naïve Lily  ran.\n\nShe é🙂", add_special_tokens=False)
    stream = Detokenizer(decode)
    streamed = "".join(stream.push(token) for token in tokens["input_ids"]) + stream.finish()
    assert streamed == decode(tokens["input_ids"])


def test_detokenizing_costs_the_same_for_each_token() -> None:
    lengths: list[int] = []

    def decode(tokens: Any) -> str:
        lengths.append(len(tokens))
        return byte_decode()(tokens)

    stream = Detokenizer(decode)
    for token in [*range(60, 90)] * 20 + [200] * 100:  # the last are no text at all
        stream.push(token)
    assert max(lengths) <= 16


@given(st.lists(st.sampled_from(["a", "\n", "\n\nUs", "er:", "U", "\n\nUser", " b"])))
def test_the_next_turn_ends_an_answer_wherever_it_breaks(pieces: list[str]) -> None:
    tokenizer = tiny_models.byte_tokenizer(chat_template=None)
    parser = renderer_for(tokenizer).parser()
    whole = "x" + "".join(pieces)
    said = ""
    for token in tokenizer(whole)["input_ids"]:
        said += "".join(part.text for part in parser.feed(token) if isinstance(part, TextPart))
    rest, parsed = parser.finish()
    said += "".join(part.text for part in rest if isinstance(part, TextPart))
    assert parser.ended == ("\nUser:" in whole)
    assert said == parsed.message.text
    assert said.rstrip("\n") == whole.partition("\nUser:")[0].rstrip("\n")


# Streaming, stopping, failing.


async def collect(engine: Engine, conversation: Conversation, params: GenerationParams) -> Answer:
    stream = engine.stream(conversation, params)
    pieces = [piece async for piece in stream]
    assert "".join(pieces) == stream.result.text
    return stream.result


async def test_streams_give_what_generate_gives_one_after_another(embedded: Engine) -> None:
    questions = [(user(text),) for text in ("Hello!", "Who are you?", "Thanks!")]
    streamed = await asyncio.gather(*(collect(embedded, each, WHOLE) for each in questions))
    assert [a.text for a in streamed] == [embedded.generate(q, WHOLE).text for q in questions]
    answer = streamed[0]
    assert answer.stop_reason == "end"
    assert not answer.cut
    assert answer.tokens > 0
    assert 0 < answer.first_token_seconds <= answer.seconds
    assert answer.tokens_per_second > 0


async def test_stop_really_stops_within_one_token(load: Callable[..., Engine]) -> None:
    engine = load("llama", max_position_embeddings=100_000)
    calls = 0
    inner = engine.base.model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return inner(*args, **kwargs)

    engine.base.model.forward = counted
    stream = engine.stream(
        (user("go"),), GenerationParams(max_tokens=90_000, temperature=2.0, seed=1)
    )
    async for _ in stream:
        stream.stop()
        at_stop = calls
        break
    rest = "".join([piece async for piece in stream])
    answer = stream.result
    assert answer.text.endswith(rest)
    assert (answer.cut, answer.stop_reason) == (True, "cut")
    # What was under way when stop() was called, and nothing after it.
    assert answer.tokens <= at_stop + 1
    calls = 0
    await asyncio.sleep(0.05)
    assert calls == 0
    stopped_early = engine.stream((user("go"),), GREEDY)
    stopped_early.stop()
    assert [piece async for piece in stopped_early] == []
    assert stopped_early.result.cut


async def test_a_stream_that_is_dropped_stops_decoding(load: Callable[..., Engine]) -> None:
    engine = load("llama", max_position_embeddings=100_000)
    endless = GenerationParams(max_tokens=90_000, temperature=2.0, seed=1)
    stream = engine.stream((user("go"),), endless)
    await anext(stream)
    del stream
    started = time.perf_counter()
    await collect(engine, (user("next"),), GREEDY)
    assert time.perf_counter() - started < 20


async def test_a_failure_reaches_the_listener_and_the_engine_lives_on(
    embedded: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = (user("Hello!"),)
    good = await collect(embedded, conversation, GREEDY)
    layer = embedded.base.model.get_submodule("model.layers.3.mlp.down_proj")
    working = layer.forward
    calls = 0

    def failing(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("the layer broke")
        return working(x)

    monkeypatch.setattr(layer, "forward", failing)
    stream = embedded.stream(conversation, GREEDY)
    with pytest.raises(GenerationError, match="the layer broke"):
        async for _ in stream:
            pass
    again = await collect(embedded, conversation, GREEDY)
    assert again.text == good.text
    assert again.reused_tokens == 0  # nothing half-read was kept


async def test_a_full_context_ends_the_answer_and_a_prompt_beyond_it_is_refused(
    load: Callable[..., Engine],
) -> None:
    engine = load("gpt2", n_positions=64)
    answer = await collect(
        engine, (user("go"),), GenerationParams(max_tokens=500, temperature=3.0, seed=2)
    )
    assert answer.stop_reason in ("length", "end")
    conversation = (user("g" * 35),)
    prompt = len(engine.renderer.generation_prompt(conversation))
    limited = await collect(
        engine, conversation, GenerationParams(max_tokens=500, temperature=3.0, seed=2)
    )
    assert prompt + limited.tokens <= 64
    assert limited.stop_reason == "length"
    with pytest.raises(ContextTooLongError, match="64 altogether"):
        await collect(engine, (user("g" * 80),), GREEDY)


def test_a_model_without_template_stops_at_the_next_turn(
    shared_data: Callable[[str], Path],
) -> None:
    base = load_base_model(ModelSettings(name=str(shared_data("models/stories260K"))))
    engine = engine_for(base)
    answer = engine.generate((user("Once upon a time"),), GenerationParams(max_tokens=120))
    assert answer.text
    assert "User:" not in answer.text
    engine.activate(random_adapter(base, 1, size=0.05), "one")
    assert engine.generate((user("Once upon a time"),), GREEDY).adapter == "one"
    engine.close()


async def test_closing_while_answering_ends_the_answer(load: Callable[..., Engine]) -> None:
    engine = load("llama", max_position_embeddings=100_000)
    endless = GenerationParams(max_tokens=90_000, temperature=2.0, seed=1)
    stream = engine.stream((user("go"),), endless)
    waiting = engine.stream((user("next"),), endless)
    await anext(stream)
    await asyncio.to_thread(engine.close)
    async for _ in stream:
        pass
    assert stream.result.cut
    with pytest.raises(GenerationError, match="closed"):
        await anext(waiting)
