"""gpt-oss: the Harmony format, where an answer is one message or several, each in a channel.

    <|start|>user<|message|>question<|end|>
    <|start|>assistant<|channel|>analysis<|message|>thought<|end|>
    <|start|>assistant<|channel|>final<|message|>answer<|return|>

(without the line breaks). The model writes all that follows `<|start|>assistant`: its channel, and
the header of each further message of the same answer. A system turn of the format's own says the
date and how much to reason; what a conversation calls its system message stands in a developer
turn, with the tools in TypeScript. A tool is called in the commentary channel:

    <|start|>assistant to=functions.NAME<|channel|>commentary json<|message|>{...}<|call|>
    <|start|>functions.NAME to=assistant<|channel|>commentary<|message|>"result"<|end|>

Where a conversation goes on, the format itself rewrites what the model wrote, as the family's own
template does:

- An answer ends with `<|return|>` where it is the last message, and with `<|end|>` in history. That
  `<|end|>` is what no model writes there; it is learned with ALL_TOKENS alone.
- The thought before an answer is left out once another message follows; the thought before a tool
  call once a later message answers without a call. So an example whose answer follows a call with a
  thought does not begin with the prompt that the answer was written behind: the prompt still has
  the thought. In every other case it does.
- What is said beside a tool call stands in the analysis channel, as a thought. Where there is a
  thought too, for which the template has no place, it stands in the commentary channel, where the
  format puts what the user is told before a call.

`no_system_prompt` leaves the system turn away.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from shammah.errors import InputError
from shammah.messages import Conversation, Message, TextPart, ThinkingPart, Tool
from shammah.renderers.family import FamilyRenderer, Turn, Written, template_json
from shammah.renderers.parsing import AnswerParser
from shammah.renderers.typescript import typescript_namespace

Reasoning = Literal["low", "medium", "high", "no_system_prompt"]

_START, _CHANNEL, _MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
_END, _RETURN, _CALL = "<|end|>", "<|return|>", "<|call|>"
_CONSTRAIN = "<|constrain|>"
_ANSWER = f"{_START}assistant"
_ANALYSIS = f"{_CHANNEL}analysis{_MESSAGE}"
_COMMENTARY = f"{_CHANNEL}commentary{_MESSAGE}"
_FINAL = f"{_CHANNEL}final{_MESSAGE}"
_NAMESPACE = "functions"
_FUNCTION_NAME = re.compile(r"[^\s<>|]+")
"""What stands in a header must not look like the rest of it."""

_SYSTEM = (
    "You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n"
    "Current date: {today}\n\nReasoning: {reasoning}\n\n"
    "# Valid channels: analysis, commentary, final. Channel must be included for every message."
)
_CALLABLE = f"\nCalls to these tools must go to the commentary channel: '{_NAMESPACE}'."


class GptOssRenderer(FamilyRenderer):
    """Renders the format of gpt-oss.

    Args:
        tokenizer: as in FamilyRenderer.
        stop_tokens: as in FamilyRenderer.
        reasoning: one of `Reasoning`.
        today: the date that the system turn says; by default that on which the renderer is made,
            so that one renderer always gives the same tokens.
    """

    needs = (_START, _CHANNEL, _MESSAGE, _END, _RETURN, _CALL)
    ends = (_RETURN, _CALL, "<|endoftext|>")

    def __init__(
        self,
        tokenizer: Any,
        stop_tokens: Iterable[int] = (),
        *,
        reasoning: Reasoning = "medium",
        today: date | None = None,
    ) -> None:
        self.name = "gpt_oss" if reasoning == "medium" else f"gpt_oss_{reasoning}"
        super().__init__(tokenizer, stop_tokens)
        self._reasoning = reasoning
        self._today = today or date.today()

    def turns(self, conversation: Conversation, tools: Sequence[Tool]) -> Iterator[Turn]:
        if self._reasoning != "no_system_prompt":
            said = _SYSTEM.format(today=self._today.isoformat(), reasoning=self._reasoning)
            called = _CALLABLE if tools else ""
            yield Turn(f"{_START}system{_MESSAGE}{said}{called}{_END}", ())
        first = conversation[0] if conversation and conversation[0].role == "system" else None
        instructions = first.text if first else ""
        if instructions or tools:
            yield self._developer(instructions, tools)
        # The last answer without a call: thoughts before it are left out.
        answered = max(
            (i for i, m in enumerate(conversation) if m.role == "assistant" and not m.tool_calls),
            default=-1,
        )
        called_last: str | None = None
        for index, message in enumerate(conversation):
            self.refuse_images(message)
            if message.role == "user":
                body = (*self.said(message.text), (_END, False))
                yield Turn(f"{_START}user{_MESSAGE}", body, message=index)
            elif message.role == "assistant" and message.tool_calls:
                called_last = self._called(message)
                body = self._call(message, called_last, kept=index > answered)
                yield Turn(_ANSWER, body, message=index, answer=True)
            elif message.role == "assistant":
                called_last = None
                yield self._answer(message, index, last=index == len(conversation) - 1)
            elif message.role == "tool":
                yield self._result(message, index, called_last)
            elif message is not first or index:
                raise InputError(
                    f"Message {index + 1} is the system's, for which the format {self.name} has no "
                    "place but the beginning."
                )

    def answer_header(self, conversation: Conversation) -> str:
        return _ANSWER

    def parser(self) -> AnswerParser:
        marks = (_START, _CHANNEL, _MESSAGE, _END, _RETURN, _CALL, _CONSTRAIN)
        return _Parser(self._text, marks, self.stop_tokens)

    def _developer(self, instructions: str, tools: Sequence[Tool]) -> Turn:
        header, body = f"{_START}developer{_MESSAGE}", list[Written]()
        if instructions:
            header += "# Instructions\n\n"
            body += [*self.said(instructions), ("\n\n", False)]
        if tools:
            declared = typescript_namespace(_NAMESPACE, tools)
            body += [("# Tools\n\n", False), *self.said(declared)]
        return Turn(header, (*body, (_END, False)), message=0 if instructions else None)

    def _answer(self, message: Message, index: int, *, last: bool) -> Turn:
        body = list[Written]()
        if last and message.thinking is not None:
            thought = self.said(message.thinking, by_model=True)
            body = [(_ANALYSIS, False), *thought, (f"{_END}{_ANSWER}", False)]
        body += [(_FINAL, False), *self.said(message.text, by_model=True)]
        if last:
            return Turn(_ANSWER, (*body, (_RETURN, False)), message=index, answer=True)
        return Turn(_ANSWER, tuple(body), _END, index, answer=True)

    def _call(self, message: Message, name: str, *, kept: bool) -> tuple[Written, ...]:
        """A thought and a preamble where they are kept, and the call."""
        told = message.text if message.thinking else ""
        thought = message.thinking or message.text
        body = list[Written]()
        for channel, text in ((_ANALYSIS, thought if kept else ""), (_COMMENTARY, told)):
            if text:
                said = self.said(text, by_model=True)
                body += [(channel, False), *said, (f"{_END}{_ANSWER}", False)]
        header = f" to={_NAMESPACE}.{name}{_CHANNEL}commentary json{_MESSAGE}"
        arguments = self.said(message.tool_calls[0].arguments, by_model=True)
        return (*body, (header, False), *arguments, (_CALL, False))

    def _called(self, message: Message) -> str:
        if len(message.tool_calls) > 1:
            raise InputError(
                f"The format {self.name} has one tool call in a message, and here is one with "
                f"{len(message.tool_calls)}.",
                hint="Write each call, with its result, as a message of its own.",
            )
        name = message.tool_calls[0].name
        if not _FUNCTION_NAME.fullmatch(name):
            raise InputError(f"The format {self.name} cannot call a tool named {name!r}.")
        return name

    def _result(self, message: Message, index: int, called: str | None) -> Turn:
        if called is None:
            raise InputError(
                f"Message {index + 1} is a tool's result, but no tool was called before it."
            )
        header = f"{_START}{_NAMESPACE}.{called} to=assistant{_COMMENTARY}"
        body = (*self.said(template_json(message.text)), (_END, False))
        return Turn(header, body, message=index)


class _Parser(AnswerParser):
    """One message after the other: a header up to `<|message|>`, then its content up to an end.

    Where the model forgets an end, that is reported, and what follows is read all the same. Only
    tokens belong to the format, so text is kept blank for blank. Two messages of one kind that
    follow each other are a paragraph each.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._place: Literal["header", "content", "between"] = "header"
        self._header = ""  # with its marks; the first one is in the prompt up to the role
        self._content: _Content = TextPart
        self._raw = ""
        self._paragraph = False

    def mark(self, mark: str) -> None:
        if self._place == "header" and mark in (_CHANNEL, _CONSTRAIN):
            self._header += mark
        elif self._place == "header" and mark == _MESSAGE:
            self._content = _read_header(self._header)
            self._place, self._paragraph = "content", True
        elif mark in (_MESSAGE, _CONSTRAIN):
            self.problem(mark, "it stands outside a header")
        else:
            begins = mark in (_START, _CHANNEL)
            if self._place == "header":
                self.problem(f"{self._header}{mark}", "a header without a message")
            elif self._place == "content":
                self._finish_message(mark)
            else:
                self._report_stray()
                if mark != _START:
                    self.problem(mark, "no message before it is open")
            self._place, self._header = ("header", mark) if begins else ("between", "")
            if mark in (_RETURN, _CALL):
                self.stop()

    def text(self, text: str) -> None:
        if self._place == "header":
            self._header += text
        elif self._place == "content" and isinstance(self._content, type):
            last = self._parts[-1] if self._parts else None
            if self._paragraph and isinstance(last, self._content):
                text = f"\n\n{text}"
            self._paragraph = False
            self._append(self._content, text)
        else:
            self._raw += text

    def end(self) -> None:
        if self._place == "header" and self._header:
            self.problem(self._header, "the answer ended within a header")
        elif self._place == "between":
            self._report_stray()
        elif isinstance(self._content, _Call):
            raw = f"{self._header}{_MESSAGE}{self._raw}"
            self.problem(raw, "the answer ended within a tool call")
        elif isinstance(self._content, str):
            self._finish_message("")
        elif self._place == "content" and self._content is ThinkingPart:
            self.problem("", "the answer ended within a thought")

    def _finish_message(self, mark: str) -> None:
        raw, self._raw = self._raw, ""
        content, self._content = self._content, TextPart
        if isinstance(content, str):
            self.problem(f"{self._header}{_MESSAGE}{raw}", content)
        elif isinstance(content, _Call):
            self._read_arguments(content, raw)
        elif mark == _CALL:
            self.problem(mark, "it calls no tool")
        elif mark == _RETURN and content is ThinkingPart:
            self.problem(mark, "the answer ended within a thought")
        if mark in (_START, _CHANNEL):
            self.problem(mark, "the message before it does not end")

    def _read_arguments(self, call: _Call, raw: str) -> None:
        written = f"{self._header}{_MESSAGE}{raw}"
        try:
            arguments = json.loads(raw)
        except ValueError as error:
            self.problem(written, f"the arguments of the tool call are not JSON: {error}")
            return
        if isinstance(arguments, dict):
            self.call(call.name, raw)
        else:
            self.problem(written, "the arguments of the tool call are no object")

    def _report_stray(self) -> None:
        raw, self._raw = self._raw, ""
        if raw.strip():
            self.problem(raw, "it stands between two messages")


@dataclass(frozen=True, slots=True)
class _Call:
    """A message to a function."""

    name: str


_Content = type[TextPart] | type[ThinkingPart] | _Call | str
"""What the content of a message is, or why it cannot be read."""


def _read_header(header: str) -> _Content:
    role, _, channel = header.removeprefix(_START).partition(_CHANNEL)
    author, words = role.split(), channel.replace(_CONSTRAIN, " ").split()
    # The recipient may stand behind the role or behind the channel.
    recipients = [word.removeprefix("to=") for word in author + words if word.startswith("to=")]
    author = [word for word in author if not word.startswith("to=")]
    words = [word for word in words if not word.startswith("to=")]
    if author != (["assistant"] if header.startswith(_START) else []):
        return f"the message is not the assistant's: {role.strip()!r}"
    if not words or words[0] not in ("analysis", "commentary", "final"):
        return f"there is no channel {words[0]!r}" if words else "the message has no channel"
    if len(words) > 2:  # the channel, and the type of the content
        return f"the header says {' '.join(words[1:])!r}"
    if not recipients:
        return ThinkingPart if words[0] == "analysis" else TextPart
    namespace, _, name = recipients[0].partition(".")
    if len(recipients) > 1 or namespace != _NAMESPACE or not _FUNCTION_NAME.fullmatch(name):
        return f"it calls {', '.join(recipients)}, which is no function"
    return _Call(name)
