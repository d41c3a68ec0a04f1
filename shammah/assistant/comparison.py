"""What two adapters answer to the lessons of both, asked aside: the conversation goes on between
two of these answers, with its own adapter and its own cache.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from shammah.assistant.views import AnswerComparison, AnswerPair
from shammah.errors import ContextTooLongError
from shammah.messages import system, user

if TYPE_CHECKING:
    from shammah.adapters.library import Adapter
    from shammah.generation.engine import Engine
    from shammah.generation.lora import AdapterState
    from shammah.models.load import BaseModel

LONGEST = 256
"""Tokens of such an answer at most."""
ASKED_FOR_EACH = 5
"""Lessons asked at most, for each difference that is wanted."""


def lessons_of(first: Adapter | None, second: Adapter) -> dict[str, str]:
    """The questions that either was taught, with the answer: first those that only one of them
    knows, or knows otherwise. Where both were taught the same question, the second's answer."""
    known = [
        {lesson.query: lesson.aim for lesson in adapter.require_metadata().lessons}
        if adapter is not None
        else {}
        for adapter in (first, second)
    ]
    shared = {query for query in known[0] if known[0][query] == known[1].get(query)}
    joined = {**known[0], **known[1]}
    apart = {query: target for query, target in joined.items() if query not in shared}
    return {**apart, **{query: joined[query] for query in joined if query in shared}}


async def compare_answers(
    base: BaseModel,
    engine: Engine,
    first: Adapter | None,
    second: Adapter,
    *,
    limit: int,
    system_text: str = "",
) -> AnswerComparison:
    """Greedy answers of both to their lessons, until `limit` of them differ.

    Args:
        first: None is the base model.
        limit: differences at most; ASKED_FOR_EACH times as many lessons are asked at most.

    Raises:
        AdapterInvalidError: one of them does not fit the model, or is broken.
        GenerationError: the model was closed meanwhile, or decoding failed.
    """
    from shammah.generation.params import GenerationParams

    lessons = lessons_of(first, second)
    states = [
        await asyncio.to_thread(ready_aside, base, engine, adapter) for adapter in (first, second)
    ]
    params = GenerationParams(max_tokens=LONGEST)
    before = (system(system_text),) if system_text.strip() else ()
    pairs: list[AnswerPair] = []
    asked = 0
    for question, taught in lessons.items():
        if len(pairs) >= limit or asked >= limit * ASKED_FOR_EACH:
            break
        prompt = (*before, user(question))
        try:
            answers = [
                (await asyncio.to_thread(engine.generate, prompt, params, state)).text
                for state in states
            ]
        except ContextTooLongError:
            continue
        asked += 1
        if answers[0] != answers[1]:
            pairs.append(AnswerPair(question, taught, *answers))
    return AnswerComparison(len(lessons), asked, tuple(pairs))


def ready_aside(base: BaseModel, engine: Engine, adapter: Adapter | None) -> AdapterState:
    """An adapter, or with None the base model, to be asked aside.

    Raises:
        AdapterInvalidError: it does not fit the model, or is broken.
    """
    from shammah.adapters.weights import load_checked

    if adapter is None:
        return engine.prepare_aside(None, None)
    weights = load_checked(adapter.path, adapter.require_metadata(), base.shape)
    return engine.prepare_aside(weights, adapter.name)
