"""A model family's way of writing conversations: turns made of a header, a body and a trailer.

A family says how each message is written. This file makes tokens and weights of that, and knows no
family.

Two rules hold for all of them. What a person or a model wrote never becomes a special token,
whatever it looks like. And an answer is tokenized apart from the header before it, as it was when
the model wrote it, so that a generation prompt is a prefix of the same conversation later.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from shammah.errors import InputError, ModelError
from shammah.messages import Conversation, ImagePart, Message, Tool
from shammah.renderers.base import (
    RenderedExample,
    TrainOnWhat,
    learned_messages,
    question,
)
from shammah.renderers.parsing import AnswerParser, ParsedAnswer
from shammah.renderers.tokenization import TextTokenizer

Written = tuple[str, bool]
"""Text, and whether it is literal: nothing in it is a special token."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message as a family writes it, or a turn of the format's own.

    Attributes:
        header: says who speaks; in the generation prompt where the assistant does.
        body: what the author writes, with the token that ends it.
        trailer: what the format puts behind it.
        message: the message's place in the conversation; None for a turn of the format's own.
        answer: whether the model writes the body.
    """

    header: str
    body: tuple[Written, ...]
    trailer: str = ""
    message: int | None = None
    answer: bool = False


class FamilyRenderer(ABC):
    """What all families share. A family gives its name, its tokens, its turns and its parser.

    Args:
        tokenizer: a Hugging Face tokenizer that has the family's tokens.
        stop_tokens: tokens that end generation according to the model; the family's own are added.

    Raises:
        ModelError: the tokenizer lacks a token that the family writes with.
    """

    name: str
    needs: ClassVar[tuple[str, ...]]
    """Tokens that the family cannot be written without."""
    ends: ClassVar[tuple[str, ...]]
    """Tokens that end an answer; the first one is what an answer is trained to end with."""
    notes: tuple[str, ...] = ()
    stop_texts: tuple[str, ...] = ()
    answer_prefix: str = ""

    def __init__(self, tokenizer: Any, stop_tokens: Iterable[int] = ()) -> None:
        self._text = TextTokenizer(tokenizer)
        lacking = [token for token in self.needs if self._text.token_id(token) is None]
        if lacking:
            raise ModelError(
                f"The renderer {self.name} writes {' and '.join(lacking)}, which this tokenizer "
                "does not have.",
                hint="Choose another renderer with --renderer, or in the setting model.renderer.",
            )
        ends = [self._text.token_id(end) for end in self.ends]
        self.stop_tokens: tuple[int, ...] = tuple(
            dict.fromkeys([*(end for end in ends if end is not None), *stop_tokens])
        )

    @abstractmethod
    def turns(self, conversation: Conversation, tools: Sequence[Tool]) -> Iterable[Turn]:
        """The conversation as the family writes it, its own turns among the messages.

        Raises:
            InputError: the family has no place for something in it.
        """

    @abstractmethod
    def answer_header(self, conversation: Conversation) -> str:
        """What the model writes its next answer behind."""

    @abstractmethod
    def parser(self) -> AnswerParser:
        """Reads an answer while it is written, token by token."""

    def generation_prompt(
        self, conversation: Conversation, tools: Sequence[Tool] = ()
    ) -> list[int]:
        turns = [*self.turns(question(conversation), tools)]
        runs = _runs([*turns, Turn(self.answer_header(conversation), ())])
        # Nothing is learned: one mark for all.
        return self._text.encode_marked([(t, literal, None) for t, literal, _ in r] for r in runs)[
            0
        ]

    def supervised(
        self,
        conversation: Conversation,
        train_on: TrainOnWhat = TrainOnWhat.LAST_ASSISTANT_MESSAGE,
        tools: Sequence[Tool] = (),
    ) -> RenderedExample:
        learned = learned_messages(conversation, train_on)
        everything = train_on is TrainOnWhat.ALL_TOKENS
        weight = {None: float(everything)} | {
            index: float(everything or chosen) for index, chosen in enumerate(learned)
        }
        tokens, weights = self._text.encode_marked(
            [(text, literal, weight[message]) for text, literal, message in run]
            for run in _runs(self.turns(conversation, tools))
        )
        return RenderedExample(tokens, weights)

    def parse(self, tokens: Sequence[int]) -> ParsedAnswer:
        return self.parser().parse(tokens)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._text.decode(tokens)

    # --- for the families

    def said(self, text: str, *, by_model: bool = False) -> tuple[Written, ...]:
        """Text that somebody wrote, with everything literal that looks like a token of the format.

        Args:
            by_model: the model wrote it; tokens that steer without being called special, which it
                could only have written as such, are let through.
        """
        parts: list[Written] = []
        position = 0
        for start, end in self._text.look_alikes(text, all_steering=not by_model):
            parts += [(text[position:start], False), (text[start:end], True)]
            position = end
        parts.append((text[position:], False))
        return tuple((piece, literal) for piece, literal in parts if piece)

    def refuse_images(self, message: Message) -> None:
        """Raises InputError where a message has a picture."""
        if any(isinstance(part, ImagePart) for part in message.parts):
            raise InputError(f"The format {self.name} has no place for pictures.")


def template_json(value: Any, indent: int | None = None) -> str:
    """JSON as chat templates write it: the keys in their order, no character escaped."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


Marked = tuple[str, bool, int | None]
"""Text, whether it is literal, and the message whose author wrote it."""


def _runs(turns: Iterable[Turn]) -> Iterator[list[Marked]]:
    """The turns' text from one seam to the next; a seam lies before each answer."""
    run: list[Marked] = []
    for turn in turns:
        run.append((turn.header, False, None))
        if turn.answer:
            yield run
            run = []
        run += [(text, literal, turn.message) for text, literal in turn.body]
        run.append((turn.trailer, False, None))
    yield run
