"""What every renderer can do. Knows nothing about a particular tokenizer or model family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from shammah.errors import InputError
from shammah.messages import Conversation, Tool
from shammah.renderers.parsing import AnswerParser, ParsedAnswer


class TrainOnWhat(StrEnum):
    """Which tokens of a conversation are learned.

    A message's tokens are what its author writes, with the token that ends it; the header that says
    who speaks belongs to the format, and is learned with ALL_TOKENS alone.
    """

    LAST_ASSISTANT_MESSAGE = "last_assistant_message"
    ALL_ASSISTANT_MESSAGES = "all_assistant_messages"
    ALL_MESSAGES = "all_messages"
    ALL_TOKENS = "all_tokens"
    ALL_USER_AND_SYSTEM_MESSAGES = "all_user_and_system_messages"
    CUSTOMIZED = "customized"


@dataclass(frozen=True, slots=True)
class RenderedExample:
    """A conversation as a model is trained on it.

    `tokens` and `weights` have the same length T. `weights[i]` is 1.0 where token i is learned, and
    0.0 elsewhere.
    """

    tokens: list[int]
    weights: list[float]


class Renderer(Protocol):
    """Turns a conversation into tokens, and an answer's tokens into a message."""

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

    def generation_prompt(
        self, conversation: Conversation, tools: Sequence[Tool] = ()
    ) -> list[int]:
        """Tokens after which the model writes the next answer.

        Raises:
            InputError: there is nothing to answer, or the format has no place for something in it.
            ModelError: the model's chat template refuses the conversation.
        """
        ...

    def supervised(
        self,
        conversation: Conversation,
        train_on: TrainOnWhat = TrainOnWhat.LAST_ASSISTANT_MESSAGE,
        tools: Sequence[Tool] = (),
    ) -> RenderedExample:
        """Tokens of a whole conversation, and which of them are learned.

        The tokens do not depend on `train_on`. Where the last message is the assistant's, they
        begin with `generation_prompt` of the messages before it; a family whose format does not
        allow that says so in its file.

        Raises:
            InputError: nothing in it would be learned, `trainable` is missing or not wanted, or the
                format has no place for something in it.
            ModelError: the model's chat template refuses the conversation.
        """
        ...

    def parser(self) -> AnswerParser:
        """Reads an answer while it is written, token by token."""
        ...

    def parse(self, tokens: Sequence[int]) -> ParsedAnswer:
        """The message that a model wrote: the tokens behind a generation prompt."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, without special tokens."""
        ...


def question(conversation: Conversation) -> Conversation:
    """The conversation itself, if there is something in it to answer.

    Raises:
        InputError: it has no message but the system's, or ends with the assistant's.
    """
    if not any(message.role in ("user", "tool") for message in conversation):
        raise InputError("There is no question in the conversation to answer.")
    if conversation[-1].role == "assistant":
        raise InputError("The conversation already ends with an answer.")
    return conversation


def learned_messages(conversation: Conversation, train_on: TrainOnWhat) -> list[bool]:
    """For each message, whether what its author wrote is learned.

    Raises:
        InputError: nothing would be learned, or `trainable` is missing or not wanted.
    """
    marked = [message.trainable is not None for message in conversation]
    if train_on is TrainOnWhat.CUSTOMIZED:
        if not all(marked):
            raise InputError(
                f"message {marked.index(False) + 1} does not say whether it is `trainable`, and "
                f"{train_on.value} needs it on every message"
            )
        chosen = [bool(message.trainable) for message in conversation]
    elif any(marked):
        raise InputError(
            f"message {marked.index(True) + 1} says whether it is `trainable`, which "
            f"{train_on.value} does not look at",
            hint=f"Remove it, or train on {TrainOnWhat.CUSTOMIZED.value}.",
        )
    else:
        chosen = _chosen(conversation, train_on)
    if not any(chosen):
        raise InputError(f"nothing in this conversation is learned with {train_on.value}")
    return chosen


def _chosen(conversation: Conversation, train_on: TrainOnWhat) -> list[bool]:
    match train_on:
        case TrainOnWhat.LAST_ASSISTANT_MESSAGE:
            if not conversation or conversation[-1].role != "assistant":
                raise InputError("A training example must end with the assistant's answer.")
            question(conversation[:-1])
            return [False] * (len(conversation) - 1) + [True]
        case TrainOnWhat.ALL_ASSISTANT_MESSAGES:
            return [message.role == "assistant" for message in conversation]
        case TrainOnWhat.ALL_USER_AND_SYSTEM_MESSAGES:
            return [message.role in ("user", "system") for message in conversation]
        case _:
            return [True] * len(conversation)
