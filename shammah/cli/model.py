"""`shammah model`."""

from __future__ import annotations

from argparse import Namespace

from shammah.cli.context import paths_of, settings_of, start_log
from shammah.cli.output import coloured, emit, say
from shammah.errors import ModelNotFoundError
from shammah.repl.text import pairs


def info(options: Namespace) -> int:
    """Load the model and describe it."""
    paths = paths_of(options)
    start_log(paths)
    settings = settings_of(paths, {"model.name": getattr(options, "name", None)})
    from shammah.models.describe import describe
    from shammah.models.load import load_base_model
    from shammah.training.lora import trainable_parameters

    base = load_base_model(settings.model)
    description = describe(base, trainable_parameters(base.model, settings.lora))
    if options.json:
        emit(description.to_dict())
    else:
        say(pairs(description.rows(), coloured=coloured()))
    return 0


def card(options: Namespace) -> int:
    """What the model's makers say of it: the README of its folder."""
    settings = settings_of(paths_of(options), {"model.name": getattr(options, "name", None)})
    from shammah.models.source import find_model

    name = settings.model.name
    source = find_model(name)
    file = source.path / "README.md" if source.path is not None else None
    if file is None or not file.is_file():
        raise ModelNotFoundError(
            f"{name} has no model card here.",
            hint="Only a model in a folder has one, as README.md; the Hub shows the others.",
        )
    text = file.read_text("utf-8", "replace")
    if options.json:
        emit({"name": name, "path": file, "card": text})
    else:
        say(text.rstrip("\n"))
    return 0
