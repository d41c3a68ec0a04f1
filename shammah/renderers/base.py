"""What every renderer can do. Knows nothing about a particular tokenizer or model family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from shammah.errors import InputError
from shammah.messages import Conversation


@dataclass(frozen=True, slots=True)
class RenderedExample:
    """A conversation that ends with an answer, as a model is trained on it.

    `tokens` and `weights` have the same length T. `weights[i]` is 1.0 where token i belongs to the
    final answer or is the token that ends it, and 0.0 elsewhere.
    """

    tokens: list[int]
    weights: list[float]


class Renderer(Protocol):
    """Turns a conversation into tokens, and an answer's tokens into text."""

    @property
    def name(self) -> str: ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about how this model is spoken to; often empty."""
        ...

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """Tokens that end an answer and are not part of its text."""
        ...

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """Texts that end an answer and are not part of it, for formats without an end token."""
        ...

    @property
    def answer_prefix(self) -> str:
        """Text that a model puts before its answer because the format wants it, such as a space."""
        ...

    def generation_prompt(self, conversation: Conversation) -> list[int]:
        """Tokens after which the model writes the next answer.

        Raises:
            InputError: there is nothing to answer.
            ModelError: the model's chat template refuses the conversation.
        """
        ...

    def supervised(self, conversation: Conversation) -> RenderedExample:
        """Tokens of a conversation whose last message is the answer to learn.

        The tokens begin with `generation_prompt` of the messages before the answer.

        Raises:
            InputError: the last message is not the assistant's, or nothing comes before it.
            ModelError: the model's chat template refuses the conversation.
        """
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, without special tokens."""
        ...


def question(conversation: Conversation) -> Conversation:
    """The conversation itself, if there is something in it to answer.

    Raises:
        InputError: it has no message but the system's, or ends with the assistant's.
    """
    if not any(message.role == "user" for message in conversation):
        raise InputError("There is no question in the conversation to answer.")
    if conversation[-1].role == "assistant":
        raise InputError("The conversation already ends with an answer.")
    return conversation


def split_answer(conversation: Conversation) -> tuple[Conversation, str]:
    """The messages before the final answer, and the answer.

    Raises:
        InputError: the last message is not the assistant's, or nothing comes before it.
    """
    if not conversation or conversation[-1].role != "assistant":
        raise InputError("A training example must end with the assistant's answer.")
    return question(conversation[:-1]), conversation[-1].content
