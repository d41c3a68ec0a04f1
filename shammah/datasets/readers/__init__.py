"""Files as rows, one format each. A reader is given a file, and where bad rows go."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from shammah.errors import DatasetError
from shammah.ports.dataset_store import BadRows, Row

BACKEND = "local files"
MAX_LINE = 64 * 2**20
"""Bytes of one line (characters of one JSON value or CSV cell) at most: a longer one is a bad row,
and is not kept in memory."""

Reader = Callable[[Path, BadRows], Iterator[Row]]


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked if its name ends in `.gz`.

    Raises:
        DatasetError: it cannot be read, here or while the block runs.
    """
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as unpacked:
                yield cast(IO[bytes], unpacked)
        else:
            with path.open("rb", buffering=1 << 18) as stream:
                yield stream
    except (OSError, EOFError) as error:
        # EOFError: a .gz that ends too early.
        why = getattr(error, "strerror", None) or error
        raise DatasetError(f"{path} cannot be read: {why}.", backend=BACKEND) from error
