"""The engine as a completer that answers several conversations together.

A row that has ended gives its place to the next conversation at once, so that as many as may be are
always decoded. Which rows are together depends on the conversations alone, not on time: the same
ones in the same order are decoded in the same way. Every few steps the engine is free for the chat.
Knows the engine, and answers as messages.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from functools import partial
from typing import TypeAlias

from shammah.generation.answer import FutureListener, StopReason
from shammah.generation.answering import Answering
from shammah.generation.batched import RowBatch
from shammah.generation.decoding import Drawn
from shammah.generation.engine import Engine
from shammah.generation.engine_llm import EngineLLM, drawing
from shammah.generation.lora import AdapterState
from shammah.messages import Conversation, Message, assistant
from shammah.ports.llm_client import ChatParams

log = logging.getLogger("shammah")

Ended: TypeAlias = list[tuple[int, Message | Exception]]

ROWS = 16
"""Conversations answered at once: each takes memory for its keys and values, and on two CPU cores
more of them gain little."""
STEPS = 8
"""Tokens of each row at most before the chat may come between."""


class EngineCompleter:
    """A `MessageCompleter` and `BatchCompleter` over an engine.

    Args:
        engine: what answers.
        state: the adapter to answer with, from `Engine.prepare_aside`, `prepare` or `active`.
        params: how answers are drawn; with a seed each is drawn from that seed.
        rows: conversations answered at once, where the model can.
    """

    def __init__(
        self, engine: Engine, state: AdapterState, params: ChatParams, *, rows: int = ROWS
    ) -> None:
        self._engine = engine
        self._state = state
        self._llm = EngineLLM(engine, state)
        self._params = params
        self._rows = rows if engine.batches else 1

    async def complete(self, messages: Conversation) -> Message:
        """The answer to one conversation, decoded alone."""
        return (await self._llm.chat(messages, self._params)).message

    async def complete_all(
        self, conversations: AsyncIterable[Conversation]
    ) -> AsyncIterator[tuple[int, Message | Exception]]:
        """The port's `complete_all`. What cannot be decoded beside others is decoded alone."""
        asked: dict[int, Conversation] = {}
        """What is being answered."""
        batch = _Batch(self._engine, self._state, self._params)
        source, count, more = aiter(conversations), 0, True
        while more or asked:
            ended: Ended = []
            if more and len(asked) < self._rows:
                conversation = await anext(source, None)
                if conversation is None:
                    more = False
                    continue
                asked[count] = conversation
                try:
                    if self._rows == 1:
                        ended = [(count, await self.complete(conversation))]
                    else:
                        ended = await self._engine.between_answers(
                            partial(batch.add, count, conversation)
                        )
                except Exception:
                    ended = [(count, await self._alone(conversation))]
                count += 1
            else:
                try:
                    ended = await self._engine.between_answers(batch.go_on)
                except Exception:
                    log.warning("%d answers are decoded one by one", len(asked), exc_info=True)
                    batch = _Batch(self._engine, self._state, self._params)
                    for number in list(asked):
                        yield number, await self._alone(asked.pop(number))
            for number, answer in ended:
                del asked[number]
                yield number, answer

    async def _alone(self, conversation: Conversation) -> Message | Exception:
        try:
            return await self.complete(conversation)
        except Exception as error:
            return error


class _Batch:
    """Answers in the making and their rows; all of it is for the engine's thread."""

    def __init__(self, engine: Engine, state: AdapterState, params: ChatParams) -> None:
        self._engine = engine
        self._state = state
        self._params = drawing(params)
        self._rows: RowBatch | None = None
        self._answers: dict[int, Answering] = {}

    def add(self, number: int, conversation: Conversation) -> Ended:
        """Begin an answer; it may end with its first token."""
        if self._rows is None:
            self._rows = self._engine.batch(self._state)
        renderer = self._engine.renderer
        answering = Answering(
            self._engine.base, renderer, conversation, self._params, self._state, FutureListener()
        )
        drawn = self._rows.add(
            number,
            answering.prompt,
            answering.sampler,
            limit=answering.limit,
            stop_tokens=renderer.stop_tokens,
        )
        self._answers[number] = answering
        return self._taken([drawn])

    def go_on(self) -> Ended:
        """Decode until an answer has ended, for a few steps at most."""
        assert self._rows is not None
        for _ in range(STEPS):
            if ended := self._taken(self._rows.step()):
                return ended
        return []

    def _taken(self, drawn: Sequence[Drawn]) -> Ended:
        assert self._rows is not None
        ended: Ended = []
        for one in drawn:
            answering = self._answers[one.row]
            complete = answering.push(one)
            if complete:
                self._rows.end(one.row)
            elif one.row in self._rows:
                continue
            reason: StopReason = "end" if complete or one.ended else "length"
            del self._answers[one.row]
            ended.append((one.row, assistant(answering.finish(reason).text)))
        return ended
