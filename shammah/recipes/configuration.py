"""From names and texts to a recipe: the command line's options, a TOML file, a run's manifest.

    recipe = "sft"
    data = "faq.csv"
    epochs = 3
    [lora]
    rank = 16

Knows which recipes there are, and what is wrong with what was given, in words.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shammah.errors import ConfigError, InputError, StorageError
from shammah.recipes.recipe import Recipe, listed, own_code

RECIPES: dict[str, str] = {
    "sft": "sft:SupervisedFineTuning",
    "dpo": "preference:DPO",
    "reward": "reward:RewardModeling",
    "rl": "reinforcement:Reinforcement",
    "distill": "distillation:Distillation",
    "feedback": "feedback_loop:FeedbackLoop",
}
"""Module and class of each kind, imported when it is asked for."""


def recipe_class(kind: str) -> type[Recipe]:
    """The recipe of a name.

    Raises:
        ConfigError: there is none.
    """
    if kind not in RECIPES:
        near = difflib.get_close_matches(kind, RECIPES, n=1, cutoff=0.5)
        raise ConfigError(
            f"There is no recipe {kind!r}.",
            hint=(f"Did you mean {near[0]}? " if near else "") + f"There are {', '.join(RECIPES)}.",
        )
    module, _, name = RECIPES[kind].partition(":")
    found: type[Recipe] = getattr(importlib.import_module(f"shammah.recipes.{module}"), name)
    return found


def made(kind: str, values: Mapping[str, Any], *, source: str = "the recipe") -> Recipe:
    """A recipe of nested tables; dotted names (`lora.rank`) are taken, too.

    Raises:
        ConfigError: there is no such recipe, a name is unknown (with the nearest known one), one is
            missing, or a value is of a wrong type or range.
    """
    recipe = recipe_class(kind)
    try:
        return recipe.model_validate(nested(values))
    except ValidationError as error:
        known = names(recipe)
        raise ConfigError(
            "\n".join(f"{source}: {_explained(problem, known)}" for problem in error.errors()),
            hint=f"`shammah train {kind} --help` tells of every option.",
        ) from error


def from_file(path: Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe as a TOML file has it. Paths in it are meant from its own folder.

    Args:
        changes: values that are given instead, by dotted name.

    Raises:
        InputError: it is no TOML, or names no recipe.
        StorageError: it cannot be read.
        ConfigError: see `made`.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        values = tomlkit.parse(path.read_text("utf-8")).unwrap()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}.") from error
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no TOML: {error}") from error
    kind = values.pop("recipe", None)
    if not isinstance(kind, str):
        raise InputError(
            f"{path} does not say which recipe it is.",
            hint=f'Write recipe = "sft"; there are {", ".join(RECIPES)}.',
        )
    fields = recipe_class(kind).path_fields()
    for name in fields:
        value = values.get(name)
        if isinstance(value, str) and (path.parent / value).exists():
            values[name] = str((path.parent / value).absolute())
    for name in recipe_class(kind).code_fields():
        if isinstance(values.get(name), str):
            values[name] = own_code(values[name], path.parent)
    values["plugins"] = [
        str((path.parent / each).absolute()) if (path.parent / each).exists() else each
        for each in listed(values.get("plugins", ()))
    ]
    return made(kind, {**values, **(changes or {})}, source=str(path))


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with dotted names as tables; a dotted name goes before a table's own."""
    found: dict[str, Any] = {
        name: dict(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if "." not in name
    }
    for name, value in values.items():
        if "." in name:
            table, _, key = name.partition(".")
            found.setdefault(table, {})[key] = value
    return found


def names(recipe: type[Recipe]) -> list[str]:
    """Every name that a recipe is configured by, dotted."""
    found = []
    for name, field in recipe.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        found += [f"{name}.{key}" for key in inner] if inner else [name]
    return found


def _explained(problem: Any, known: list[str]) -> str:
    # Pydantic adds the branch of a union to the place; the user knows only the name.
    place = [str(part) for part in problem["loc"]][: 2 if problem["loc"][0] == "lora" else 1]
    name = ".".join(place)
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        return f"there is no option {name!r}." + (f" Did you mean {near[0]}?" if near else "")
    if problem["type"] == "missing":
        return f"{name} is missing."
    said = str(problem["msg"]).removeprefix("Value error, ")
    return f"{name} = {problem['input']!r}: {said[:1].lower()}{said[1:]}."
