"""`shammah config`."""

from __future__ import annotations

from argparse import Namespace

from shammah.cli.context import paths_of, settings_of
from shammah.cli.output import coloured, emit, say, tell
from shammah.errors import UsageError
from shammah.repl.settings_commands import value_text
from shammah.repl.text import pairs
from shammah.settings_file import set_value


def show(options: Namespace) -> int:
    section = getattr(options, "section", "")
    values = {
        key: value
        for key, value in settings_of(paths_of(options)).flat().items()
        if key.startswith(section)
    }
    if not values:
        raise UsageError(f"No setting begins with {section!r}.")
    if options.json:
        emit(values)
    else:
        lines = [(key, value_text(value)) for key, value in values.items()]
        say(pairs(lines, coloured=coloured()))
    return 0


def get(options: Namespace) -> int:
    value = settings_of(paths_of(options)).get(options.key)
    if options.json:
        emit(value)
    else:
        say(value if isinstance(value, str) else value_text(value))
    return 0


def change(options: Namespace) -> int:
    paths = paths_of(options)
    _, value = set_value(paths.config_file, options.key, options.value)
    if options.json:
        emit({options.key: value})
    else:
        say(f"{options.key} = {value_text(value)}")
        tell(f"Written to {paths.config_file}; a running chat reads it at its next start.")
    return 0


def path(options: Namespace) -> int:
    file = paths_of(options).config_file
    if options.json:
        emit({"path": str(file), "exists": file.is_file()})
    else:
        say(str(file))
    return 0
