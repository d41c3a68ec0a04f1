"""What a formatter is, and what it makes of a row: a conversation with what is known about it.

Knows no particular data set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from shammah.errors import InputError, UsageError
from shammah.messages import Conversation, Message
from shammah.ports.dataset_store import Row

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class ChatExample:
    """A row as a conversation.

    `messages` ends with the assistant's answer where one is known; without it there is only a
    prompt. `rejected` is the same conversation with the answer that was not preferred. `metadata`
    holds what an evaluation needs and the model must not see: ids, gold labels, the row's other
    columns. `place` is where the row is from.
    """

    messages: Conversation
    rejected: Conversation | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""

    @property
    def prompt(self) -> Conversation:
        """All before the answer."""
        return self.messages if self.answer is None else self.messages[:-1]

    @property
    def answer(self) -> Message | None:
        """The last message, if it is the assistant's."""
        last = self.messages[-1] if self.messages else None
        return last if last is not None and last.role == "assistant" else None

    @property
    def rejected_answer(self) -> Message | None:
        """The answer that was not preferred."""
        return self.rejected[-1] if self.rejected else None


Formatter = Callable[[Row], ChatExample]
"""A row to an example. Raises InputError where the row does not fit; the message is the reason."""


class RowModel(BaseModel):
    """Base of the rows of known data sets: columns that are not named are passed over."""

    model_config = ConfigDict(extra="ignore", strict=True)


def checked(model: type[M], row: Row) -> M:
    """The row as its data set defines it.

    Raises:
        InputError: it is not; the message says which column and why.
    """
    try:
        return model.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        column = ".".join(map(str, first["loc"]))
        what = "is missing" if first["type"] == "missing" else f"is wrong: {first['msg'].lower()}"
        raise InputError(f"the column {column} {what}") from None


def text(row: Row, column: str) -> str:
    """A column that must hold text.

    Raises:
        InputError: it is not there or holds something else.
    """
    value = row.get(column)
    if isinstance(value, str):
        return value
    missing = column not in row
    raise InputError(f"the column {column} {'is missing' if missing else 'holds no text'}")


def others(row: Row, *used: str) -> dict[str, Any]:
    """The columns that the messages were not made of."""
    return {name: value for name, value in row.items() if name not in used}


def choice(option: str, value: str, *known: str) -> None:
    """Check an option of a formatter.

    Raises:
        UsageError: the value is none of those known.
    """
    if value not in known:
        raise UsageError(f"{option} is {value!r}.", hint=f"It can be {' or '.join(known)}.")
