"""Messages and conversations: what is said, by whom, with which tools. Knows no tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, get_args

from shammah.errors import InputError

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class TextPart:
    """What is said."""

    text: str


@dataclass(frozen=True, slots=True)
class ThinkingPart:
    """What the model thought before it said something."""

    thinking: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A picture, by path, URL or data URL."""

    image: str


Part = TextPart | ThinkingPart | ImagePart


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool by the model. `arguments` is JSON text, as the model wrote it."""

    name: str
    arguments: str = "{}"
    id: str | None = None

    def parsed(self) -> dict[str, Any]:
        """The arguments as an object.

        Raises:
            InputError: they are no JSON object.
        """
        try:
            value = json.loads(self.arguments)
        except ValueError as error:
            raise InputError(f"the arguments of {self.name} are not JSON: {error}") from error
        if not isinstance(value, dict):
            raise InputError(f"the arguments of {self.name} are no JSON object")
        return value

    def to_dict(self) -> dict[str, Any]:
        call: dict[str, Any] = {
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }
        return call if self.id is None else {"id": self.id, **call}


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that a model may call. `parameters` is a JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(
        default_factory=lambda: {"type": "object", "properties": {}}
    )

    def to_dict(self) -> dict[str, Any]:
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.parameters),
        }
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        content: text alone, or parts in their order.
        tool_calls: what an assistant calls after what it says.
        tool_call_id: the call that a tool's message answers.
        name: of the tool that a tool's message comes from.
        trainable: whether to learn it, for `TrainOnWhat.CUSTOMIZED` alone.
    """

    role: Role
    content: str | tuple[Part, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    trainable: bool | None = None

    @property
    def text(self) -> str:
        """What is said, without thinking and pictures."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def thinking(self) -> str | None:
        """What was thought, or None where nothing is said about it."""
        if isinstance(self.content, str):
            return None
        thoughts = [part.thinking for part in self.content if isinstance(part, ThinkingPart)]
        return "".join(thoughts) if thoughts else None

    @property
    def parts(self) -> tuple[Part, ...]:
        return (TextPart(self.content),) if isinstance(self.content, str) else self.content

    def with_text(self, text: str) -> Message:
        """The same message saying something else; thinking and pictures stay before it."""
        if isinstance(self.content, str):
            return replace(self, content=text)
        kept = tuple(part for part in self.content if not isinstance(part, TextPart))
        return replace(self, content=(*kept, TextPart(text)))

    def to_dict(self) -> dict[str, Any]:
        """The message as chat APIs and templates write it; `from_dicts` reads it back."""
        row: dict[str, Any] = {"role": self.role}
        if isinstance(self.content, str):
            row["content"] = self.content
        else:
            row["content"] = [_part_to_dict(part) for part in self.content]
        if self.tool_calls:
            row["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        for key in ("tool_call_id", "name", "trainable"):
            if (value := getattr(self, key)) is not None:
                row[key] = value
        return row

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Pydantic reads and writes a message as `from_dicts` and `to_dict` do."""
        from pydantic_core import core_schema

        def read(value: Any) -> Message:
            if isinstance(value, Message):
                return value
            if not isinstance(value, Mapping):
                raise ValueError("a message is an object with role and content")
            try:
                return _message(value)
            except InputError as error:
                raise ValueError(f"a message {error.message}") from error

        return core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.plain_serializer_function_ser_schema(cls.to_dict)
        )


Conversation = tuple[Message, ...]


def system(content: str) -> Message:
    return Message("system", content)


def user(content: str) -> Message:
    return Message("user", content)


def assistant(
    content: str, *, thinking: str | None = None, tool_calls: Sequence[ToolCall] = ()
) -> Message:
    said: str | tuple[Part, ...] = content
    if thinking is not None:
        said = (ThinkingPart(thinking), TextPart(content))
    return Message("assistant", said, tuple(tool_calls))


def tool(content: str, *, name: str | None = None, tool_call_id: str | None = None) -> Message:
    return Message("tool", content, tool_call_id=tool_call_id, name=name)


def to_dicts(conversation: Iterable[Message]) -> list[dict[str, Any]]:
    """Plain dictionaries, as JSON and chat templates want them."""
    return [message.to_dict() for message in conversation]


def from_dicts(rows: Iterable[Mapping[str, Any]]) -> Conversation:
    """Messages from JSON objects as chat APIs write them.

    `content` is text, a list of parts (`text`, `thinking`, `image` or `image_url`), or null beside
    `tool_calls`. Thinking may also stand beside it as `reasoning_content` or `thinking`.

    Raises:
        InputError: a row has an unknown role, no content, or something else in a field.
    """
    messages = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise InputError(f"message {number} is not an object with role and content")
        try:
            messages.append(_message(row))
        except InputError as error:
            raise InputError(f"message {number} {error.message}", hint=error.hint) from error
    return tuple(messages)


def tools_from_dicts(rows: Iterable[Mapping[str, Any]]) -> tuple[Tool, ...]:
    """Tools from JSON objects, with or without `{"type": "function", "function": ...}` around.

    Raises:
        InputError: a row has no name, or something else in a field.
    """
    tools = []
    for number, row in enumerate(rows, start=1):
        function = row.get("function", row) if isinstance(row, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise InputError(f"tool {number} is not an object with a name")
        description = function.get("description") or ""
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        if not isinstance(description, str) or not isinstance(parameters, Mapping):
            raise InputError(
                f"tool {number} ({function['name']}) has a description that is no text, or "
                "parameters that are no JSON schema"
            )
        tools.append(Tool(function["name"], description, dict(parameters)))
    return tuple(tools)


def _message(row: Mapping[str, Any]) -> Message:
    role = row.get("role")
    if role not in ROLES:
        raise InputError(f"has the role {role!r}", hint=f"Roles are {', '.join(ROLES)}.")
    calls = tuple(_tool_call(call) for call in _list(row, "tool_calls"))
    content = row.get("content")
    if content is None and calls:
        content = ""
    if isinstance(content, list):
        content = tuple(_part(part) for part in content)
    if not isinstance(content, (str, tuple)):
        raise InputError("has no text in `content`")
    thinking = row.get("reasoning_content", row.get("thinking"))
    if thinking is not None:
        if not isinstance(thinking, str):
            raise InputError("has thinking that is no text")
        said = (TextPart(content),) if isinstance(content, str) else content
        content = (ThinkingPart(thinking), *said)
    for key, kind in (("tool_call_id", str), ("name", str), ("trainable", bool)):
        if not isinstance(row.get(key), (kind, type(None))):
            raise InputError(f"has {row[key]!r} for `{key}`")
    if calls and role != "assistant":
        raise InputError(f"has tool calls, but the role {role}")
    return Message(
        cast(Role, role),
        content,
        calls,
        row.get("tool_call_id"),
        row.get("name"),
        row.get("trainable"),
    )


def _list(row: Mapping[str, Any], key: str) -> list[Any]:
    value = row.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise InputError(f"has `{key}` that is no list")
    return value


def _tool_call(row: Any) -> ToolCall:
    function = row.get("function", row) if isinstance(row, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InputError("has a tool call without a name")
    arguments = function.get("arguments", {})
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    identifier = row.get("id")
    return ToolCall(function["name"], arguments, None if identifier is None else str(identifier))


def _part(row: Any) -> Part:
    if isinstance(row, Mapping):
        if isinstance(row.get("text"), str):
            return TextPart(row["text"])
        if isinstance(row.get("thinking"), str):
            return ThinkingPart(row["thinking"])
        image = row.get("image", row.get("image_url"))
        if isinstance(image, Mapping):
            image = image.get("url")
        if isinstance(image, str):
            return ImagePart(image)
    raise InputError("has a part that is neither text, thinking nor image")


def _part_to_dict(part: Part) -> dict[str, Any]:
    match part:
        case TextPart(text):
            return {"type": "text", "text": text}
        case ThinkingPart(thinking):
            return {"type": "thinking", "thinking": thinking}
        case ImagePart(image):
            return {"type": "image", "image": image}
