"""An answer as it comes and as it was. Knows no model; the engine's thread fills it in."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from shammah.generation.params import GenerationParams
from shammah.messages import Conversation

if TYPE_CHECKING:
    from shammah.generation.lora import AdapterState

StopReason = Literal["end", "length", "cut"]


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer.

    `thinking` is what the model thought before it answered, where its format has a place for that.
    `stop_reason` is `end` (the model ended it), `length` (`max_tokens` or the context was used up)
    or `cut` (it was stopped). `prompt_tokens` counts the whole prompt; `reused_tokens` of them were
    in the cache. Times are seconds since decoding began; `tokens_per_second` counts from the first
    token on. `adapter` and `generation` name the adapter state that all of it was produced with;
    `seed` is what it was drawn with, None for greedy decoding.
    """

    text: str
    thinking: str | None
    tokens: int
    prompt_tokens: int
    reused_tokens: int
    seconds: float
    first_token_seconds: float
    tokens_per_second: float
    cut: bool
    stop_reason: StopReason
    adapter: str | None
    generation: int
    seed: int | None


class Listener(Protocol):
    """Who hears of an answer; called from the engine's thread."""

    def emit(self, piece: str) -> None: ...

    def finish(self, answer: Answer) -> None: ...

    def fail(self, error: BaseException) -> None: ...


@dataclass(frozen=True, slots=True)
class Request:
    """A question to the engine's thread; with a `state` it is answered by that adapter."""

    conversation: Conversation
    params: GenerationParams
    listener: Listener
    stopped: threading.Event
    state: AdapterState | None = None
    """What to answer with; None: what is active when decoding begins."""


@dataclass(frozen=True, slots=True)
class Task:
    """Something else for the engine's thread to do, between two answers."""

    work: Callable[[], Any]
    future: Future[Any]

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self.work())
        except BaseException as error:
            self.future.set_exception(error)


class AnswerStream(AsyncIterator[str]):
    """The text of an answer, piece by piece, in the event loop that asked for it.

    When the iteration has ended `result` is the answer. A stream that is dropped before its end
    stops decoding.
    """

    def __init__(self, stopped: threading.Event) -> None:
        self._stopped = stopped
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[str | Answer | BaseException] = asyncio.Queue()
        self._result: Answer | None = None
        self._error: BaseException | None = None

    @property
    def listener(self) -> Listener:
        """Where the engine reports to; it does not keep the stream alive."""
        return _LoopListener(self._loop, self._queue)

    def __aiter__(self) -> AnswerStream:
        return self

    async def __anext__(self) -> str:
        if self._error is not None:
            raise self._error
        if self._result is not None:
            raise StopAsyncIteration
        item = await self._queue.get()
        if isinstance(item, Answer):
            self._result = item
            raise StopAsyncIteration
        if isinstance(item, BaseException):
            self._error = item
            raise item
        return item

    def stop(self) -> None:
        """Stop decoding within one token; what was said so far still arrives. Any thread may."""
        self._stopped.set()

    @property
    def done(self) -> bool:
        """Whether the iteration has ended with an answer."""
        return self._result is not None

    @property
    def result(self) -> Answer:
        """The finished answer.

        Raises:
            RuntimeError: the iteration has not ended with an answer.
        """
        if self._result is None:
            raise RuntimeError("the answer is not finished: iterate to its end first")
        return self._result

    def __del__(self) -> None:
        self._stopped.set()


class _LoopListener:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        queue: asyncio.Queue[str | Answer | BaseException],
    ) -> None:
        self._loop = loop
        self._queue = queue

    def emit(self, piece: str) -> None:
        self._put(piece)

    def finish(self, answer: Answer) -> None:
        self._put(answer)

    def fail(self, error: BaseException) -> None:
        self._put(error)

    def _put(self, item: str | Answer | BaseException) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)


class FutureListener:
    """For one who waits for the whole answer."""

    def __init__(self) -> None:
        self.future: Future[Answer] = Future()

    def emit(self, piece: str) -> None:
        pass

    def finish(self, answer: Answer) -> None:
        self.future.set_result(answer)

    def fail(self, error: BaseException) -> None:
        self.future.set_exception(error)
