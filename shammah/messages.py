"""Messages and conversations: what is said, by whom. Knows nothing about tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from shammah.errors import InputError

Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str

    def to_dict(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


Conversation = tuple[Message, ...]


def system(content: str) -> Message:
    return Message("system", content)


def user(content: str) -> Message:
    return Message("user", content)


def assistant(content: str) -> Message:
    return Message("assistant", content)


def to_dicts(conversation: Iterable[Message]) -> list[dict[str, str]]:
    """Plain dictionaries, as JSON and chat templates want them."""
    return [message.to_dict() for message in conversation]


def from_dicts(rows: Iterable[Mapping[str, Any]]) -> Conversation:
    """Messages from JSON objects with `role` and `content`.

    Raises:
        InputError: a row has another role or no text.
    """
    messages = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise InputError(f"message {number} is not an object with role and content")
        role, content = row.get("role"), row.get("content")
        if role not in ROLES:
            raise InputError(
                f"message {number} has the role {role!r}", hint=f"Roles are {', '.join(ROLES)}."
            )
        if not isinstance(content, str):
            raise InputError(f"message {number} has no text in `content`")
        messages.append(Message(cast(Role, role), content))
    return tuple(messages)
