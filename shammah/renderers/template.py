"""Conversations as the tokenizer's own chat template writes them.

Knows no model family: what it must know about a template (whether it takes a system message, which
token ends a turn) it finds out by rendering a small conversation once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from shammah.errors import ModelError
from shammah.messages import Conversation, Message, assistant, system, to_dicts, user
from shammah.renderers.base import RenderedExample, question, split_answer
from shammah.renderers.tokenization import TextTokenizer

# A private-use character stands for each look-alike while the template runs.
_PRIVATE_USE = range(0xE000, 0xF900)
_PROBE = "qzxv"


class TemplateRenderer:
    """Renders with `apply_chat_template`.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        stop_tokens: tokens that end generation according to the model.
    """

    name = "template"
    stop_texts: tuple[str, ...] = ()
    answer_prefix = ""

    def __init__(self, tokenizer: Any, stop_tokens: Iterable[int] = ()) -> None:
        self._text = TextTokenizer(tokenizer)
        self._takes_system = self._probe_system()
        end_of_turn = self._probe_end_of_turn()
        stops = [*stop_tokens]
        if tokenizer.eos_token_id is not None:
            stops.append(int(tokenizer.eos_token_id))
        if end_of_turn is not None:
            stops.append(end_of_turn)
        self.stop_tokens: tuple[int, ...] = tuple(dict.fromkeys(stops))
        self._end = end_of_turn if end_of_turn is not None else tokenizer.eos_token_id
        self.notes: tuple[str, ...] = (
            ()
            if self._takes_system
            else ("This model has no system role: the system text goes before the first question.",)
        )

    def generation_prompt(self, conversation: Conversation) -> list[int]:
        parts, _ = self._render(question(conversation), prompt=True)
        return self._text.encode_parts(parts)

    def supervised(self, conversation: Conversation) -> RenderedExample:
        asked, answer = split_answer(conversation)
        prompt_parts, prompt_text = self._render(asked, prompt=True)
        prompt = self._text.encode_parts(prompt_parts)
        parts, text = self._render(conversation, prompt=False)
        tokens = self._text.encode_parts(parts)
        if tokens[: len(prompt)] != prompt:
            # The template writes the past differently from the prompt, or the tokenizer merged
            # across the seam. What the model will be given at answering time decides.
            if text.startswith(prompt_text):
                tokens = prompt + self._text.encode_parts(_after(parts, len(prompt_text)))
            else:
                tokens = prompt + self._text.encode_parts(self._literal_parts(answer))
        return self._weighted(tokens, len(prompt))

    def decode(self, tokens: Sequence[int]) -> str:
        return self._text.decode(tokens)

    def _weighted(self, tokens: list[int], prompt: int) -> RenderedExample:
        end = next(
            (at for at in range(len(tokens) - 1, prompt - 1, -1) if tokens[at] in self.stop_tokens),
            None,
        )
        # A model that is never shown the end of an answer does not learn to stop.
        if end is None and self._end is not None:
            tokens = [*tokens, int(self._end)]
            end = len(tokens) - 1
        last = len(tokens) - 1 if end is None else end
        weights = [1.0 if prompt <= at <= last else 0.0 for at in range(len(tokens))]
        return RenderedExample(tokens, weights)

    def _render(
        self, conversation: Conversation, *, prompt: bool
    ) -> tuple[list[tuple[str, bool]], str]:
        """Rendered text as parts (text, literal), and whole with stand-ins for the look-alikes."""
        if not self._takes_system:
            conversation = fold_system(conversation)
        stand_ins, guarded = self._guard(conversation)
        try:
            text = self._apply(guarded, prompt)
        except ModelError:
            merged = merge_turns(guarded)
            if merged == guarded:
                raise
            text = self._apply(merged, prompt)
        if not stand_ins:
            return [(text, False)], text
        pattern = "([" + "".join(stand_ins) + "])"
        parts = [
            (stand_ins.get(piece, piece), piece in stand_ins)
            for piece in re.split(pattern, text)
            if piece
        ]
        return parts, text

    def _guard(self, conversation: Conversation) -> tuple[dict[str, str], Conversation]:
        """The conversation with every look-alike replaced, and what each stand-in stands for."""
        whole = "".join(message.text for message in conversation)
        free = (chr(code) for code in _PRIVATE_USE if chr(code) not in whole)
        by_text: dict[str, str] = {}
        guarded: list[Message] = []
        for message in conversation:
            pieces, position = [], 0
            spans = self._text.look_alikes(message.text, all_steering=message.role != "assistant")
            for start, end in spans:
                look_alike = message.text[start:end]
                if look_alike not in by_text:
                    by_text[look_alike] = next(free)
                pieces += [message.text[position:start], by_text[look_alike]]
                position = end
            pieces.append(message.text[position:])
            guarded.append(Message(message.role, "".join(pieces)))
        return {character: text for text, character in by_text.items()}, tuple(guarded)

    def _literal_parts(self, text: str) -> list[tuple[str, bool]]:
        parts, position = [], 0
        for start, end in self._text.look_alikes(text, all_steering=False):
            parts += [(text[position:start], False), (text[start:end], True)]
            position = end
        return [*parts, (text[position:], False)]

    def _apply(self, conversation: Conversation, prompt: bool) -> str:
        import jinja2

        try:
            return str(
                self._text.tokenizer.apply_chat_template(
                    to_dicts(conversation), tokenize=False, add_generation_prompt=prompt
                )
            )
        except jinja2.TemplateError as error:
            raise ModelError(
                f"The model's chat template refuses this conversation: {error}",
                hint="Start again with /clear, or use another model.",
            ) from error

    def _probe_system(self) -> bool:
        try:
            return _PROBE in self._apply((system(_PROBE), user("hello")), True)
        except ModelError:
            return False

    def _probe_end_of_turn(self) -> int | None:
        """The special token the template puts behind an answer, if it puts one."""
        rendered = self._apply((user("hello"), assistant(_PROBE)), False)
        behind = self._text.encode(rendered.rpartition(_PROBE)[2])
        return next((token for token in behind if token in self._text.special_ids), None)


def fold_system(conversation: Conversation) -> Conversation:
    """The system text moved to the beginning of the first user message."""
    texts = [message.text for message in conversation if message.role == "system"]
    rest = [message for message in conversation if message.role != "system"]
    first = next((at for at, message in enumerate(rest) if message.role == "user"), None)
    folded = "\n\n".join(text for text in texts if text)
    if folded and first is not None:
        rest[first] = user(f"{folded}\n\n{rest[first].text}")
    return tuple(rest)


def merge_turns(conversation: Conversation) -> Conversation:
    """Neighbouring messages of one role made into one: some templates want roles to alternate."""
    merged: list[Message] = []
    for message in conversation:
        if merged and merged[-1].role == message.role:
            merged[-1] = Message(message.role, f"{merged[-1].text}\n\n{message.text}")
        else:
            merged.append(message)
    return tuple(merged)


def _after(parts: list[tuple[str, bool]], length: int) -> list[tuple[str, bool]]:
    """The parts behind the first `length` characters, where a literal part counts as one."""
    rest: list[tuple[str, bool]] = []
    for text, literal in parts:
        size = 1 if literal else len(text)
        if length >= size:
            length -= size
        else:
            rest.append((text, True) if literal else (text[length:], False))
            length = 0
    return rest
