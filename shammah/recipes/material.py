"""What a recipe learns from: examples, some of them held out, and how they are written.

Knows data and a renderer; no training.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from shammah.datasets import ChatExample, Examples, open_dataset
from shammah.errors import InputError, TrainingError, UsageError
from shammah.messages import Conversation, to_dicts
from shammah.ports.dataset_store import BadRow, OnBad
from shammah.renderers.registry import renderer_for

if TYPE_CHECKING:
    from shammah.models.load import BaseModel
    from shammah.recipes.training_recipe import TrainingRecipe
    from shammah.renderers.base import Renderer

MOST_HELD_OUT = 500
"""Rows that a share holds out at most: more make evaluations slower, not surer."""
LEAST_DIVIDED = 30
"""Of fewer rows a share holds out none: each is wanted."""
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


def material_of(recipe: TrainingRecipe, base: BaseModel) -> Material:
    """Read the data of a recipe.

    Raises:
        DatasetError, InputError, UsageError: they cannot be read, do not fit the format, or nothing
            is left to learn.
    """
    renderer = renderer_for(base.tokenizer, base.stop_tokens, base.renderer)
    found = read(recipe, recipe.data)
    examples, lacking = _learnable(recipe, found, recipe.data)
    bad = found.bad_rows
    if isinstance(recipe.held_out, str):
        held, _ = _learnable(recipe, read(recipe, recipe.held_out), recipe.held_out)
        if not held:
            raise InputError(f"{recipe.held_out} has no row to evaluate on.")
    else:
        examples, held = divided(examples, recipe.held_out, recipe.seed)
    if not examples:
        raise InputError(
            f"{recipe.data} leaves no example to learn.",
            hint="Hold out fewer, or look: `shammah data check`.",
        )
    longest = min(recipe.max_length or base.context_length, base.context_length)
    return Material(
        base, renderer, found.format, examples, held, bad.count, tuple(bad.first), longest, lacking
    )


def divided(
    examples: Sequence[ChatExample], held_out: float, seed: int
) -> tuple[list[ChatExample], list[ChatExample]]:
    """Examples to learn and to evaluate on, each in their order; which is drawn from the seed.

    Args:
        held_out: a share below 1, of `LEAST_DIVIDED` rows or more and `MOST_HELD_OUT` at most; or a
            number.

    Raises:
        UsageError: nothing would be left to learn.
    """
    share = min(MOST_HELD_OUT, round(held_out * len(examples)))
    share = share if len(examples) >= LEAST_DIVIDED else 0
    count = share if held_out < 1 else int(held_out)
    if count and count >= len(examples):
        raise UsageError(
            f"{count} of {len(examples)} rows held out leave nothing to learn.",
            hint="Lower held_out.",
        )
    random = np.random.Generator(np.random.PCG64([seed, 1]))
    out = set(random.permutation(len(examples))[:count].tolist())
    return (
        [each for index, each in enumerate(examples) if index not in out],
        [examples[index] for index in sorted(out)],
    )


def without_pair(example: ChatExample) -> str:
    """What an example lacks to be a pair of answers; empty where it is one."""
    return "" if example.answer is not None and example.rejected is not None else "two answers"


def _learnable(
    recipe: TrainingRecipe, read: Iterable[ChatExample], source: str
) -> tuple[list[ChatExample], dict[str, int]]:
    """The examples that a recipe can learn from, and how many lack what for it.

    Raises:
        InputError: all of them do.
    """
    kept: list[ChatExample] = []
    lacking = Counter[str]()
    for example in read:
        missing = recipe.lacks(example)
        if missing:
            lacking[missing] += 1
        else:
            kept.append(example)
    if lacking and not kept:
        raise InputError(
            f"None of the {lacking.total()} examples of {source} has {' or '.join(lacking)}.",
            hint="Name another format, or look at them: `shammah data show`.",
        )
    return kept, dict(lacking)


def read(recipe: TrainingRecipe, source: str) -> Examples:
    """The examples of a source, as the recipe has them read; nothing but its first row is read yet.

    Raises:
        DatasetError, UsageError: there is no such source, or its rows fit no known format.
    """
    on_bad: OnBad = "skip" if recipe.skip_bad else "raise"
    dataset = open_dataset(source, split=recipe.split or None, on_bad=on_bad)
    if recipe.limit:
        dataset = dataset.take(recipe.limit)
    return dataset.examples(recipe.format or None, **recipe.format_options)


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
