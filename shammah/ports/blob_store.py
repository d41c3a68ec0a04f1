"""Bytes under names: files in a folder, objects in a bucket.

Knows names and bytes, not what they mean or where they lie.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from typing import Protocol

from shammah.errors import BlobError

CHUNK = 1 << 20
"""Bytes of a chunk, unless another size is asked for."""


class BlobStore(Protocol):
    """Something that keeps bytes under names.

    A name is a path inside the store: parts joined by `/`, none of them empty, `.` or `..`. A name
    that is not there is told of as a `BlobError` whose cause is a `FileNotFoundError`.
    """

    @property
    def name(self) -> str:
        """Where the store is, in a line."""
        ...

    async def read(self, name: str) -> bytes:
        """All bytes of a blob.

        Raises:
            BlobError: it is not there or cannot be read.
        """
        ...

    def stream(self, name: str, *, chunk: int = CHUNK) -> AsyncIterator[bytes]:
        """The bytes of a blob in pieces of at most `chunk`, so that its size costs no memory.

        Raises:
            BlobError: while it is read, as `read`.
        """
        ...

    async def write(self, name: str, content: bytes | AsyncIterable[bytes]) -> None:
        """Keep these bytes under a name, in place of what was there.

        Whole or not at all: until all of it is written, readers see what was there before.

        Raises:
            BlobError: it cannot be written.
        """
        ...

    async def exists(self, name: str) -> bool:
        """Whether there are bytes under a name.

        Raises:
            BlobError: the store cannot be asked.
        """
        ...

    async def list(self, folder: str = "") -> tuple[str, ...]:
        """The names in a folder and in those inside it, sorted; all of them without a folder.

        Raises:
            BlobError: the store cannot be asked.
        """
        ...

    async def delete(self, name: str) -> None:
        """Forget the bytes under a name.

        Raises:
            BlobError: they are not there or cannot be removed.
        """
        ...


def check_blob_name(name: str, *, backend: str) -> str:
    """The name, if it stays inside the store.

    Raises:
        BlobError: it is empty, absolute, or has parts that lead elsewhere.
    """
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or any(c in name for c in "\\:\0"):
        raise BlobError(
            f"{name!r} is not the name of a blob.",
            backend=backend,
            hint="Parts joined by /, none of them empty, . or .., and no backslash or colon.",
        )
    return name
