"""Conversations as the tokenizer's own chat template writes them.

Knows no model family: what a template has place for, which token ends a turn, and where in its text
each message is, it finds out by having it write. Thoughts and calls in an answer are understood
where the template or the vocabulary has `<think>` and `<tool_call>` tags; other answers are text.

The prompt decides where a template writes the past differently from it: then an example is the
prompt with the last answer behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shammah.errors import InputError
from shammah.messages import (
    Conversation,
    ImagePart,
    Message,
    Part,
    TextPart,
    ThinkingPart,
    Tool,
    ToolCall,
)
from shammah.renderers.base import RenderedExample, TrainOnWhat, learned_messages, question
from shammah.renderers.chat_template import ChatTemplate
from shammah.renderers.family import template_json
from shammah.renderers.parsing import AnswerParser, ParsedAnswer
from shammah.renderers.spans import Locator
from shammah.renderers.stand_ins import StandIns
from shammah.renderers.tags import CALL, CALLED, THINK, THOUGHT, TagParser
from shammah.renderers.tokenization import TextTokenizer

_TAIL = 8
"""Tokens that the opening of a thought at a prompt's end takes at most."""


class TemplateRenderer:
    """Renders with `apply_chat_template`.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        stop_tokens: tokens that end generation according to the model.
    """

    name = "template"
    stop_texts: tuple[str, ...] = ()

    def __init__(self, tokenizer: Any, stop_tokens: Iterable[int] = ()) -> None:
        self._text = TextTokenizer(tokenizer)
        self._template = ChatTemplate(tokenizer)
        answered, called = (self._text.encode(behind) for behind in self._template.ends)
        special = self._text.special_ids
        end_of_turn = next((token for token in answered if token in special), None)
        end_of_call = next((token for token in reversed(called) if token in special), None)
        stops = [*stop_tokens, tokenizer.eos_token_id, end_of_turn, end_of_call]
        self.stop_tokens: tuple[int, ...] = tuple(
            dict.fromkeys(int(stop) for stop in stops if stop is not None)
        )
        self._end = end_of_turn if end_of_turn is not None else tokenizer.eos_token_id
        self._tags = [
            tag
            for pair in ((THINK, THOUGHT), (CALL, CALLED))
            for tag in pair
            if all(self._means(one) for one in pair)
        ]
        self.notes: tuple[str, ...] = (
            ()
            if self._template.takes_system
            else ("This model has no system role: the system text goes before the first question.",)
        )

    def generation_prompt(
        self, conversation: Conversation, tools: Sequence[Tool] = ()
    ) -> list[int]:
        written = _Written(self._template, self._text, question(conversation), tools)
        return self._text.encode_parts(written.parts(written.write(written.conversation, True)))

    def supervised(
        self,
        conversation: Conversation,
        train_on: TrainOnWhat = TrainOnWhat.LAST_ASSISTANT_MESSAGE,
        tools: Sequence[Tool] = (),
    ) -> RenderedExample:
        learned = learned_messages(conversation, train_on)
        written = _Written(self._template, self._text, conversation, tools)
        answered = conversation[-1].role == "assistant" and any(
            message.role in ("user", "tool") for message in conversation[:-1]
        )
        example = self._answered(written) if answered else self._whole(written)
        if train_on is TrainOnWhat.ALL_TOKENS:
            return RenderedExample(example.tokens, [1.0] * len(example.tokens))
        weights = [0.0] * len(example.tokens)
        wanted = [*learned[: len(conversation) - answered], *([False] * answered)]
        for start, end in _places(written, example, wanted, train_on):
            for at in range(example.answer):
                if start <= example.starts[at] < end:
                    weights[at] = 1.0
        if answered and learned[-1]:
            stops = [
                at
                for at in range(example.answer, len(example.tokens))
                if example.tokens[at] in self.stop_tokens
            ]
            end = stops[-1] + 1 if stops else len(example.tokens)
            weights[example.answer : end] = [1.0] * (end - example.answer)
        if not any(weights):
            raise InputError(f"nothing in this conversation is learned with {train_on.value}")
        return RenderedExample(example.tokens, weights)

    def parser(self, prompt: Sequence[int] = ()) -> AnswerParser:
        """Reads an answer while it is written, token by token."""
        thinking = THINK in self._tags and self._template.opens_thought
        if thinking and prompt:
            thinking = self._text.decode_whole(prompt[-_TAIL:]).rstrip("\n").endswith(THINK)
        return TagParser(self._text, self.stop_tokens, self._tags, thinking=thinking)

    def parse(self, tokens: Sequence[int], prompt: Sequence[int] = ()) -> ParsedAnswer:
        return self.parser(prompt).parse(tokens)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._text.decode(tokens)

    def _means(self, tag: str) -> bool:
        return tag in self._template.source or self._text.token_id(tag) is not None

    def _whole(self, written: _Written) -> _Example:
        text = written.write(written.conversation, False)
        tokens, starts = self._text.encode_with_starts(written.parts(text))
        return _Example(tokens, starts, len(tokens), text, written.conversation, prompt=False)

    def _answered(self, written: _Written) -> _Example:
        """A conversation that ends with an answer; its tokens begin with the prompt's."""
        asked = written.conversation[:-1]
        past, text = written.write(asked, True), written.write(written.conversation, False)
        prompt, prompt_starts = self._text.encode_with_starts(written.parts(past))
        tokens, starts = self._text.encode_with_starts(written.parts(text))
        continues = text.startswith(past)
        if not continues or tokens[: len(prompt)] != prompt:
            # The template writes the past differently from the prompt, or the tokenizer merged
            # across the seam. What the model will be given at answering time decides.
            answer = text[len(past) :] if continues else written.answer(text, past)
            behind = self._text.encode_parts(written.parts(answer), continued=True)
            tokens, starts = prompt + behind, prompt_starts + [0] * len(behind)
        # A model that is never shown the end of an answer does not learn to stop.
        ended = any(token in self.stop_tokens for token in tokens[len(prompt) :])
        if not ended and self._end is not None:
            tokens, starts = [*tokens, int(self._end)], [*starts, 0]
        if continues:
            return _Example(tokens, starts, len(prompt), text, written.conversation, prompt=False)
        return _Example(tokens, starts, len(prompt), past, asked, prompt=True)


@dataclass(frozen=True, slots=True)
class _Example:
    """Tokens, with what is needed to find messages in them.

    Attributes:
        starts: where each token begins in the text, for those before the answer.
        answer: the first token of the last answer, where the conversation ends with one.
        text: what the template wrote, with stand-ins.
        conversation: what it wrote it from, as a prompt or not.
    """

    tokens: list[int]
    starts: list[int]
    answer: int
    text: str
    conversation: Conversation
    prompt: bool


class _Written:
    """A conversation with stand-ins for its look-alikes, and what the template makes of it."""

    def __init__(
        self,
        template: ChatTemplate,
        text: TextTokenizer,
        conversation: Conversation,
        tools: Sequence[Tool],
    ) -> None:
        template.check(conversation, tools)
        declared = [tool.to_dict() for tool in tools]
        rows = [message.to_dict() for message in conversation]
        self._stand_ins = StandIns(text, template_json([rows, declared]))
        self._template = template
        self._tools = self._stand_ins.guard_all(declared)
        self.conversation = tuple(self._guarded(message) for message in conversation)
        self.parts = self._stand_ins.parts
        self.positions = self._stand_ins.positions

        def specials(written: str) -> list[tuple[int, int]]:
            return text.look_alikes(written, all_steering=False)

        behind = template.ends[0]
        end = next((behind[start:stop] for start, stop in specials(behind)), "")
        self.locator = Locator(self.write, self._stand_ins.mark, specials, end)
        left_out = self.locator.left_out(self.conversation)
        if left_out is not None:
            raise InputError(
                f"The model's chat template leaves out a call or a result of a tool in message "
                f"{left_out + 1}."
            )

    def write(self, conversation: Conversation, prompt: bool) -> str:
        return self._template.write(conversation, self._tools, prompt=prompt)

    def answer(self, text: str, past: str) -> str:
        """The last answer, to be put behind a prompt that `text` does not begin with.

        Raises:
            InputError: its calls are not to be found.
        """
        last = self.conversation[-1]
        wanted = [False] * (len(self.conversation) - 1) + [True]
        found = self.locator.bodies(self.conversation, text, wanted, prompt=False)[-1]
        if found is None and last.tool_calls:
            raise InputError(
                "The last answer is not to be found in what the model's chat template writes, so "
                "that it cannot be learned."
            )
        answer = last.text if found is None else text[found.start : found.end]
        opened = past.rstrip().endswith(THINK)
        if opened and last.thinking is not None and THOUGHT not in answer:
            answer = f"{last.thinking.strip()}\n{THOUGHT}\n\n{answer}"
        return answer

    def _guarded(self, message: Message) -> Message:
        by_model = message.role == "assistant"

        def guard(text: str) -> str:
            return self._stand_ins.guard(text, all_steering=not by_model)

        def maybe(text: str | None) -> str | None:
            return None if text is None else self._stand_ins.guard(text, all_steering=True)

        def part(part: Part) -> Part:
            match part:
                case TextPart(text):
                    return TextPart(guard(text))
                case ThinkingPart(thinking):
                    return ThinkingPart(guard(thinking))
                case ImagePart(image):
                    return ImagePart(self._stand_ins.guard(image, all_steering=True))

        content = message.content
        calls = tuple(
            ToolCall(
                self._stand_ins.guard(call.name, all_steering=True),
                self._stand_ins.guard(self._arguments(call), all_steering=True),
                maybe(call.id),
            )
            for call in message.tool_calls
        )
        return replace(
            message,
            content=guard(content) if isinstance(content, str) else tuple(map(part, content)),
            tool_calls=calls,
            tool_call_id=maybe(message.tool_call_id),
            name=maybe(message.name),
        )

    def _arguments(self, call: ToolCall) -> str:
        # A look-alike may be hidden in JSON's escapes until a template writes it out.
        objects = self._template.arguments_as_objects
        return template_json(call.parsed()) if objects else call.arguments


def _places(
    written: _Written, example: _Example, wanted: Sequence[bool], train_on: TrainOnWhat
) -> list[tuple[int, int]]:
    """Where the wanted messages are in the text that was tokenized.

    Raises:
        InputError: one of them is not to be found.
    """
    if not any(wanted):
        return []
    wanted = wanted[: len(example.conversation)]
    bodies = written.locator.bodies(
        example.conversation, example.text, wanted, prompt=example.prompt
    )
    places = []
    for index, (message, body) in enumerate(zip(example.conversation, bodies, strict=True)):
        if body is not None:
            start, end = written.positions(example.text, (body.start, body.end))
            places.append((start, end))
        elif wanted[index] and (message.role == "assistant" or message.text.strip()):
            raise InputError(
                f"Message {index + 1} is not to be found in what the model's chat template writes, "
                f"so that {train_on.value} cannot be learned.",
                hint=f"Train on {TrainOnWhat.LAST_ASSISTANT_MESSAGE.value}.",
            )
    return places
