"""What a recipe learns from: examples, some of them held out, and how they are written.

Knows data and a renderer; no training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shammah.datasets import ChatExample
from shammah.errors import TrainingError
from shammah.messages import Conversation, to_dicts
from shammah.ports.dataset_store import BadRow

if TYPE_CHECKING:
    from shammah.models.load import BaseModel
    from shammah.renderers.base import Renderer

MOST_JUDGED = 200
"""Of the rows that are learned, how many are looked at."""


@dataclass(frozen=True, slots=True)
class Material:
    """The examples of a run, in the order of their source. `digest` tells them apart from others,
    `bad` are rows that could not be read; `lacking` says how many were passed over for having not
    what is learned from, by what that is (a method adds to it what it finds too long)."""

    base: BaseModel
    renderer: Renderer
    format: str
    examples: Sequence[ChatExample]
    held_out: Sequence[ChatExample]
    bad: int
    first_bad: Sequence[BadRow]
    max_tokens: int
    """Of an example at most."""
    lacking: dict[str, int] = field(default_factory=dict)

    @property
    def judged(self) -> Sequence[ChatExample]:
        """What evaluations are on: what is held out; the first examples where nothing is, which
        tells what was learned and nothing about the rest."""
        return self.held_out or self.examples[:MOST_JUDGED]

    @property
    def digest(self) -> str:
        """SHA-256 of what is said in all examples."""
        mark = hashlib.sha256()
        for example in [*self.examples, None, *self.held_out]:
            said = example and [
                to_dicts(example.messages),
                None if example.rejected is None else to_dicts(example.rejected),
            ]
            mark.update(json.dumps(said, sort_keys=True).encode() + b"\n")
        return mark.hexdigest()

    def check_same(self, digest: str, source: str) -> None:
        """Refuse to go on with other data than before.

        Args:
            digest: of the examples that the run began with.
            source: what they are called.

        Raises:
            TrainingError: these are others.
        """
        if self.digest != digest:
            raise TrainingError(
                f"{source} is not what it was when this run began.",
                hint="Start a new run, or put the old data back.",
            )

    def shown(self, count: int = 3) -> list[dict[str, Any]]:
        """The first examples as the model is given them: tokens, their weights, and the text with
        what is learned in it marked by ⟦ ⟧."""
        return [_shown(example.messages, example, self) for example in self.examples[:count]]


def without_pair(example: ChatExample) -> str:
    """What an example lacks to be a pair of answers; empty where it is one."""
    return "" if example.answer is not None and example.rejected is not None else "two answers"


def _shown(messages: Conversation, example: ChatExample, material: Material) -> dict[str, Any]:
    renderer, tokenizer = material.renderer, material.base.tokenizer
    if example.answer is None:
        tokens = list(renderer.generation_prompt(messages))
        weights = [0.0] * len(tokens)
    else:
        rendered = renderer.supervised(messages)
        tokens, weights = list(rendered.tokens), list(rendered.weights)
    parts: list[str] = []
    start = 0
    for end in range(1, len(tokens) + 1):
        if end == len(tokens) or (weights[end] > 0) != (weights[start] > 0):
            text = tokenizer.decode(tokens[start:end])
            parts.append(f"⟦{text}⟧" if weights[start] > 0 else text)
            start = end
    return {
        "place": example.place,
        "text": "".join(parts),
        "tokens": tokens,
        "weights": weights,
    }
