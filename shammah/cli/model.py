"""`shammah model`."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from shammah.cli.context import paths_of, settings_of, start_log
from shammah.cli.output import coloured, emit, say
from shammah.repl.text import harmless, pairs

if TYPE_CHECKING:
    from shammah.models.describe import ModelDescription


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


def _description(options: Namespace) -> ModelDescription:
    paths = paths_of(options)
    start_log(paths)
    settings = settings_of(paths, {"model.name": getattr(options, "name", None)})
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
