"""A prompt alone, for what is answered by a model and judged by something else."""

from __future__ import annotations

from dataclasses import dataclass

from shammah.datasets.formatters.base import ChatExample, others, text
from shammah.messages import system, user
from shammah.ports.dataset_store import Row


@dataclass(frozen=True, slots=True)
class Prompt:
    """Prompt, without an answer. All other columns are metadata, for a reward or a scorer.

    Options:
        prompt: the column of the prompt (`prompt`).
        system: a column to be the system message, if any.
    """

    prompt: str = "prompt"
    system: str = ""

    def __call__(self, row: Row) -> ChatExample:
        before = (system(text(row, self.system)),) if self.system else ()
        messages = (*before, user(text(row, self.prompt)))
        return ChatExample(messages, metadata=others(row, self.prompt, self.system))


def matches(row: Row) -> bool:
    return "prompt" in row and not {"completion", "chosen", "rejected", "messages"} & row.keys()
