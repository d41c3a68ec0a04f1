"""A prompt and what should follow it, each a column of text."""

from __future__ import annotations

from dataclasses import dataclass

from shammah.datasets.formatters.base import ChatExample, others, text
from shammah.messages import assistant, system, user
from shammah.ports.dataset_store import Row


@dataclass(frozen=True, slots=True)
class PromptCompletion:
    """Prompt -> completion. All other columns are metadata.

    Options:
        prompt: the column of the prompt (`prompt`).
        completion: the column of the completion (`completion`).
        system: a column to be the system message, if any.
    """

    prompt: str = "prompt"
    completion: str = "completion"
    system: str = ""

    def __call__(self, row: Row) -> ChatExample:
        before = (system(text(row, self.system)),) if self.system else ()
        messages = (
            *before,
            user(text(row, self.prompt)),
            assistant(text(row, self.completion)),
        )
        used = (self.prompt, self.completion, self.system)
        return ChatExample(messages, metadata=others(row, *used))


def matches(row: Row) -> bool:
    return {"prompt", "completion"} <= row.keys()
