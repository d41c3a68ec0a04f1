"""DeepSeek V3 and R1: roles in full-width bars, a thought that the prompt opens, fenced calls.

    <｜begin▁of▁sentence｜>system text<｜User｜>question<｜Assistant｜><think>
    thought
    </think>

    answer<｜end▁of▁sentence｜>

Two ways of answering. `thinking`: the prompt opens the thought, as the family's template does, and
the model closes it. `disable_thinking`: the prompt ends with `</think>` right behind the role, a
thought closed before it began. So V3.1 documents it, the only model of the family that is trained
to answer both ways.

A prompt is the template's, to the letter; so is all that lies before the last answer. Thoughts are
gone from there, and what the template does to later rounds of calls stands: only the first call of
a conversation is opened with role, text and `<｜tool▁calls▁begin｜>`, only the first result with
`<｜tool▁outputs▁begin｜>`, and only an answer in words closes the results. The last answer of an
example is otherwise than in the template: it is what the model writes behind the prompt, with its
thought (an empty one where there is none) and its calls whole. So the prompt is always a prefix of
the example. It is no prefix of the next turn's prompt where the model had thought or called.

After a tool's result the prompt opens no thought. A parser needs the prompt to know; without it, an
answer is read as one to a question.

The template has no place for tools. They are declared as V3.1 documents it, as the last of the
system texts; the call that is shown there is the template's own, not V3.1's, which has no fence.

What an assistant's message says is text, whatever it looks like: calls belong in `tool_calls`. A
thought may stand in the text before `</think>`, as the template has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from shammah.messages import Conversation, Message, Tool, ToolCall
from shammah.renderers.call_sections import THINK, THOUGHT, CallMarks, CallSectionParser
from shammah.renderers.family import FamilyRenderer, Turn, Written, template_json
from shammah.renderers.parsing import AnswerParser, ParsedAnswer, read_named_call

Thinking = Literal["thinking", "disable_thinking"]

_BEGIN, _END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
_USER, _ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
_CALLS, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL, _NAMED, _CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_RESULTS, _RESULTS_END = "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>"
_RESULT, _RESULT_END = "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"
_MARKS = CallMarks(_CALLS, _CALLS_END, _CALL, _NAMED, _CALL_END)

_OPEN = f"{THINK}\n"
_CLOSE = f"\n{THOUGHT}\n\n"
_FENCE, _FENCE_END = "\n```json\n", "\n```"
_TOOLS = "## Tools\nYou have access to the following tools:\n\n"
_HOW_TO_CALL = (
    "IMPORTANT: ALWAYS adhere to this exact format for tool use:\n"
    f"{_CALLS}{_CALL}function{_NAMED}tool_call_name{_FENCE}tool_call_arguments{_FENCE_END}"
    f"{_CALL_END}{{additional_tool_calls}}{_CALLS_END}\n\nWhere:\n"
    "- `tool_call_name` must be an exact match to one of the available tools\n"
    "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters "
    "Schema\n"
    "- For multiple tool calls, put each on a line of its own\n"
)


class DeepseekV3Renderer(FamilyRenderer):
    """Renders DeepSeek V3's format.

    Args:
        mode: one of `Thinking`; the other arguments are those of FamilyRenderer.
    """

    needs = (_BEGIN, _USER, _ASSISTANT, _END)
    ends = (_END,)

    def __init__(
        self, tokenizer: Any, stop_tokens: Iterable[int] = (), *, mode: Thinking = "thinking"
    ) -> None:
        self.name = "deepseek_v3" if mode == "thinking" else f"deepseek_v3_{mode}"
        super().__init__(tokenizer, stop_tokens)
        self._mode = mode

    def turns(self, conversation: Conversation, tools: Sequence[Tool]) -> Iterator[Turn]:
        yield from self._system(conversation, tools)
        called = resulted = False
        for index, message in enumerate(conversation):
            self.refuse_images(message)
            if message.role == "user":
                yield Turn(_USER, self.said(message.text), message=index)
            elif message.role == "tool":
                header = _RESULT if resulted else _RESULTS + _RESULT
                body = (*self.said(message.text), (_RESULT_END, False))
                yield Turn(header, body, message=index)
                resulted = True
            elif message.role == "assistant":
                result = _ends_with_result(conversation[:index])
                if index == len(conversation) - 1:
                    yield self._answer(message, index, result)
                else:
                    yield self._past_answer(message, index, result, called)
                called = called or bool(message.tool_calls)
        if _ends_with_result(conversation):
            yield Turn(_RESULTS_END, ())

    def answer_header(self, conversation: Conversation) -> str:
        return "" if _ends_with_result(conversation) else self._opening()

    def parser(self, prompt: Sequence[int] = ()) -> AnswerParser:
        """Reads an answer while it is written.

        Args:
            prompt: the tokens that the model answers to; without them, a question is assumed.
        """
        opened = self._mode == "thinking"
        if prompt:
            opened = self._text.decode_whole(prompt[-len(_OPEN) :]).endswith(_OPEN)
        strange = (_USER, _ASSISTANT, _RESULTS, _RESULTS_END, _RESULT, _RESULT_END)
        return _Parser(
            self._text, self.stop_tokens, _MARKS, strange, thoughts=True, thinking=opened
        )

    def parse(self, tokens: Sequence[int], prompt: Sequence[int] = ()) -> ParsedAnswer:
        return self.parser(prompt).parse(tokens)

    def _opening(self) -> str:
        return _ASSISTANT + (_OPEN if self._mode == "thinking" else THOUGHT)

    def _system(self, conversation: Conversation, tools: Sequence[Tool]) -> Iterator[Turn]:
        """All system texts, wherever they stand, and the tools."""
        yield Turn(_BEGIN, ())
        separator = ""
        for index, message in enumerate(conversation):
            if message.role == "system":
                yield Turn(separator, self.said(message.text), message=index)
                separator = "\n\n"
        if tools:
            declared = "".join(
                f"### {tool.name}\nDescription: {tool.description}\n\n"
                f"Parameters: {template_json(dict(tool.parameters))}\n\n"
                for tool in tools
            )
            body = ((_TOOLS, False), *self.said(declared), (_HOW_TO_CALL, False))
            yield Turn(separator, body)

    def _answer(self, message: Message, index: int, result: bool) -> Turn:
        """What the model writes behind a prompt."""
        thinking, text = _thinking_and_text(message)
        header = _RESULTS_END if result else self._opening()
        body: list[Written] = []
        if self._mode == "thinking" and (thinking or not result):
            body = [*self.said(thinking.strip("\n")), (_CLOSE, False)]
            if result:
                body.insert(0, (_OPEN, False))
            text = text.lstrip("\n")
        body += [*self.said(text), *self._calls(message.tool_calls), (_END, False)]
        return Turn(header, tuple(body), message=index, answer=True)

    def _past_answer(self, message: Message, index: int, result: bool, called: bool) -> Turn:
        """An earlier answer as the template has it."""
        text = message.text
        header = _ASSISTANT
        # Its role and its text are lost, so that it is no answer behind a header any more.
        lost = called and bool(message.tool_calls)
        if lost:
            header = text = ""
        elif result and not message.tool_calls:
            header = _RESULTS_END
        elif not message.tool_calls:
            text = text.rpartition(THOUGHT)[2]
        calls = self._calls(message.tool_calls, continued=called)
        body = (*self.said(text), *calls, (_END, False))
        return Turn(header, body, message=index, answer=not lost)

    def _calls(self, calls: Sequence[ToolCall], continued: bool = False) -> Iterator[Written]:
        for number, call in enumerate(calls):
            opening = f"\n{_CALL}" if number or continued else _CALLS + _CALL
            yield f"{opening}function{_NAMED}", False
            yield from self.said(call.name)
            yield _FENCE, False
            yield from self.said(call.arguments)
            yield _FENCE_END + _CALL_END, False
        if calls:
            yield _CALLS_END, False


class _Parser(CallSectionParser):
    """Reads calls as `function`, separator, name and fenced JSON."""

    _CALLED = re.compile(rf"\s*function{_NAMED}\s*(\S+)\s*```json\n(.*)\n```\s*", re.DOTALL)

    def read_call(self, raw: str) -> None:
        if found := self._CALLED.fullmatch(raw):
            read_named_call(self, raw, found[1], found[2].strip())
        else:
            self.problem(raw, f"the tool call is not function{_NAMED}NAME and JSON in a fence")


def _ends_with_result(conversation: Conversation) -> bool:
    """Whether a tool had the last word; the system's do not count."""
    roles = [message.role for message in conversation if message.role != "system"]
    return roles[-1:] == ["tool"]


def _thinking_and_text(message: Message) -> tuple[str, str]:
    """Thinking and answer; where they are one text, cut at the last tag as the template cuts it."""
    if message.thinking is not None:
        return message.thinking, message.text
    before, _, text = message.text.rpartition(THOUGHT)
    return before.lstrip().removeprefix(THINK), text
