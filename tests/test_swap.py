"""Adapters swapped while answers stream: none lost, none mixed, and quickly."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_models
from tiny_models import engine_for, random_adapter

from shammah.generation.engine import Engine
from shammah.generation.params import GenerationParams
from shammah.messages import user
from shammah.models.load import load_base_model
from shammah.settings import ModelSettings

PARAMS = GenerationParams(max_tokens=12)
QUESTIONS = [(user(f"question number {number}"),) for number in range(4)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder: Path = tiny_models.build("qwen2", tmp_path_factory.mktemp("swap"))
    engine = engine_for(load_base_model(ModelSettings(name=str(folder))))
    yield engine
    engine.close()


async def test_two_hundred_swaps_under_load_neither_lose_nor_mix_an_answer(engine: Engine) -> None:
    adapters = {f"adapter {n}": random_adapter(engine.base, n) for n in range(3)}
    expected: dict[tuple[str | None, int], str] = {}
    for name, weights in [(None, None), *adapters.items()]:
        engine.activate(weights, name)
        for number, question in enumerate(QUESTIONS):
            engine.forget()
            expected[name, number] = engine.generate(question, PARAMS).text
    for number in range(len(QUESTIONS)):  # the answer tells which adapter gave it
        assert len({text for (_, asked), text in expected.items() if asked == number}) == 4

    names_by_generation: dict[int, str | None] = {engine.generation: engine.active_name}
    swapping = threading.Event()

    def swap() -> None:
        choices = [None, *adapters]
        for number in range(200):
            name = choices[number * 7 % len(choices)]
            weights = adapters[name] if name is not None else None
            names_by_generation[engine.activate(weights, name)] = name
            time.sleep(0.002)
        swapping.set()

    answers = []
    thread = threading.Thread(target=swap)
    thread.start()
    asked = 0
    while not swapping.is_set() or asked < 40:
        streams = []
        for number, question in enumerate(QUESTIONS):
            streams.append((number, engine.stream(question, PARAMS)))
            asked += 1
        for number, stream in streams:
            text = "".join([piece async for piece in stream])
            answers.append((number, text, stream.result))
    thread.join()

    assert len(answers) == asked
    assert len(names_by_generation) == 201
    for number, text, answer in answers:
        assert text == answer.text == expected[answer.adapter, number]
        assert names_by_generation[answer.generation] == answer.adapter
    assert len({answer.adapter for _, _, answer in answers}) == 4


async def test_an_answer_in_flight_ends_on_the_adapter_it_began_with(engine: Engine) -> None:
    engine.activate(None, None)
    plain = engine.generate(QUESTIONS[0], PARAMS)
    stream = engine.stream(QUESTIONS[0], PARAMS)
    first = await anext(stream)
    generation = engine.activate(random_adapter(engine.base, 1), "one")
    text = first + "".join([piece async for piece in stream])
    assert text == plain.text
    assert stream.result.adapter is None
    after = await asyncio.to_thread(engine.generate, QUESTIONS[0], PARAMS)
    assert (after.adapter, after.generation) == ("one", generation)
    assert after.text != plain.text
    assert after.reused_tokens == 0


def test_a_rank_16_adapter_on_every_layer_is_made_ready_quickly(engine: Engine) -> None:
    weights = random_adapter(engine.base, 5, rank=16)
    started = time.process_time()
    for number in range(20):
        engine.activate(weights, f"adapter {number}")
    assert (time.process_time() - started) / 20 < 0.1
