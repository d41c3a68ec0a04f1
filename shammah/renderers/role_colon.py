"""Conversations as plain text, for models without a chat template.

    system text

    User: question

    Assistant: answer

An answer ends where the model begins to write the next `User:` turn, or at its end token. Knows no
template and no model family.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from shammah.messages import Conversation
from shammah.renderers.base import RenderedExample, question, split_answer
from shammah.renderers.tokenization import TextTokenizer

_NAMES = {"user": "User", "assistant": "Assistant"}


class RoleColonRenderer:
    """Renders turns as `User: ...` and `Assistant: ...`.

    Args:
        tokenizer: any Hugging Face tokenizer.
        stop_tokens: tokens that end generation according to the model.
    """

    name = "role_colon"
    stop_texts: tuple[str, ...] = ("\n\nUser:", "\nUser:")
    answer_prefix = " "
    notes: tuple[str, ...] = (
        "This model has no chat template: the conversation is written as User: and Assistant:.",
    )

    def __init__(self, tokenizer: Any, stop_tokens: Iterable[int] = ()) -> None:
        self._text = TextTokenizer(tokenizer)
        stops = [*stop_tokens]
        if tokenizer.eos_token_id is not None:
            stops.append(int(tokenizer.eos_token_id))
        self.stop_tokens: tuple[int, ...] = tuple(dict.fromkeys(stops))
        empty = list(tokenizer("")["input_ids"])
        bos = tokenizer.bos_token_id
        self._begin: list[int] = [int(bos)] if bos is not None and bos in empty else []

    def generation_prompt(self, conversation: Conversation) -> list[int]:
        tokens = [*self._begin]
        separator = ""
        for message in question(conversation):
            if message.role == "system":
                text = separator + message.text
            elif message.role == "user":
                text = f"{separator}User: {message.text}"
            else:
                # An answer is tokenized apart, so that a turn that was generated and the same turn
                # read back are the same tokens.
                tokens += self._encode(f"{separator}Assistant:")
                text = f" {message.text}"
            tokens += self._encode(text)
            separator = "\n\n"
        return tokens + self._encode("\n\nAssistant:")

    def supervised(self, conversation: Conversation) -> RenderedExample:
        asked, answer = split_answer(conversation)
        prompt = self.generation_prompt(asked)
        learned = self._encode(f" {answer}")
        learned += [self.stop_tokens[-1]] if self.stop_tokens else self._encode(self.stop_texts[0])
        return RenderedExample(prompt + learned, [0.0] * len(prompt) + [1.0] * len(learned))

    def decode(self, tokens: Sequence[int]) -> str:
        return self._text.decode(tokens)

    def _encode(self, text: str) -> list[int]:
        parts, position = [], 0
        for start, end in self._text.look_alikes(text, all_steering=True):
            parts += [(text[position:start], False), (text[start:end], True)]
            position = end
        return self._text.encode_parts([*parts, (text[position:], False)])
