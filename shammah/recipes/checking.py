"""What would keep a run from beginning, or lose it at its end, found before it has a folder.

Looks at names and at the first row; loads no model. What only the whole of the data or the model
can tell, the stages find.
"""

from __future__ import annotations

from difflib import get_close_matches
from itertools import islice
from typing import TYPE_CHECKING

from shammah.errors import ConfigError, InputError, TrainingError

if TYPE_CHECKING:
    from shammah.paths import Paths
    from shammah.recipes.recipe import Recipe
    from shammah.recipes.training_recipe import TrainingRecipe


def check_names(recipe: Recipe, paths: Paths) -> None:
    """The names that every recipe has: of the adapter, the model, the renderer and the loggers.

    Raises:
        AdapterError: there is an adapter of that name, or it is no name.
        ModelError: the name of the model stands for nothing.
        ConfigError: there is no such renderer or logger.
    """
    from shammah.models.find import find_model
    from shammah.recipes.provision import library
    from shammah.renderers.registry import AUTO, RENDERERS
    from shammah.tracking.loggers.opening import known

    if recipe.name:
        library(paths).check_name(recipe.name)
    find_model(recipe.model)
    if recipe.renderer != AUTO:
        _check("renderer", recipe.renderer, list(RENDERERS))
    for name in recipe.loggers:
        _check("logger", name, known())


def check_training(recipe: TrainingRecipe, paths: Paths) -> None:
    """What recipes have that train on a data set: its first row, and the names of losses, hooks
    and the adapter that is gone on from.

    Raises:
        DatasetError, InputError, UsageError: there is no such data set, it is empty, or its first
            row does not fit the format.
        ConfigError: there is no such loss or hook.
        AdapterNotFoundError: there is no such adapter.
    """
    from shammah.recipes.provision import library
    from shammah.recipes.reading import read
    from shammah.training.hooks import make_hooks
    from shammah.training.losses import get

    for source in (recipe.data, recipe.held_out):
        if isinstance(source, str) and not list(islice(read(recipe, source), 1)):
            raise InputError(f"{source} has no row.")
    try:
        loss = getattr(recipe, "loss", None)
        if loss is not None:
            get(loss)
        make_hooks(recipe.hooks)
    except TrainingError as error:
        # Elsewhere a failure of the training, here a word on the command line.
        raise ConfigError(error.message, hint=error.hint) from error
    if recipe.adapter:
        library(paths).get(recipe.adapter)


def _check(what: str, name: str, known: list[str]) -> None:
    if name not in known:
        near = get_close_matches(name, known, n=1, cutoff=0.5)
        raise ConfigError(
            f"There is no {what} {name!r}.",
            hint=(f"Did you mean {near[0]}? " if near else "") + f"There are {', '.join(known)}.",
        )
