"""Llama 3: headers with the role, a preamble with today's date, and tool calls as bare JSON.

    <|begin_of_text|><|start_header_id|>system<|end_header_id|>

    Cutting Knowledge Date: December 2023
    Today Date: 21 Nov 2026

    system text<|eot_id|><|start_header_id|>user<|end_header_id|>

    question<|eot_id|><|start_header_id|>assistant<|end_header_id|>

    answer<|eot_id|>

As in the template of Llama 3.2, blanks around what is said are cut off, tools are declared in the
first question, and of a message that calls a tool only the call is written. A call is the whole of
an answer, so that there can be one in a message and no more. The format has no thinking: thoughts
are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from shammah.errors import InputError
from shammah.messages import Conversation, Message, Tool
from shammah.renderers.family import FamilyRenderer, Turn, Written, template_json
from shammah.renderers.parsing import AnswerParser, read_call

_BEGIN, _END = "<|begin_of_text|>", "<|eot_id|>"
_HEADER, _HEADED = "<|start_header_id|>", "<|end_header_id|>"
_PYTHON, _CONTINUED = "<|python_tag|>", "<|eom_id|>"
_TOOLS = (
    "Given the following functions, please respond with a JSON for a function call with its proper "
    "arguments that best answers the given prompt.\n\n"
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and '
    "its value}.Do not use variables.\n\n"
)


class Llama3Renderer(FamilyRenderer):
    """Renders Llama 3's format; the rest is as in FamilyRenderer.

    Args:
        date: the day the model is told it is, such as `21 Nov 2026`; None for the day on which the
            renderer is made.
    """

    name = "llama3"
    needs = (_BEGIN, _HEADER, _HEADED, _END)
    ends = (_END, _CONTINUED, "<|end_of_text|>")

    def __init__(
        self, tokenizer: Any, stop_tokens: Iterable[int] = (), *, date: str | None = None
    ) -> None:
        super().__init__(tokenizer, stop_tokens)
        self._date = datetime.now().strftime("%d %b %Y") if date is None else date

    def turns(self, conversation: Conversation, tools: Sequence[Tool]) -> Iterator[Turn]:
        for message in conversation:
            self.refuse_images(message)
        has_system = bool(conversation) and conversation[0].role == "system"
        yield self._preamble(conversation[0] if has_system else None, tools)
        declared = int(has_system) if tools else None
        if declared is not None:
            if len(conversation) <= declared or conversation[declared].role != "user":
                raise InputError(
                    f"The format {self.name} declares tools in the first question, and this "
                    "conversation does not begin with one."
                )
            written = "".join(f"{template_json(tool.to_dict(), indent=4)}\n\n" for tool in tools)
            yield Turn(_header("user") + _TOOLS, self.said(written))
        for index, message in enumerate(conversation[has_system:], start=int(has_system)):
            if message.role == "assistant":
                yield Turn(_header("assistant"), self._answer(message), "", index, answer=True)
            elif message.role == "tool":
                body = self.said(template_json(message.text))
                yield Turn(_header("ipython"), (*body, (_END, False)), "", index)
            else:
                header = "" if index == declared else _header(message.role)
                yield Turn(header, (*self.said(message.text.strip()), (_END, False)), "", index)

    def answer_header(self, conversation: Conversation) -> str:
        return _header("assistant")

    def parser(self, prompt: Sequence[int] = ()) -> AnswerParser:
        return _Parser(self._text, (_PYTHON, _BEGIN, _HEADER, _HEADED), self.stop_tokens)

    def _preamble(self, system: Message | None, tools: Sequence[Tool]) -> Turn:
        environment = "Environment: ipython\n" if tools else ""
        header = (
            f"{_BEGIN}{_header('system')}{environment}Cutting Knowledge Date: December 2023\n"
            f"Today Date: {self._date}\n\n"
        )
        said = self.said(system.text.strip()) if system else ()
        return Turn(header, (*said, (_END, False)), "", 0 if system else None)

    def _answer(self, message: Message) -> tuple[Written, ...]:
        if not message.tool_calls:
            return (*self.said(message.text.strip(), by_model=True), (_END, False))
        if len(message.tool_calls) > 1:
            raise InputError(
                f"A message calls {len(message.tool_calls)} tools at once, and the format "
                f"{self.name} has place for one.",
                hint="Write each call with its result in messages of their own.",
            )
        call = message.tool_calls[0]
        return (
            ('{"name": "', False),
            *self.said(call.name),
            ('", "parameters": ', False),
            *self.said(template_json(call.parsed())),
            ("}", False),
            (_END, False),
        )


class _Parser(AnswerParser):
    """Text, or one call: bare JSON from the first letter on, or JSON behind the python tag.

    An answer that begins like a call is held back until it is over; JSON that turns out to have no
    parameters is an answer like others.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._held: str | None = ""
        self._tagged = False

    def mark(self, mark: str) -> None:
        if mark != _PYTHON:
            self.problem(mark, "it has no place within an answer")
            return
        self.end()
        self._held, self._tagged = "", True

    def text(self, text: str) -> None:
        if self._held is None:
            self.say(text)
            return
        self._held += text
        begun = self._held.lstrip()
        if not (self._tagged or _BEGINS.match(begun) or _MAY_BEGIN.fullmatch(begun)):
            self._release()

    def end(self) -> None:
        raw = (self._held or "").strip()
        if self._tagged:
            self._held = None
            if raw.startswith("{"):
                read_call(self, raw, "parameters")
            else:
                self.problem(_PYTHON + raw, "what is behind it is no tool call in JSON")
        elif _BEGINS.match(raw) and not _is_an_answer(raw):
            self._held = None
            read_call(self, raw, "parameters")
        else:
            self._release()
            self.settle()

    def _release(self) -> None:
        held, self._held = self._held, None
        self.say(held or "")


_BEGINS = re.compile(r'\{\s*"name"\s*:\s*"')
_MAY_BEGIN = re.compile(r'(\{\s*("(n(a(m(e("\s*(:\s*)?)?)?)?)?)?)?)?')
"""What `_BEGINS` may still match when more is written."""


def _is_an_answer(raw: str) -> bool:
    try:
        value = json.loads(raw)
    except ValueError:
        return False
    return isinstance(value, dict) and "parameters" not in value


def _header(role: str) -> str:
    return f"{_HEADER}{role}{_HEADED}\n\n"
