"""The options of a recipe on the command line, made of its configuration: what a recipe knows can
be written, and nothing else."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any, get_args, get_origin

from shammah.recipes.configuration import names, recipe_class
from shammah.recipes.recipe import Recipe
from shammah.recipes.training_recipe import TrainingRecipe

FIRST = ("data", "format", "model")
"""What is read first in the help."""
DATA = ("format_options", "split", "limit", "skip_bad", "held_out", "max_length")
ADAPTER = ("adapter", "name", "activate")


def add_options(parser: argparse.ArgumentParser, kind: str) -> None:
    """Add an option for each value of a recipe; what is not given is not in the namespace."""
    recipe = recipe_class(kind)
    needed = [f"--{name} ..." for name, field in recipe.model_fields.items() if field.is_required()]
    parser.usage = f"{parser.prog} {' '.join(needed)} [options]"
    parser.description = (recipe.__doc__ or "").replace("`", "")
    groups: dict[str, list[str]] = {
        "what is learned": [],
        "the data": [],
        "the adapter": [],
        "how it is trained": [],
    }
    for name in names(recipe):
        groups[_group(name, recipe)].append(name)
    groups["what is learned"].sort(key=lambda name: _order(name, recipe))
    for title, members in groups.items():
        group = parser.add_argument_group(title)
        for name in members:
            _add(group, name, recipe)


def given(options: argparse.Namespace, kind: str) -> dict[str, Any]:
    """What was written of a recipe's values, by dotted name."""
    known = names(recipe_class(kind))
    written = vars(options)
    return {name: written[name] for name in known if written.get(name) is not None}


def without_underscores(arguments: Sequence[str]) -> list[str]:
    """`--batch_size` as `--batch-size`: both are what people type."""
    found = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if option.startswith("--"):
            option = option.replace("_", "-")
        found.append(option + equals + value)
    return found


def unknown(parser: argparse.ArgumentParser, extra: Sequence[str]) -> str:
    """What to say about arguments that a parser does not know."""
    word = next((each for each in extra if each.startswith("-")), extra[0])
    option = word.partition("=")[0]
    near = difflib.get_close_matches(option, parser._option_string_actions, n=1, cutoff=0.5)
    return f"{parser.prog} has no {option}." + (f" Did you mean {near[0]}?" if near else "")


def _add(group: Any, name: str, recipe: type[Recipe]) -> None:
    field = _field(name, recipe)
    option = "--" + name.replace("_", "-")
    kind = field.annotation
    text = (field.description or "").replace("\n", " ").replace("%", "%%").replace("`", "")
    if field.is_required():
        text += " (needed)"
    elif field.default_factory is None and field.default not in ("", (), None):
        text += f" ({str(field.default).lower() if kind is bool else field.default})"
    common = {"dest": name, "default": None, "help": text}
    if kind is bool:
        group.add_argument(option, action=argparse.BooleanOptionalAction, **common)
    else:
        group.add_argument(option, metavar=_metavar(kind), **common)


def _field(name: str, recipe: type[Recipe]) -> Any:
    table, _, key = name.rpartition(".")
    if not table:
        return recipe.model_fields[name]
    inner: Any = recipe.model_fields[table].annotation
    return inner.model_fields[key]


def _group(name: str, recipe: type[Recipe]) -> str:
    common = {**Recipe.model_fields, **TrainingRecipe.model_fields}
    if name in FIRST or (name not in common and "." not in name):
        return "what is learned"
    if name in DATA:
        return "the data"
    return "the adapter" if "." in name or name in ADAPTER else "how it is trained"


def _order(name: str, recipe: type[Recipe]) -> tuple[bool, int]:
    """What is needed comes first, then what is read first."""
    place = FIRST.index(name) if name in FIRST else len(FIRST)
    return not recipe.model_fields[name].is_required(), place


def _metavar(kind: Any) -> str:
    if "Literal" in str(get_origin(kind)):
        return "|".join(map(str, get_args(kind)))
    if kind is int:
        return "N"
    if kind is float:
        return "X"
    return "VALUE" if kind is not str else "TEXT"
