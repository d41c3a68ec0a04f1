"""Answers side by side: asked of the live model, without its conversation noticing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import save_file
from tiny_models import engine_for, random_adapter

from shammah.adapters.library import Adapter
from shammah.adapters.metadata import AdapterMetadata, LessonRecord, LoraConfigRecord
from shammah.adapters.validate import sha256_of
from shammah.adapters.weights import LoraWeights
from shammah.assistant.comparison import ASKED_FOR_EACH, compare_answers, lessons_of
from shammah.errors import AdapterInvalidError
from shammah.generation.engine import Engine
from shammah.generation.params import GenerationParams
from shammah.messages import assistant, system, user
from shammah.models.load import load_base_model
from shammah.settings import ModelSettings

PARAMS = GenerationParams(max_tokens=12)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder: Path = tiny_models.build("qwen2", tmp_path_factory.mktemp("aside"))
    engine = engine_for(load_base_model(ModelSettings(name=str(folder), dtype="fp32")))
    yield engine
    engine.close()


def answer(engine: Engine, question: str, weights: LoraWeights | None, name: str | None) -> str:
    """The answer of an adapter in use, read from its beginning: what asking aside must equal."""
    before = engine.active_name
    assert before is None
    engine.activate(weights, name)
    text = engine.generate((user(question),), PARAMS).text
    engine.activate(None, None)
    return text


def test_asking_aside_is_asking_the_adapter_and_changes_nothing(engine: Engine) -> None:
    weights = [random_adapter(engine.base, seed) for seed in (1, 2)]
    expected = [answer(engine, "hello", item, "x") for item in weights]
    assert expected[0] != expected[1]
    engine.activate(weights[0], "mine")
    states = [engine.prepare_aside(item, "aside") for item in weights]
    said = engine.generate((user("a first question"),), PARAMS)
    generation = engine.generation
    aside = [engine.generate((user("hello"),), PARAMS, state) for state in states]
    assert [item.text for item in aside] == expected
    assert [item.adapter for item in aside] == ["aside"] * 2
    assert [item.reused_tokens for item in aside] == [0, 0]
    assert (engine.active_name, engine.generation) == ("mine", generation)
    # The next turn still has the first in its cache, keys of the right adapter.
    turns = (user("a first question"), assistant(said.text), user("and then?"))
    following = engine.generate(turns, PARAMS)
    assert following.reused_tokens > said.prompt_tokens
    engine.forget()
    assert engine.generate(turns, PARAMS).text == following.text
    engine.activate(None, None)


async def test_a_conversation_goes_on_between_two_answers_aside(engine: Engine) -> None:
    weights = random_adapter(engine.base, 3)
    state = engine.prepare_aside(weights, "aside")
    expected = answer(engine, "hello", weights, "x")
    plain = engine.generate((user("hello"),), PARAMS).text
    stop = threading.Event()
    texts: list[str] = []

    def ask() -> None:
        while not stop.is_set():
            texts.append(engine.generate((user("hello"),), PARAMS, state).text)

    asking = asyncio.create_task(asyncio.to_thread(ask))
    for _ in range(30):
        stream = engine.stream((user("hello"),), PARAMS)
        assert "".join([piece async for piece in stream]) == plain
        assert stream.result.adapter is None
    stop.set()
    await asking
    assert len(texts) > 3 and set(texts) == {expected}


def made(engine: Engine, folder: Path, seed: int, lessons: dict[str, str]) -> Adapter:
    """An adapter file with lessons, as a library would give it."""
    weights = random_adapter(engine.base, seed)
    tensors: dict[str, torch.Tensor] = {}
    for module, (a, b) in weights.modules.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    path = folder / f"n{seed}.safetensors"
    save_file(tensors, path)
    metadata = AdapterMetadata(
        name=f"n{seed}",
        created_at=datetime.now(UTC),
        base_model=engine.base.name,
        base_fingerprint=engine.base.fingerprint,
        lora=LoraConfigRecord(rank=4, alpha=8.0, target_modules=["q_proj"]),
        lessons=[
            LessonRecord(feedback_id=None, query=query, target=target, weight=1.0, learned=True)
            for query, target in lessons.items()
        ],
        sha256=sha256_of(path),
        tensors=len(tensors),
        parameters=0,
    )
    return Adapter(f"n{seed}", path, metadata, path.stat().st_size)


async def test_both_are_asked_the_lessons_of_both(engine: Engine, tmp_path: Path) -> None:
    first = made(engine, tmp_path, 1, {"same": "s", "gone": "g", "other": "o"})
    second = made(engine, tmp_path, 2, {"same": "s", "other": "changed", "added": "a"})
    lessons = lessons_of(first, second)
    assert list(lessons.items()) == [
        ("gone", "g"), ("other", "changed"), ("added", "a"), ("same", "s"),
    ]  # fmt: skip
    found = await compare_answers(engine.base, engine, first, second, limit=10, system_text="Hm.")
    assert (found.lessons, found.asked) == (4, 4)
    assert [pair.question for pair in found.differing] == list(lessons)
    for pair in found.differing:
        for adapter, text in ((1, pair.first), (2, pair.second)):
            engine.activate(random_adapter(engine.base, adapter), "x")
            prompt = (system("Hm."), user(pair.question))
            whole = engine.generate(prompt, GenerationParams(max_tokens=256)).text
            assert text == whole
    engine.activate(None, None)
    few = await compare_answers(engine.base, engine, first, second, limit=2)
    assert (few.asked, len(few.differing)) == (2, 2)
    assert (await compare_answers(engine.base, engine, None, second, limit=9)).asked == 3


async def test_where_nothing_differs_asking_ends(engine: Engine, tmp_path: Path) -> None:
    adapter = made(engine, tmp_path, 4, {f"question {n}": "a" for n in range(40)})
    found = await compare_answers(engine.base, engine, adapter, adapter, limit=1)
    assert (found.lessons, found.asked, found.differing) == (40, ASKED_FOR_EACH, ())


async def test_an_adapter_of_another_base_is_refused(engine: Engine, tmp_path: Path) -> None:
    adapter = made(engine, tmp_path, 5, {"q": "a"})
    known = adapter.require_metadata().model_copy(update={"base_fingerprint": "e" * 64})
    other = Adapter(adapter.name, adapter.path, known, adapter.size)
    with pytest.raises(AdapterInvalidError):
        await compare_answers(engine.base, engine, None, other, limit=3)
