"""A tokenizer's chat template as a function from messages to text, and what is known about it.

Knows no model family: what a template has place for, and under which name, it finds out by having
it write small conversations, each when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from shammah.errors import InputError, ModelError
from shammah.messages import (
    Conversation,
    ImagePart,
    Message,
    Part,
    TextPart,
    Tool,
    ToolCall,
    assistant,
    system,
    tool,
    user,
)

PROBE = "qzxv"
_IDENTIFIER = "qzxv00000"  # some templates want nine letters or digits
_TOOL = Tool(f"{PROBE}tool", "What it does")
_CALL = ToolCall(_TOOL.name, f'{{"{PROBE}key": "{PROBE}value"}}', _IDENTIFIER)
_HELLO = user("hello")
_CALLED = (_HELLO, assistant("", tool_calls=[_CALL]))


class ChatTemplate:
    """Writes conversations with `apply_chat_template`.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def write(
        self, conversation: Conversation, tools: Sequence[dict[str, Any]], *, prompt: bool
    ) -> str:
        """The conversation's text, with the header of an answer behind it for a prompt.

        Where the template has no system role, the system text goes before the first question; where
        it refuses neighbours of one role, they become one message.

        Raises:
            ModelError: the template refuses the conversation.
        """
        if not self.takes_system:
            conversation = fold_system(conversation)
        try:
            return self._apply(conversation, tools, prompt)
        except ModelError:
            merged = merge_turns(conversation)
            if merged == conversation:
                raise
            return self._apply(merged, tools, prompt)

    def check(self, conversation: Conversation, tools: Sequence[Tool]) -> None:
        """Raises InputError where the template would leave out what a conversation has."""
        calls = any(message.tool_calls for message in conversation)
        results = any(message.role == "tool" for message in conversation)
        pictures = any(
            isinstance(part, ImagePart) for message in conversation for part in message.parts
        )
        for what, lacking in (
            ("tools", bool(tools) and not self.takes_tools),
            ("calls of tools", calls and not self.takes_calls),
            ("results of tools", results and not self.takes_results),
            ("pictures", pictures and not self.takes_pictures),
        ):
            if lacking:
                raise InputError(f"The model's chat template has no place for {what}.")

    @property
    def source(self) -> str:
        """The template itself."""
        return str(self._tokenizer.get_chat_template())

    @cached_property
    def takes_system(self) -> bool:
        return PROBE in self._tried((system(PROBE), _HELLO))

    @cached_property
    def takes_tools(self) -> bool:
        return _TOOL.name in self._tried((_HELLO,), (_TOOL.to_dict(),))

    @property
    def takes_calls(self) -> bool:
        return self.arguments_as_objects is not None

    @cached_property
    def arguments_as_objects(self) -> bool | None:
        """Whether arguments are given as objects, or as JSON text; None where neither is written
        as it should be."""
        key, value = f"{PROBE}key", f"{PROBE}value"
        for objects in (True, False):
            text = self._tried(_CALLED, objects=objects)
            whole = _TOOL.name in text and key in text and value in text
            if whole and f"'{key}'" not in text and f'\\"{key}' not in text:
                return objects
        return None

    @cached_property
    def takes_results(self) -> bool:
        result = tool(f"{PROBE}result", name=_TOOL.name, tool_call_id=_IDENTIFIER)
        return self.takes_calls and f"{PROBE}result" in self._tried((*_CALLED, result))

    @cached_property
    def thinking_key(self) -> str | None:
        """What the template calls a message's thinking, if it writes it."""
        for key in ("reasoning_content", "thinking", "reasoning"):
            row = {"role": "assistant", "content": "hello", key: PROBE}
            if PROBE in self._tried_rows([{"role": "user", "content": "hello"}, row]):
                return key
        return None

    @cached_property
    def takes_parts(self) -> bool:
        """Whether content may be a list of parts."""
        said = self._tried_rows([{"role": "user", "content": [{"type": "text", "text": PROBE}]}])
        return PROBE in said and f"'{PROBE}'" not in said and f'"{PROBE}"' not in said

    @cached_property
    def wants_parts(self) -> bool:
        """Whether content must be a list of parts."""
        alone = self._tried_rows([{"role": "user", "content": PROBE}])
        return PROBE not in alone and self.takes_parts

    @cached_property
    def takes_pictures(self) -> bool:
        if not self.takes_parts:
            return False
        text = {"type": "text", "text": PROBE}
        picture = {"type": "image", "image": "a.png"}
        without, found = (
            self._tried_rows([{"role": "user", "content": content}])
            for content in ([text], [picture, text])
        )
        return PROBE in found and found != without and "'image'" not in found

    @cached_property
    def ends(self) -> tuple[str, str]:
        """What the template writes behind an answer, and behind a call (nothing where it has no
        place for calls).

        Raises:
            ModelError: it refuses a question and an answer.
        """
        answered = self.write((_HELLO, assistant(PROBE)), (), prompt=False)
        called = self._tried(_CALLED) if self.takes_calls else ""
        return answered.rpartition(PROBE)[2], called.rpartition(f"{PROBE}value")[2]

    @cached_property
    def opens_thought(self) -> bool:
        """Whether the prompt ends within a thought."""
        return self._tried((_HELLO,)).rstrip().endswith("<think>")

    def _tried(
        self,
        conversation: Conversation,
        tools: Sequence[dict[str, Any]] = (),
        *,
        objects: bool | None = None,
    ) -> str:
        """The text; nothing where the template refuses."""
        if objects is None:
            calls = any(message.tool_calls for message in conversation)
            objects = bool(self.arguments_as_objects) if calls else False
        rows = [_row(message, "thinking", objects, parts=False) for message in conversation]
        return self._tried_rows(rows, tools)

    def _tried_rows(
        self,
        rows: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] = (),
    ) -> str:
        try:
            return self._apply_rows(rows, tools, rows[-1]["role"] != "assistant")
        except ModelError:
            return ""

    def _apply(
        self, conversation: Conversation, tools: Sequence[dict[str, Any]], prompt: bool
    ) -> str:
        calls = any(message.tool_calls for message in conversation)
        objects = bool(self.arguments_as_objects) if calls else False
        rows = [
            _row(
                message,
                None if message.thinking is None else self.thinking_key,
                objects,
                parts=self.wants_parts
                or any(isinstance(part, ImagePart) for part in message.parts),
            )
            for message in conversation
        ]
        return self._apply_rows(rows, tools, prompt)

    def _apply_rows(
        self, rows: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]], prompt: bool
    ) -> str:
        import jinja2

        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(rows),
                    tools=list(tools) or None,
                    tokenize=False,
                    add_generation_prompt=prompt,
                )
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise ModelError(
                f"The model's chat template refuses this conversation: {error}",
                hint="Start again with /clear, or use another model.",
            ) from error


def fold_system(conversation: Conversation) -> Conversation:
    """The system text moved to the beginning of the first user message."""
    texts = [message.text for message in conversation if message.role == "system"]
    rest = [message for message in conversation if message.role != "system"]
    first = next((at for at, message in enumerate(rest) if message.role == "user"), None)
    folded = "\n\n".join(text for text in texts if text)
    if folded and first is not None:
        rest[first] = _joined(system(folded), rest[first])
    return tuple(rest)


def merge_turns(conversation: Conversation) -> Conversation:
    """Neighbouring messages of one role made into one: some templates want roles to alternate."""
    merged: list[Message] = []
    for message in conversation:
        alike = bool(merged) and merged[-1].role == message.role != "tool"
        if alike and not merged[-1].tool_calls:
            merged[-1] = _joined(merged[-1], message)
        else:
            merged.append(message)
    return tuple(merged)


def _joined(before: Message, message: Message) -> Message:
    content: str | tuple[Part, ...]
    if isinstance(before.content, str) and isinstance(message.content, str):
        content = f"{before.content}\n\n{message.content}"
    else:
        content = (*before.parts, TextPart("\n\n"), *message.parts)
    return replace(message, content=content)


def _row(message: Message, thinking_key: str | None, objects: bool, parts: bool) -> dict[str, Any]:
    """The message as templates want it: thinking beside the content, calls in full."""
    row: dict[str, Any] = {"role": message.role, "content": message.text}
    if parts:
        row["content"] = [
            {"type": "text", "text": part.text}
            if isinstance(part, TextPart)
            else {"type": "image", "image": part.image}
            for part in message.parts
            if isinstance(part, (TextPart, ImagePart))
        ]
    if thinking_key is not None and message.thinking is not None:
        row[thinking_key] = message.thinking
    if message.tool_calls:
        row["tool_calls"] = [
            {
                "type": "function",
                **({} if call.id is None else {"id": call.id}),
                "function": {
                    "name": call.name,
                    "arguments": call.parsed() if objects else call.arguments,
                },
            }
            for call in message.tool_calls
        ]
    if message.role == "tool":
        found = {"tool_call_id": message.tool_call_id, "name": message.name}
        row |= {key: value for key, value in found.items() if value is not None}
    return row
