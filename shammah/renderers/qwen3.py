"""Qwen 3: ChatML with thinking before the answer and tool calls as JSON between tags.

    <|im_start|>user
    question<|im_end|>
    <|im_start|>assistant
    <think>
    thought
    </think>

    answer<|im_end|>

Three ways of answering: `thinking`, where the model decides what to think; `disable_thinking`,
where the prompt ends with an empty thought; and `instruct`, for models that were trained without.

Thoughts before the last question are left out, as the family's own template does. So the prompt of
a next turn does not begin with the tokens of the last one where the model had thought. Otherwise
than in the template, `disable_thinking` leaves all thoughts out: with one in the answer, the prompt
would be no prefix of the example.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from shammah.messages import Conversation, Message, Tool
from shammah.renderers.family import FamilyRenderer, Turn, Written, template_json
from shammah.renderers.parsing import AnswerParser
from shammah.renderers.tags import CALL, CALLED, THINK, THOUGHT, TagParser

Thinking = Literal["thinking", "disable_thinking", "instruct"]

_START, _END = "<|im_start|>", "<|im_end|>"
_NO_THOUGHT = f"{THINK}\n\n{THOUGHT}\n\n"
_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>",
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>',
)


class Qwen3Renderer(FamilyRenderer):
    """Renders Qwen 3's format. `mode` is one of `Thinking`; the rest is as in FamilyRenderer."""

    needs = (_START, _END)
    ends = (_END,)

    def __init__(
        self, tokenizer: Any, stop_tokens: Iterable[int] = (), *, mode: Thinking = "thinking"
    ) -> None:
        self.name = "qwen3" if mode == "thinking" else f"qwen3_{mode}"
        super().__init__(tokenizer, stop_tokens)
        self._mode = mode

    def turns(self, conversation: Conversation, tools: Sequence[Tool]) -> Iterator[Turn]:
        first = conversation[0] if conversation and conversation[0].role == "system" else None
        if tools:
            yield self._declared(first, tools)
        asked = _last_question(conversation)
        for index, message in enumerate(conversation):
            self.refuse_images(message)
            if message.role == "assistant":
                yield self._answer(conversation, index, index > asked)
            elif message.role == "tool":
                yield self._result(conversation, index)
            elif not (tools and index == 0 and message is first):
                header = f"{_START}{message.role}\n"
                yield Turn(header, (*self.said(message.text), (_END, False)), "\n", index)

    def answer_header(self, conversation: Conversation) -> str:
        header = f"{_START}assistant\n"
        return header + _NO_THOUGHT if self._mode == "disable_thinking" else header

    def parser(self, prompt: Sequence[int] = ()) -> AnswerParser:
        return TagParser(self._text, self.stop_tokens)

    def _declared(self, system: Message | None, tools: Sequence[Tool]) -> Turn:
        before, after = _TOOLS
        said = (*self.said(system.text), ("\n\n", False)) if system else ()
        declared = "".join(f"\n{template_json(tool.to_dict())}" for tool in tools)
        body = (*said, (before, False), *self.said(declared), (after, False), (_END, False))
        return Turn(f"{_START}system\n", body, "\n", 0 if system else None)

    def _answer(self, conversation: Conversation, index: int, current: bool) -> Turn:
        message = conversation[index]
        thinking, text = _thinking_and_text(message)
        header, body = f"{_START}assistant\n", list[Written]()
        last = index == len(conversation) - 1
        if current and self._mode != "instruct" and (last or thinking):
            text = text.lstrip("\n")
            if self._mode == "disable_thinking":
                header += _NO_THOUGHT
            else:
                body = [
                    (f"{THINK}\n", False),
                    *self.said(thinking.strip("\n"), by_model=True),
                    (f"\n{THOUGHT}\n\n", False),
                ]
        body += self.said(text, by_model=True)
        for number, call in enumerate(message.tool_calls):
            separator = "\n" if text or number else ""
            body += [
                (f'{separator}{CALL}\n{{"name": "', False),
                *self.said(call.name),
                ('", "arguments": ', False),
                *self.said(call.arguments),
                (f"}}\n{CALLED}", False),
            ]
        return Turn(header, (*body, (_END, False)), "\n", index, answer=True)

    def _result(self, conversation: Conversation, index: int) -> Turn:
        begins = index == 0 or conversation[index - 1].role != "tool"
        ends = index + 1 == len(conversation) or conversation[index + 1].role != "tool"
        header = f"{_START}user" if begins else ""
        trailer = f"\n</tool_response>{_END}\n" if ends else "\n</tool_response>"
        body = self.said(conversation[index].text)
        return Turn(f"{header}\n<tool_response>\n", body, trailer, index)


def _thinking_and_text(message: Message) -> tuple[str, str]:
    """Thinking and answer; where they are one text, cut at the tag as the template cuts them."""
    if message.thinking is not None:
        return message.thinking, message.text
    before, found, _ = message.text.partition(THOUGHT)
    if not found:
        return "", message.text
    thinking = before.rstrip("\n").rpartition(THINK)[2].lstrip("\n")
    return thinking, message.text.rpartition(THOUGHT)[2].lstrip("\n")


def _last_question(conversation: Conversation) -> int:
    """The last message of the user that is no tool's result in disguise."""
    for index in range(len(conversation) - 1, -1, -1):
        message = conversation[index]
        disguised = message.text.startswith("<tool_response>") and message.text.endswith(
            "</tool_response>"
        )
        if message.role == "user" and not disguised:
            return index
    return len(conversation) - 1
