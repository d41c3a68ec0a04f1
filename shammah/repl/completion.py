"""What Tab offers: commands, their subcommands, adapter names, setting keys and values, files.

Everything comes from the registry of commands; nothing here waits for the assistant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from shammah.errors import ShammahError
from shammah.paths import Paths
from shammah.repl.registry import FILES, Command


class CommandCompleter(Completer):
    """Completes a line that begins with a slash.

    Args:
        commands: the registry, by name.
        paths: where adapters lie.
    """

    def __init__(self, commands: Mapping[str, Command], paths: Paths) -> None:
        self._commands = commands
        self._paths = paths
        self._files = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, blank, _ = text.partition(" ")
        if not blank:
            for command in self._commands.values():
                if command.name.startswith(name):
                    yield Completion(
                        command.name,
                        start_position=-len(name),
                        display_meta=command.summary,
                    )
            return
        found = self._commands.get(name)
        if found is None:
            return
        words = text.split(" ")
        word = words[-1]
        for offered in found.complete([w for w in words[1:-1] if w], self._paths):
            if offered == FILES:
                rest = Document(word, len(word))
                yield from self._files.get_completions(rest, event)
            elif offered.startswith(word):
                yield Completion(offered, start_position=-len(word))


def adapter_names(paths: Paths) -> list[str]:
    """Names of the adapters on disk, newest first."""
    folder: Path = paths.adapters
    return sorted((path.stem for path in folder.glob("*.safetensors")), reverse=True)


def model_names(paths: Paths) -> list[str]:
    """The embedded model and those that have a short name; none of these where they cannot be
    read, which loading one of them will tell."""
    from shammah.models.registered import RegisteredModels

    try:
        return ["embedded", *(model.name for model in RegisteredModels(paths.models_file).read())]
    except ShammahError:
        return ["embedded"]
