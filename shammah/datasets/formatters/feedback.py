"""Feedback as `shammah feedback export` writes it: `{query, response, rating, correction, ...}`.

Defines what a line of it holds, for the import of feedback too. Knows what was said of an answer,
not what a chat makes of it.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from shammah.datasets.formatters.base import ChatExample, RowModel, checked, others
from shammah.errors import InputError
from shammah.messages import Conversation, assistant, from_dicts, user
from shammah.ports.dataset_store import Row


class FeedbackLine(RowModel):
    """A line as it is written. Keys that are not ours are passed over."""

    query: str | None = None
    response: str | None = None
    rating: Literal["critical", "medium", "good"] | None = None
    weight: float | None = Field(None, gt=0, le=1e6)
    note: str | None = None
    feedback: str | None = None
    """The note, by another name."""
    correction: str | None = None
    preferred_over: str | None = None
    """An earlier answer to the same prompt, in place of which a good one was given."""
    messages: list[dict[str, Any]] | None = None

    @field_validator("rating", mode="before")
    @classmethod
    def _any_case(cls, value: Any) -> Any:
        return value.strip().lower() if isinstance(value, str) else value

    @property
    def prompt(self) -> Conversation:
        """What was asked, with the conversation before it.

        Raises:
            InputError: nothing was, or the two do not agree.
        """
        if not self.messages:
            if self.query is None or not self.query.strip():
                raise InputError("no query")
            return (user(self.query),)
        messages = from_dicts(self.messages)
        if messages[-1].role != "user":
            raise InputError(
                "messages do not end with the user's: the answer belongs into response"
            )
        if self.query is not None and self.query != messages[-1].text:
            raise InputError("query differs from the last of messages")
        if not messages[-1].text.strip():
            raise InputError("no query")
        return messages


class Feedback:
    """What was said of an answer, as the answer to be given and the one to be left.

    | feedback | answer | rejected |
    | --- | --- | --- |
    | a correction | the correction | the answer that it corrects |
    | a good answer | that answer | the one it was given in place of, if any |
    | a bad answer alone | none | none |

    An answer that was condemned is never the answer: such a row is a prompt. `metadata` has
    `rating`, `weight`, `note` and the other columns, and the condemned answer as `response`.
    """

    def __call__(self, row: Row) -> ChatExample:
        line = checked(FeedbackLine, row)
        prompt, good = line.prompt, line.rating == "good"
        answer = _said(line.correction) or (_said(line.response) if good else None)
        rejected = _said(line.preferred_over if good else line.response)
        if line.rating is None and answer is None:
            raise InputError("there is neither a rating nor a correction")
        metadata = others(row, "query", "messages", "correction", "preferred_over")
        if answer is None:
            return ChatExample(prompt, metadata=metadata)
        metadata.pop("response", None)
        messages = (*prompt, assistant(answer))
        if rejected is None:
            return ChatExample(messages, metadata=metadata)
        if rejected.strip() == answer.strip():
            if not good:
                raise InputError("the correction is the answer that it corrects")
            return ChatExample(messages, metadata=metadata)
        return ChatExample(messages, (*prompt, assistant(rejected)), metadata)


def matches(row: Row) -> bool:
    return "query" in row and bool({"rating", "correction"} & row.keys())


def _said(text: str | None) -> str | None:
    """A text; None where it is blank, which would teach to say nothing."""
    return text if text and text.strip() else None
