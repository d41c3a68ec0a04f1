"""The local model as an `LLMClient`: the engine that answers the chat, asked through the port."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from shammah.errors import LLMError, ShammahError
from shammah.generation.answer import Answer, AnswerStream
from shammah.generation.engine import Engine
from shammah.generation.lora import AdapterState
from shammah.generation.params import GenerationParams
from shammah.messages import Conversation, assistant
from shammah.ports.llm_client import ChatAnswer, ChatParams

BACKEND = "local torch"


class EngineLLM:
    """An `LLMClient` over an engine; questions wait their turn behind those of the chat.

    Args:
        engine: what answers.
        state: the adapter to answer with, from `Engine.prepare`, `prepare_aside` or `active`; None
            takes the one that is active when decoding begins.
    """

    def __init__(self, engine: Engine, state: AdapterState | None = None) -> None:
        self._engine = engine
        self._state = state

    @property
    def model(self) -> str:
        """The base model's name."""
        return self._engine.base.name

    async def chat(self, messages: Conversation, params: ChatParams) -> ChatAnswer:
        """The port's `chat`."""
        with _failures():
            stream = self._ask(messages, params)
            try:
                text = "".join([piece async for piece in stream])
            finally:
                stream.stop()
            answer = _whole(stream.result)
        return ChatAnswer(
            message=assistant(text),
            stop_reason="stop" if answer.stop_reason == "end" else "length",
            model=self.model,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.tokens,
        )

    async def stream(self, messages: Conversation, params: ChatParams) -> AsyncIterator[str]:
        """The port's `stream`."""
        with _failures():
            stream = self._ask(messages, params)
            try:
                async for piece in stream:
                    yield piece
            finally:
                stream.stop()
            _whole(stream.result)

    def _ask(self, messages: Conversation, params: ChatParams) -> AnswerStream:
        return self._engine.stream(messages, drawing(params), state=self._state)


def drawing(params: ChatParams) -> GenerationParams:
    """How the engine draws what is asked for through the port."""
    return GenerationParams(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        seed=params.seed,
    )


def _whole(answer: Answer) -> Answer:
    if answer.stop_reason == "cut":
        raise LLMError("the answer was stopped before its end.", backend=BACKEND)
    return answer


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except LLMError:
        raise
    except ShammahError as error:
        raise LLMError(error.message, backend=BACKEND, hint=error.hint) from error
