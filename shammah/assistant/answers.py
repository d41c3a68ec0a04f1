"""One answer on its way: an async iterator of text that can be stopped.

Knows the engine and the exchange store only through the callables it is given.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from shammah.assistant.views import Choice

if TYPE_CHECKING:
    from shammah.feedback.exchanges import Exchange
    from shammah.generation.answer import Answer, AnswerStream


class AnswerHandle:
    """What `Assistant.ask` returns: iterate for pieces of text, `stop()` to end early.

    After the end `answer` holds the engine's figures and `exchange` what was stored (None where
    the answer was stopped before its first word). `choice` says which adapter
    answers, and why.
    """

    def __init__(self, produce: Callable[[AnswerHandle], AsyncIterator[str]]) -> None:
        self._pieces = produce(self)
        self._stream: AnswerStream | None = None
        self.stopped = False
        self.answer: Answer | None = None
        self.exchange: Exchange | None = None
        self.choice = Choice()

    def __aiter__(self) -> AsyncIterator[str]:
        return self._pieces

    def attach(self, stream: AnswerStream) -> None:
        """Called by the producer once decoding has begun."""
        self._stream = stream
        if self.stopped:
            stream.stop()

    def stop(self) -> None:
        """End the answer within one token; what was said is kept, marked as cut."""
        self.stopped = True
        if self._stream is not None:
            self._stream.stop()

    async def text(self) -> str:
        """The whole answer, for callers that do not stream."""
        return "".join([piece async for piece in self])
