"""A `BlobStore` in a folder: one file a blob, private to its owner.

Files are replaced whole. Nothing outside the folder is read or written, also not through a link
that lies in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO

from shammah.errors import BlobError, StorageError
from shammah.files import replacing, storage_error, sync
from shammah.ports.blob_store import CHUNK, check_blob_name


class FileBlobs:
    """The port on the file system.

    Args:
        folder: where the blobs lie; made (0700) by the first write.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder).expanduser().absolute()

    @property
    def name(self) -> str:
        return str(self._folder)

    async def read(self, name: str) -> bytes:
        """The port's `read`."""
        path = self._path(name)
        with self._told(name):
            return await asyncio.to_thread(path.read_bytes)

    async def stream(self, name: str, *, chunk: int = CHUNK) -> AsyncIterator[bytes]:
        """The port's `stream`; a blob that is replaced meanwhile is read as it was."""
        path = self._path(name)
        with self._told(name):
            file: BinaryIO = await asyncio.to_thread(path.open, "rb")
        try:
            while True:
                with self._told(name):
                    data = await asyncio.to_thread(file.read, chunk)
                if not data:
                    return
                yield data
        finally:
            file.close()

    async def write(self, name: str, content: bytes | AsyncIterable[bytes]) -> None:
        """The port's `write`: a temporary file, synced and renamed. Mode 0600."""
        path = self._path(name)
        if _temporary(path.name):
            raise BlobError(
                f"{name!r} is a name of unfinished writes.", backend=self.name, hint="Use another."
            )
        with self._told(name), replacing(path) as temporary:
            with temporary.open("wb") as file:
                if isinstance(content, bytes):
                    await asyncio.to_thread(file.write, content)
                else:
                    async for data in content:
                        await asyncio.to_thread(file.write, data)
            await asyncio.to_thread(sync, temporary)

    async def exists(self, name: str) -> bool:
        """The port's `exists`."""
        path = self._path(name)
        with self._told(name):
            return await asyncio.to_thread(path.is_file)

    async def list(self, folder: str = "") -> tuple[str, ...]:
        """The port's `list`, without the temporary files of writes that are under way."""
        start = self._path(folder) if folder else self._folder
        with self._told(folder):
            return await asyncio.to_thread(lambda: tuple(sorted(self._names(start))))

    async def delete(self, name: str) -> None:
        """The port's `delete`; folders that it leaves empty stay."""
        path = self._path(name)
        with self._told(name):
            await asyncio.to_thread(path.unlink)

    def _names(self, start: Path) -> Iterator[str]:
        for folder, _, files in os.walk(start):
            for file in files:
                path = Path(folder, file)
                if not _temporary(file) and path.is_file():
                    yield path.relative_to(self._folder).as_posix()

    def _path(self, name: str) -> Path:
        path = self._folder / check_blob_name(name, backend=self.name)
        if not path.resolve().is_relative_to(self._folder.resolve()):
            raise BlobError(
                f"{name!r} leads out of the store through a link.",
                backend=self.name,
                hint="Remove the link, or open the folder that it leads to.",
            )
        return path

    @contextlib.contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """Errors of the operating system as the port's."""
        try:
            yield
        except FileNotFoundError as error:
            raise BlobError(f"there is no blob {name!r}.", backend=self.name) from error
        except StorageError as error:
            raise BlobError(error.message, backend=self.name, hint=error.hint) from (
                error.__cause__ or error
            )
        except OSError as error:
            told = storage_error(error, self._folder / name)
            raise BlobError(told.message, backend=self.name, hint=told.hint) from error


def _temporary(file: str) -> bool:
    return file.startswith(".") and file.endswith(".tmp")
