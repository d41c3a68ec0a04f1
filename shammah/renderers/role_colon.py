"""Conversations as plain text, for models without a chat template.

    system text

    User: question

    Assistant: answer

An answer ends where the model begins to write the next `User:` turn, or at its end token. So the
last answer is learned with the end token, where the vocabulary has one, and an earlier one with the
`User:` behind it. A tool's message is written as `Tool: ...`, but the format has no place for the
declaration of tools, for calls, or for pictures. Thoughts are left out. Knows no template and no
model family.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from shammah.errors import InputError
from shammah.messages import Conversation, Message, Tool
from shammah.renderers.family import FamilyRenderer, Turn
from shammah.renderers.parsing import AnswerParser

_HEADERS = {"system": "", "user": "User: ", "assistant": "Assistant:", "tool": "Tool: "}
_BETWEEN = "\n\n"
_NEXT = "\n\nUser:"


class RoleColonRenderer(FamilyRenderer):
    """Renders turns as `User: ...` and `Assistant: ...`.

    Args:
        tokenizer: any Hugging Face tokenizer.
        stop_tokens: tokens that end generation according to the model.
    """

    name = "role_colon"
    needs = ()
    ends = ()
    stop_texts = (_NEXT, "\nUser:")
    notes = (
        "This model has no chat template: the conversation is written as User: and Assistant:.",
    )

    def __init__(self, tokenizer: Any, stop_tokens: Iterable[int] = ()) -> None:
        eos = tokenizer.eos_token_id
        super().__init__(tokenizer, [*stop_tokens, *([] if eos is None else [int(eos)])])
        bos = tokenizer.bos_token_id
        begins = bos is not None and bos in list(tokenizer("")["input_ids"])
        self._begin = str(tokenizer.bos_token) if begins else ""
        self._end = self._end_text(tokenizer)

    def turns(self, conversation: Conversation, tools: Sequence[Tool]) -> Iterator[Turn]:
        if tools:
            raise InputError(f"The format {self.name} has no place for tools.")
        before = self._begin
        asked = False
        for index, message in enumerate(conversation):
            self._refuse(message)
            if message.role != "assistant":
                header = " " if asked else before + _HEADERS[message.role]
                yield Turn(header, self.said(message.text), "", index)
                before, asked = _BETWEEN, False
                continue
            said = self.said(f" {message.text}")
            yield Turn(before + _HEADERS["assistant"], said, "", index, answer=True)
            # What ends an answer is the model's as well, and tokenized apart: so an answer that was
            # generated and the same one read back are the same tokens.
            end, before = "", _BETWEEN
            if index + 1 == len(conversation):
                end = self._end
            elif conversation[index + 1].role == "user":
                end, asked = _NEXT, True
            yield Turn("", ((end, False),), "", index, answer=True)

    def answer_header(self, conversation: Conversation) -> str:
        return _BETWEEN + _HEADERS["assistant"]

    def parser(self, prompt: Sequence[int] = ()) -> AnswerParser:
        return _Parser(self._text, self.stop_texts, self.stop_tokens)

    def _refuse(self, message: Message) -> None:
        self.refuse_images(message)
        if message.tool_calls:
            raise InputError(f"The format {self.name} has no place for calls of tools.")

    def _end_text(self, tokenizer: Any) -> str:
        """What the last answer ends with: an end token that can be written, else a next turn."""
        for token in reversed(self.stop_tokens):
            text = str(tokenizer.convert_ids_to_tokens(token))
            if self._text.encode(text) == [token]:
                return text
        return _NEXT


class _Parser(AnswerParser):
    """All is text, up to the next turn."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._begun = False

    def mark(self, mark: str) -> None:
        self.stop()

    def text(self, text: str) -> None:
        if text and not self._begun:
            self._begun = True
            text = text.removeprefix(" ")
        self.say(text)

    def end(self) -> None:
        self.settle()
