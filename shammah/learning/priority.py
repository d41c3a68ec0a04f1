"""The chat has priority: a sign, seen by every process on the data folder, that an answer streams.

Each answer that streams holds a lock on a file of its own in `<data>/streaming/`; the kernel drops
the lock when its process dies, so a sign never outlives its answer. Knows nothing of workers.
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


def streaming_folder(data: Path) -> Path:
    """Where the signs are."""
    return data / "streaming"


@contextmanager
def streaming(data: Path) -> Iterator[None]:
    """While inside, training on this data folder stands still, whichever process runs it.

    Never fails: where the sign cannot be written, the answer only shares the processor.
    """
    folder = streaming_folder(data)
    path = folder / f"{os.getpid()}-{next(_NUMBER)}"
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


def somebody_streams(data: Path) -> bool:
    """Whether any process on this data folder is streaming an answer. Signs of the dead are
    cleared away. Costs some 10 microseconds where there is none."""
    try:
        paths = list(streaming_folder(data).iterdir())
    except OSError:
        return False
    for path in paths:
        lock = FileLock(path, mode=0o600, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return True
        except OSError:
            continue
        try:
            path.unlink(missing_ok=True)
        except OSError:
            pass
        finally:
            lock.release()
    return False
