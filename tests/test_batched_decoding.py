"""Answers decoded together against each decoded alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from tiny_models import engine_for, random_adapter

from shammah.datasets import open_dataset
from shammah.errors import LLMError
from shammah.generation.batched import RowBatch
from shammah.generation.engine import Engine
from shammah.generation.engine_batch import EngineCompleter
from shammah.messages import Conversation, Message, user
from shammah.models.load import BaseModel, load_base_model
from shammah.ports.completer import BatchCompleter
from shammah.ports.llm_client import ChatParams
from shammah.settings import ModelSettings

WORDS = ["the", "outer", "edge", "of", "a", "thing", "that", "there", "was", "no", "other", "path"]


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


def questions(count: int) -> list[Conversation]:
    """Of very different lengths, some longer than a chunk of a prompt."""
    sizes = [3, 60, 1, 17, 8, 40, 2, 25, 70, 5, 12, 33]
    return [
        (user(" ".join(WORDS[at % 7 :: 1 + at % 3] * 9)[: 4 * sizes[at % len(sizes)] + at]),)
        for at in range(count)
    ]


async def given(conversations: Sequence[Conversation]) -> AsyncIterator[Conversation]:
    for each in conversations:
        yield each


async def together(
    completer: EngineCompleter, conversations: Sequence[Conversation]
) -> list[Message | Exception]:
    found = {n: said async for n, said in completer.complete_all(given(conversations))}
    assert sorted(found) == list(range(len(conversations)))
    return [found[number] for number in range(len(conversations))]


@pytest.mark.parametrize("kind", tiny_models.KINDS)
async def test_answers_together_are_what_each_is_alone(
    kind: str, load: Callable[..., Engine]
) -> None:
    engine = load(kind)
    assert engine.batches
    adapted = engine.prepare_aside(random_adapter(engine.base, 3, size=0.1), "noise")
    asked = questions(9)
    texts = set()
    for state, temperature in ((adapted, 0.0), (adapted, 1.0), (engine.bare, 0.0)):
        params = ChatParams(max_tokens=14, temperature=temperature, seed=5)
        completer = EngineCompleter(engine, state, params, rows=4)
        assert isinstance(completer, BatchCompleter)
        alone = [await completer.complete(each) for each in asked]
        assert await together(completer, asked) == alone
        texts |= {message.text for message in alone}
    assert len(texts) > 10


async def test_the_embedded_model_answers_a_data_set_together_as_one_by_one(
    embedded: Engine, shared_data: Callable[[str], Path]
) -> None:
    data = open_dataset(shared_data("gsm8k/test.jsonl")).take(20).examples("gsm8k")
    asked = [each.prompt for each in data] + [(user("What is Git?"),), (user("Hello"),)]
    params = ChatParams(max_tokens=48)
    completer = EngineCompleter(embedded, embedded.bare, params, rows=8)
    alone = [await completer.complete(each) for each in asked]
    assert await together(completer, asked) == alone
    one = EngineCompleter(embedded, embedded.bare, params, rows=1)
    assert await together(one, asked[-4:]) == alone[-4:]


async def test_stop_texts_and_the_context_end_one_row_and_not_the_others(
    load: Callable[..., Engine],
) -> None:
    """Without a template the answer ends where the next turn begins, which only its text tells."""
    engine = load("llama", chat_template=None, max_position_embeddings=160)
    params = ChatParams(max_tokens=200, temperature=1.5, seed=2)
    completer = EngineCompleter(engine, engine.bare, params, rows=4)
    asked = questions(9)
    alone: list[Message | Exception] = []
    for each in asked:
        try:
            alone.append(await completer.complete(each))
        except LLMError as error:
            alone.append(error)
    found = await together(completer, asked)
    assert list(map(str, found)) == list(map(str, alone))
    # A prompt that fills the context is an error of its own row.
    assert 0 < sum(isinstance(each, LLMError) for each in found) < 6


async def test_what_fails_together_is_answered_alone(
    load: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load("qwen2")
    completer = EngineCompleter(engine, engine.bare, ChatParams(max_tokens=12), rows=4)
    asked = questions(7)
    alone = [await completer.complete(each) for each in asked]
    step, tried = RowBatch.step, []

    def narrow(batch: RowBatch) -> Any:
        tried.append(len(batch))
        if len(tried) == 3:
            raise torch.OutOfMemoryError("too many rows")
        return step(batch)

    monkeypatch.setattr(RowBatch, "step", narrow)
    assert await together(completer, asked) == alone
    assert max(tried) == 4


async def test_the_chat_comes_between_and_giving_up_frees_the_engine(
    load: Callable[..., Engine],
) -> None:
    engine = load("phi")
    params = ChatParams(max_tokens=400)
    completer = EngineCompleter(engine, engine.prepare_aside(None, None), params, rows=4)
    answers = completer.complete_all(given(questions(40)))
    first = await anext(answers)
    assert isinstance(first[1], Message)
    said = await completer.complete(questions(1)[0])
    assert said == (await completer.complete(questions(1)[0]))
    await answers.aclose()  # type: ignore[attr-defined]
    assert (await completer.complete(questions(1)[0])) == said


async def test_a_model_whose_rows_cannot_differ_answers_one_after_another(
    load: Callable[..., Engine],
) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    engine = load("llama", rope_parameters=rope)
    assert not engine.batches
    completer = EngineCompleter(engine, engine.bare, ChatParams(max_tokens=6))
    asked = questions(3)
    assert await together(completer, asked) == [await completer.complete(each) for each in asked]
