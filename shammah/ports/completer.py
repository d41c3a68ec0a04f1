"""One method to be continued by a model, at two levels: tokens, and messages.

What evaluates, plays an environment or judges wants no more than this of a model, and how it draws
is settled when the completer is made.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from typing import Protocol, runtime_checkable

from shammah.messages import Conversation, Message
from shammah.ports.datum import ModelInput
from shammah.ports.sampling_client import TokensWithLogprobs


class TokenCompleter(Protocol):
    """Continues tokens."""

    async def complete(self, prompt: ModelInput) -> TokensWithLogprobs:
        """What comes after the prompt.

        Raises:
            SamplingError: nothing comes.
        """
        ...


class MessageCompleter(Protocol):
    """Continues conversations."""

    async def complete(self, messages: Conversation) -> Message:
        """The assistant's next message.

        Raises:
            SamplingError, LLMError: none comes.
            InputError, ModelError: the conversation cannot be rendered for the model.
        """
        ...


@runtime_checkable
class BatchCompleter(Protocol):
    """A `MessageCompleter` that answers several conversations faster together."""

    def complete_all(
        self, conversations: AsyncIterable[Conversation]
    ) -> AsyncIterator[tuple[int, Message | Exception]]:
        """Of each conversation its number, from 0 in the order in which they are given, and what
        `complete` gives or raises for it. Whichever ends first comes first. Conversations are
        taken as there is room for them; dropping the iteration ends the answering.
        """
        ...
