"""Signs that processes hold up for each other: a lock on a file of its own, in a folder they share.

The kernel drops the lock when its process dies, so a sign never outlives its holder. Knows nothing
of what a sign means.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from shammah.errors import StorageError
from shammah.files import private_folder

_NUMBER = itertools.count()


@contextmanager
def sign(folder: Path, text: str = "") -> Iterator[None]:
    """Hold up a sign while inside. Never fails: where it cannot be written, nobody sees it.

    Args:
        text: what it says; fit for the name of a file.
    """
    path = folder / f"{os.getpid()}-{next(_NUMBER)}{'-' * bool(text)}{text}"
    lock = FileLock(path, mode=0o600, thread_local=False)
    with suppress(StorageError, OSError, Timeout):
        private_folder(folder)
        # Somebody who probes the file may hold it for an instant.
        lock.acquire(timeout=0.5, poll_interval=0.005)
    try:
        yield
    finally:
        if lock.is_locked:
            # Removed while still held, or a probe might find it free and take it for a dead one's.
            with suppress(OSError):
                path.unlink()
        lock.release()


def signs(folder: Path) -> Iterator[str]:
    """What the signs say that are held up now, by any process. Those of the dead are cleared away.
    Costs some 10 microseconds where there is none."""
    try:
        paths = list(folder.iterdir())
    except OSError:
        return
    for path in paths:
        lock = FileLock(path, mode=0o600, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield "-".join(path.name.split("-")[2:])
            continue
        except OSError:
            continue
        try:
            path.unlink(missing_ok=True)
        except OSError:
            pass
        finally:
            lock.release()
