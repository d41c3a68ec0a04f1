"""From the data that a recipe names to its material: read, sorted out, and divided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from shammah.datasets import ChatExample, Examples, open_dataset
from shammah.errors import InputError, UsageError
from shammah.ports.dataset_store import OnBad
from shammah.recipes.material import Material
from shammah.renderers.registry import renderer_for

if TYPE_CHECKING:
    from shammah.models.load import BaseModel
    from shammah.recipes.training_recipe import TrainingRecipe

MOST_HELD_OUT = 500
"""Rows that a share holds out at most: more make evaluations slower, not surer."""
LEAST_DIVIDED = 30
"""Of fewer rows a share holds out none: each is wanted."""


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
