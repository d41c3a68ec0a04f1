"""The lines typed before, kept across restarts in a file only its owner can read.

The format is prompt_toolkit's: it keeps entries of several lines whole. A history that cannot be
read or written costs the history, never the chat.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit.history import FileHistory

from shammah.errors import StorageError
from shammah.files import private_folder


class PrivateHistory(FileHistory):
    """Entries newest first; a repeated line is kept once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__(str(path))

    def load_history_strings(self) -> Iterable[str]:
        try:
            entries = list(super().load_history_strings())
        except OSError:
            return []
        return dict.fromkeys(entries)

    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError, StorageError):
            private_folder(self._path.parent)
            os.close(os.open(self._path, os.O_CREAT | os.O_APPEND, 0o600))
            super().store_string(string)
