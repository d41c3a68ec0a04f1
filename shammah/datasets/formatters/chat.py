"""Conversations as they are: `{"messages": [{"role": ..., "content": ...}, ...]}`."""

from __future__ import annotations

from typing import Any

from shammah.datasets.formatters.base import ChatExample, others
from shammah.errors import InputError
from shammah.messages import Conversation, from_dicts
from shammah.ports.dataset_store import Row


class Chat:
    """The column `messages`; all other columns (`tools` among them) are metadata."""

    def __call__(self, row: Row) -> ChatExample:
        messages = conversation(row.get("messages"), "messages")
        return ChatExample(messages, metadata=others(row, "messages"))


def conversation(value: Any, column: str) -> Conversation:
    """A list of messages from JSON.

    Raises:
        InputError: it is none, or empty.
    """
    if not isinstance(value, list) or not value:
        raise InputError(f"the column {column} holds no list of messages")
    try:
        return from_dicts(value)
    except InputError as error:
        raise InputError(f"{column}: {error.message}", hint=error.hint) from None


def matches(row: Row) -> bool:
    return isinstance(row.get("messages"), list)
