"""Kimi K2: roles by token and by name, tools as JSON in a turn of their own, calls with numbers.

    <|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|>
    <|im_user|>user<|im_middle|>question<|im_end|>
    <|im_assistant|>assistant<|im_middle|>answer<|im_end|>

without the newlines between. Everything is written as in the family's template, also where that is
odd: a call is named `functions.NAME:INDEX` by its place in the message, whatever its `id`; behind
"## Return of ID" stand a backslash and the letter n, no newline; and a picture is followed by a
newline.

Arguments of a call are given to the template as an object, as transformers asks for; given as text,
they would be quoted a second time. The format has no thoughts: those of a message are left out. A
model of the family that has tokens for them is understood all the same.

The generation prompt is always a prefix of the example.

What an assistant's message says is text, whatever it looks like: calls belong in `tool_calls`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from shammah.errors import InputError
from shammah.messages import Conversation, ImagePart, Message, TextPart, Tool, ToolCall
from shammah.renderers.call_sections import CallMarks, CallSectionParser
from shammah.renderers.family import FamilyRenderer, Turn, Written, template_json
from shammah.renderers.parsing import AnswerParser, read_named_call

_SYSTEM, _USER, _ASSISTANT = "<|im_system|>", "<|im_user|>", "<|im_assistant|>"
_MIDDLE, _END = "<|im_middle|>", "<|im_end|>"
_CALLS, _CALLS_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
_CALL, _ARGUMENTS, _CALL_END = (
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
)
_MARKS = CallMarks(_CALLS, _CALLS_END, _CALL, _ARGUMENTS, _CALL_END)
_PICTURE = "<|media_start|>image<|media_content|><|media_pad|><|media_end|>\n"

_HEADERS = {
    "system": f"{_SYSTEM}system{_MIDDLE}",
    "user": f"{_USER}user{_MIDDLE}",
    "assistant": f"{_ASSISTANT}assistant{_MIDDLE}",
    "tool": f"{_SYSTEM}tool{_MIDDLE}",
}
_DEFAULT_SYSTEM = "You are a helpful assistant"


class KimiK2Renderer(FamilyRenderer):
    """Renders Kimi K2's format. Arguments are those of FamilyRenderer."""

    name = "kimi_k2"
    needs = (_SYSTEM, _USER, _ASSISTANT, _MIDDLE, _END)
    ends = (_END, "[EOS]")

    def turns(self, conversation: Conversation, tools: Sequence[Tool]) -> Iterator[Turn]:
        if tools:
            declared = template_json([tool.to_dict() for tool in tools])
            header = f"{_SYSTEM}tool_declare{_MIDDLE}"
            yield Turn(header, (*self.said(declared), (_END, False)))
        if conversation and conversation[0].role != "system":
            yield Turn(_HEADERS["system"], ((_DEFAULT_SYSTEM, False), (_END, False)))
        for index, message in enumerate(conversation):
            header = _HEADERS[message.role]
            if message.role == "tool":
                self.refuse_images(message)
                body = (
                    ("## Return of ", False),
                    *self.said(message.tool_call_id or ""),
                    (r"\n", False),
                    *self.said(message.text),
                )
            elif message.tool_calls:
                self.refuse_images(message)
                body = (*self.said(message.text), *self._calls(message.tool_calls, index))
            else:
                body = tuple(self._content(message))
            answer = message.role == "assistant"
            yield Turn(header, (*body, (_END, False)), message=index, answer=answer)

    def answer_header(self, conversation: Conversation) -> str:
        return _HEADERS["assistant"]

    def parser(self, prompt: Sequence[int] = ()) -> AnswerParser:
        strange = (_SYSTEM, _USER, _ASSISTANT, _MIDDLE)
        return _Parser(self._text, self.stop_tokens, _MARKS, strange)

    def _content(self, message: Message) -> Iterator[Written]:
        for part in message.parts:
            if isinstance(part, TextPart):
                yield from self.said(part.text)
            elif isinstance(part, ImagePart):
                yield _PICTURE, False

    def _calls(self, calls: Sequence[ToolCall], index: int) -> Iterator[Written]:
        yield _CALLS, False
        for number, call in enumerate(calls):
            try:
                arguments = template_json(call.parsed())
            except InputError as error:
                raise InputError(f"message {index + 1}: {error.message}") from error
            yield f"{_CALL}functions.", False
            yield from self.said(call.name)
            yield f":{number}{_ARGUMENTS}", False
            yield from self.said(arguments)
            yield _CALL_END, False
        yield _CALLS_END, False


class _Parser(CallSectionParser):
    """Reads calls as an id that has the name in it, separator and JSON."""

    _CALLED = re.compile(
        rf"\s*((?:functions\.)?(\S+):\d+)\s*{re.escape(_ARGUMENTS)}(.*)", re.DOTALL
    )

    def read_call(self, raw: str) -> None:
        if found := self._CALLED.fullmatch(raw):
            read_named_call(self, raw, found[2], found[3].strip(), found[1])
        else:
            self.problem(raw, f"the tool call is not functions.NAME:INDEX{_ARGUMENTS} and JSON")
