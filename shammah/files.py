"""Files that are never half-written: private folders, atomic replacement.

Knows nothing about what is in them.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shammah.errors import StorageError


def private_folder(path: Path) -> Path:
    """Make a folder, and those above it, that only its owner can enter (0700)."""
    try:
        # One by one: `parents=True` leaves the mode of those above to the umask.
        for folder in (*reversed(path.parents), path):
            if not folder.is_dir():
                folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise storage_error(error, path) from error
    return path


def write_atomic(path: Path, content: bytes | str | Callable[[Path], object]) -> None:
    """Write a file whole or not at all: temporary name beside it, fsync, rename. Mode 0600.

    Args:
        path: the final place; its folder is made if missing.
        content: bytes, text (UTF-8), or a function that writes the temporary path it is given.

    Raises:
        StorageError: the disk is full or the folder cannot be written; `path` is as it was before.
    """
    with replacing(path) as temporary:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which it becomes when the block ends without an error.

    Raises:
        StorageError: as `write_atomic`.
    """
    private_folder(path.parent)
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o600)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except StorageError:
        raise
    except OSError as error:
        raise storage_error(error, path) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file or folder to disk (folders only where the platform allows it)."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.EACCES):
            raise
    finally:
        os.close(handle)


def storage_error(error: OSError, path: Path) -> StorageError:
    """The user's words for an operating system error at a path."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"The disk is full: {path} was not written.", hint="Free some space and try again."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(
            f"{path} cannot be written: {error.strerror}.",
            hint="Check the permissions, or set SHAMMAH_HOME to a folder of yours.",
        )
    return StorageError(f"{path}: {error.strerror or error}.")
