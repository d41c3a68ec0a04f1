"""What every command begins with: places, settings, the log, the stores.

The chat imports this before its prompt is drawn, so settings and stores are imported on use.
"""

from __future__ import annotations

import contextlib
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shammah.errors import ConfigError
from shammah.paths import Paths

if TYPE_CHECKING:
    from shammah.assistant.workspace import Workspace
    from shammah.settings import Settings


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
        **log_changes(options),
    }


def log_changes(options: Namespace) -> dict[str, Any]:
    """The setting that `--log-level` stands for."""
    return {"logging.level": options.log_level}


def start_log(paths: Paths, settings: Settings | None = None) -> None:
    """Write what happens and what goes wrong to the log file, as the settings say; None is for
    before they are read."""
    from shammah.feedback.secrets import redacted
    from shammah.tracking.logs import start_logging

    chosen = {} if settings is None else settings.logging.model_dump()
    start_logging(paths.log, **chosen, redact=redacted)


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
    settings = settings_of(paths, {**(changes or {}), **log_changes(options)})
    start_log(paths, settings)
    from shammah.assistant.workspace import Workspace

    workspace = Workspace(settings, paths)
    try:
        yield workspace
    finally:
        workspace.close()
