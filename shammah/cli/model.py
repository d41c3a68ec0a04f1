"""`shammah model`."""

from __future__ import annotations

import asyncio
import re
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from shammah.cli.context import log_changes, paths_of, settings_of, start_log
from shammah.cli.output import coloured, emit, say
from shammah.errors import UsageError
from shammah.repl.text import harmless, pairs

if TYPE_CHECKING:
    from shammah.models.describe import ModelDescription
    from shammah.models.registered import RegisteredModels
    from shammah.ports.model_registry import RegisteredModel


def info(options: Namespace) -> int:
    """Load the model and describe it."""
    description = _description(options)
    if options.json:
        emit(description.to_dict())
    else:
        say(pairs(description.rows(), coloured=coloured()))
    return 0


def card(options: Namespace) -> int:
    """The same, and what the model's makers say of it: the README of its folder."""
    description = _description(options)
    text = _readme(Path(description.path))
    if options.json:
        emit({**description.to_dict(), "card": text})
        return 0
    say(pairs(description.rows(), coloured=coloured()))
    say(f"\n{harmless(text)}" if text else "\nIts folder holds no model card (README.md).")
    return 0


def register(options: Namespace) -> int:
    """Give a model a short name."""
    from shammah.ports.model_registry import RegisteredModel

    if options.renderer is not None:
        from shammah.renderers.registry import RENDERERS

        if options.renderer not in RENDERERS and ":" not in options.renderer:
            raise UsageError(
                f"There is no renderer {options.renderer!r}.",
                hint=f"One of {', '.join(RENDERERS)}.",
            )
    registry = _registry(options)
    model = RegisteredModel(
        options.name, options.source, options.revision, options.renderer, options.notes
    )
    asyncio.run(registry.register(model, replace=options.replace))
    kept = asyncio.run(registry.get(options.name))
    if options.json:
        emit(asdict(kept))
    else:
        say(f"{kept.name} is {harmless(kept.source)}. `--model {kept.name}` uses it.")
    return 0


def models(options: Namespace) -> int:
    """The models that have a short name."""
    found = asyncio.run(_registry(options).list())
    if options.json:
        emit([asdict(model) for model in found])
    elif not found:
        say("No model has a short name yet: `shammah model register NAME SOURCE`.")
    else:
        say(pairs([(model.name, _said(model)) for model in found], coloured=coloured()))
    return 0


def forget(options: Namespace) -> int:
    """Take a short name back."""
    asyncio.run(_registry(options).forget(options.name))
    if options.json:
        emit({"forgotten": options.name})
    else:
        say(f"{options.name} is no longer the name of a model. Its files stay.")
    return 0


def _registry(options: Namespace) -> RegisteredModels:
    from shammah.models.registered import RegisteredModels

    return RegisteredModels(paths_of(options).models_file)


def _said(model: RegisteredModel) -> str:
    parts = [model.source]
    parts += [f"at {model.revision}"] if model.revision else []
    parts += [f"spoken to by {model.renderer}"] if model.renderer else []
    parts += [f"({model.notes})"] if model.notes else []
    return harmless(" ".join(parts))


def _description(options: Namespace) -> ModelDescription:
    paths = paths_of(options)
    named = {"model.name": getattr(options, "name", None)}
    settings = settings_of(paths, {**named, **log_changes(options)})
    start_log(paths, settings)
    from shammah.models.describe import describe
    from shammah.models.load import load_base_model
    from shammah.training.lora import trainable_parameters

    base = load_base_model(settings.model)
    return describe(base, trainable_parameters(base.model, settings.lora))


def _readme(folder: Path) -> str | None:
    """The card without its front matter, which is for machines; None if there is none."""
    try:
        text = (folder / "README.md").read_text("utf-8", "replace")
    except OSError:
        return None
    return re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL).strip()
