"""Opening a file that someone else may have placed: a regular one, inside the folder it belongs to.

Knows nothing about what is in it.
"""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path

from shammah.errors import AdapterInvalidError, StorageError

DAMAGED = "It is damaged, or no adapter: bring back a copy, or delete it."


def open_regular(path: Path, folder: Path | None = None) -> BufferedReader:
    """Open a file for reading, if it is one.

    Args:
        folder: the file must lie in it, with all links followed; None allows any place.

    Raises:
        FileNotFoundError: there is nothing at the path.
        AdapterInvalidError: it lies outside the folder, a link leads out of it, or it is a folder,
            a pipe or a device.
        StorageError: it cannot be opened.
    """
    if folder is not None:
        check_inside(path, folder)
    try:
        # A pipe would otherwise wait for someone to write into it.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read: {error.strerror}.", hint="Check its permissions."
        ) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise AdapterInvalidError(
            f"{path.name} was refused (file type): it is a folder, a pipe or a device, not a file.",
            hint=DAMAGED,
        )
    return os.fdopen(handle, "rb")


def check_inside(path: Path, folder: Path) -> None:
    """Check that a path stays in a folder, with all links followed.

    Raises:
        AdapterInvalidError: it does not.
    """
    home = folder.resolve()
    if path.absolute().parent.resolve() != home:
        raise AdapterInvalidError(
            f"{path} was refused (place): it lies outside {home}.",
            hint="Take an adapter from elsewhere with `shammah adapters import FOLDER`.",
        )
    # Links in a circle make resolve() raise.
    try:
        inside = path.resolve().parent == home
    except (OSError, RuntimeError):
        inside = False
    if not inside:
        raise AdapterInvalidError(
            f"{path.name} was refused (place): it is a link that leads out of {home}.",
            hint="Put the file itself there, or delete the link.",
        )
