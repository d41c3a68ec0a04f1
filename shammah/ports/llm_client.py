"""A chat model: messages in, an answer out. Knows nothing about tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, Protocol

from shammah.errors import DataError
from shammah.messages import Conversation, Message

ChatStop = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class ChatParams:
    """How an answer is drawn. Temperature 0 takes the likeliest token; a seed gives the same answer
    again as far as the backend can.

    Raises:
        DataError: a value is out of range.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, right in (
            ("max_tokens", self.max_tokens >= 1),
            ("temperature", 0.0 <= self.temperature < float("inf")),
            ("top_p", 0.0 < self.top_p <= 1.0),
            ("seed", self.seed is None or self.seed >= 0),
        ):
            if not right:
                raise DataError(f"{name} cannot be {getattr(self, name)}.")


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """An answer, and why it ended: the model ended it (`stop`), or `max_tokens` or the context was
    used up (`length`). Token counts are None where the backend does not tell them."""

    message: Message
    stop_reason: ChatStop
    model: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class LLMClient(Protocol):
    """Something that answers conversations."""

    @property
    def model(self) -> str:
        """What answers, by name."""
        ...

    async def chat(self, messages: Conversation, params: ChatParams) -> ChatAnswer:
        """The answer to a conversation.

        Raises:
            LLMError: there is nothing to answer, or the backend fails.
        """
        ...

    def stream(self, messages: Conversation, params: ChatParams) -> AsyncIterator[str]:
        """The text of an answer as it comes. Dropping the iteration ends it. The iteration raises
        what `chat` does, and also where the answer breaks off before its end.
        """
        ...
