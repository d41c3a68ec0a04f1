"""Pairs of a chosen and a rejected answer, as texts after a prompt or as lists of messages."""

from __future__ import annotations

from typing import Any

from shammah.datasets.formatters.base import ChatExample, others
from shammah.datasets.formatters.chat import conversation
from shammah.errors import InputError
from shammah.messages import Conversation, assistant, user
from shammah.ports.dataset_store import Row


class Preference:
    """`prompt`, `chosen` and `rejected`; all other columns are metadata.

    A prompt is text or a list of messages. An answer is text, which follows the prompt; or a list
    of messages, which follows it where it begins with the assistant's, and otherwise is the whole
    conversation. Both must end with the assistant's answer to the same prompt.
    """

    def __call__(self, row: Row) -> ChatExample:
        prompt = _prompt(row.get("prompt"))
        chosen = _answered(row.get("chosen"), "chosen", prompt)
        rejected = _answered(row.get("rejected"), "rejected", prompt)
        if chosen[0] != rejected[0]:
            raise InputError("chosen and rejected do not begin with the same message")
        metadata = others(row, "prompt", "chosen", "rejected")
        return ChatExample(chosen, rejected, metadata=metadata)


def matches(row: Row) -> bool:
    return {"chosen", "rejected"} <= row.keys()


def _prompt(value: Any) -> Conversation:
    if value is None:
        return ()
    return (user(value),) if isinstance(value, str) else conversation(value, "prompt")


def _answered(value: Any, column: str, prompt: Conversation) -> Conversation:
    if isinstance(value, str):
        messages: Conversation = (*prompt, assistant(value))
    else:
        messages = conversation(value, column)
        if messages[0].role == "assistant":
            messages = (*prompt, *messages)
    if messages[0].role == "assistant":
        raise InputError(f"there is no prompt before {column}")
    if messages[-1].role != "assistant":
        raise InputError(f"{column} does not end with the assistant's answer")
    return messages
