"""What every command begins with: places, settings, the log, the stores.

The chat imports this before its prompt is drawn, so settings and stores are imported on use.
"""

from __future__ import annotations

import contextlib
import logging
import os
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shammah.errors import ConfigError, ShammahError
from shammah.files import private_folder
from shammah.paths import Paths

if TYPE_CHECKING:
    from shammah.assistant.workspace import Workspace
    from shammah.settings import Settings

LOG_BYTES = 1_000_000


def paths_of(options: Namespace) -> Paths:
    """Where data and settings are.

    Raises:
        ConfigError: `--config` names a file that is not there.
    """
    paths = Paths.default()
    if options.config is None:
        return paths
    file = Path(options.config).expanduser().absolute()
    if not file.is_file():
        raise ConfigError(f"There is no settings file {file}.")
    return replace(paths, settings_file=file)


def settings_of(paths: Paths, changes: dict[str, Any] | None = None) -> Settings:
    """The settings of the file, with what the command line says instead.

    Args:
        changes: dotted key -> value; None leaves the file's.

    Raises:
        ConfigError: the file or an option is not valid.
    """
    from shammah.settings import Settings
    from shammah.settings_file import load

    settings = load(paths.config_file)
    given = {key: value for key, value in (changes or {}).items() if value is not None}
    if not given:
        return settings
    values = settings.model_dump()
    for key, value in given.items():
        section, name = key.split(".")
        values[section][name] = value
    return Settings.from_dict(values, source="the command line")


def model_changes(options: Namespace) -> dict[str, Any]:
    """The settings that `--model`, `--renderer`, `--device` and `--dtype` stand for."""
    return {
        "model.name": options.model,
        "model.renderer": options.renderer,
        "model.device": options.device,
        "model.dtype": options.dtype,
    }


def start_log(paths: Paths) -> None:
    """Write what goes wrong to the log file; never what is said in a conversation.

    Where the file cannot be written there is no log, and the command goes on.
    """
    from logging.handlers import RotatingFileHandler

    logging.captureWarnings(True)
    root = logging.getLogger()
    try:
        private_folder(paths.log.parent)
        os.close(os.open(paths.log, os.O_CREAT | os.O_APPEND, 0o600))
        handler: logging.Handler = RotatingFileHandler(
            paths.log, maxBytes=LOG_BYTES, backupCount=2, encoding="utf-8"
        )
    except (OSError, ShammahError):
        handler = logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("shammah").setLevel(logging.INFO)


def log_file() -> Path:
    """Where the log is."""
    return Paths.default().log


@contextlib.contextmanager
def open_workspace(
    options: Namespace, changes: dict[str, Any] | None = None
) -> Iterator[Workspace]:
    """The stores, for commands that need no model.

    Args:
        changes: settings that the command line gives, as `settings_of` takes them.

    Raises:
        ConfigError: the settings are not valid.
        StorageError: the stores cannot be opened.
    """
    paths = paths_of(options)
    start_log(paths)
    settings = settings_of(paths, changes)
    from shammah.assistant.workspace import Workspace

    workspace = Workspace(settings, paths)
    try:
        yield workspace
    finally:
        workspace.close()
