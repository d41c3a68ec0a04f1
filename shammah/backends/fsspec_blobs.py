"""A `BlobStore` on any file system that fsspec speaks: S3, other clouds, SFTP, memory.

fsspec finds the file system by the URL's protocol; most need a package of their own beside it.
Knows URLs and bytes, no credentials: those are the file system's own business.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any, TypeVar

from shammah.errors import BlobError
from shammah.ports.blob_store import CHUNK, check_blob_name

Result = TypeVar("Result")


class FsspecBlobs:
    """The port on a URL such as `s3://bucket/folder`.

    Args:
        url: the store's root; a bucket must be there already.
        options: what the file system takes beside the URL, such as `endpoint_url` or `key`.

    Raises:
        BlobError: no file system of that protocol is installed, or it does not start.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self._url = url.rstrip("/")
        try:
            import fsspec

            self._files, root = fsspec.core.url_to_fs(url, **options)
        except Exception as error:  # each file system has errors of its own
            raise BlobError(
                f"it cannot be opened: {error}",
                backend=self.name,
                hint="`pip install shammah[remote]` brings S3; other protocols need the package "
                "that fsspec names for them.",
            ) from error
        self._root = str(root).rstrip("/")
        self._made: set[str] = set()

    @property
    def name(self) -> str:
        return self._url

    async def read(self, name: str) -> bytes:
        """The port's `read`."""
        path = self._path(name)
        data: bytes = await self._ask(name, lambda: self._files.cat_file(path))
        return data

    async def stream(self, name: str, *, chunk: int = CHUNK) -> AsyncIterator[bytes]:
        """The port's `stream`."""
        path = self._path(name)
        file = await self._ask(name, lambda: self._files.open(path, "rb", block_size=chunk))
        try:
            while data := await self._ask(name, lambda: file.read(chunk)):
                yield data
        finally:
            await asyncio.to_thread(file.close)

    async def write(self, name: str, content: bytes | AsyncIterable[bytes]) -> None:
        """The port's `write`: what was written comes to its name by a commit at the end.

        Object stores, SFTP and SMB commit; `memory://` shows each piece at once.
        """
        path = self._path(name)
        file = await self._ask(name, lambda: self._create(path))
        try:
            if isinstance(content, bytes):
                await self._ask(name, lambda: file.write(content))
            else:
                async for data in content:
                    await self._ask(name, lambda data=data: file.write(data))  # type: ignore[misc]
            await self._ask(name, lambda: _commit(file))
        except BaseException:
            await asyncio.to_thread(_discard, file)
            raise

    async def exists(self, name: str) -> bool:
        """The port's `exists`."""
        path = self._path(name)
        found: bool = await self._ask(name, lambda: self._files.isfile(path))
        return found

    async def list(self, folder: str = "") -> tuple[str, ...]:
        """The port's `list`."""
        start = self._path(folder) if folder else self._root
        found = await self._ask(folder, lambda: self._files.find(start))
        return tuple(sorted(path.removeprefix(self._root).lstrip("/") for path in found))

    async def delete(self, name: str) -> None:
        """The port's `delete`."""
        path = self._path(name)

        def remove() -> None:
            # An object store says nothing of one that is not there.
            if not self._files.isfile(path):
                raise FileNotFoundError(path)
            self._files.rm_file(path)

        await self._ask(name, remove)

    def _create(self, path: str) -> Any:
        folder = path.rpartition("/")[0]
        if folder not in self._made:
            # Where folders are real they must be there; a bucket is not made for a slip of the pen.
            top = "/".join(path.split("/")[: 2 if path.startswith("/") else 1])
            with contextlib.suppress(Exception):  # what is wrong shows in the writing itself
                if self._files.exists(top):
                    self._files.makedirs(folder, exist_ok=True)
                self._made.add(folder)
        return self._files.open(path, "wb", autocommit=False)

    def _path(self, name: str) -> str:
        return f"{self._root}/{check_blob_name(name, backend=self.name)}"

    async def _ask(self, name: str, call: Callable[[], Result]) -> Result:
        """The call on a thread; its errors as the port's."""

        def fresh() -> Result:
            self._files.invalidate_cache()  # others write there too
            return call()

        try:
            return await asyncio.to_thread(fresh)
        except FileNotFoundError as error:
            raise BlobError(f"there is no blob {name!r}.", backend=self.name) from error
        except Exception as error:
            raise BlobError(
                f"{name or 'the store'}: {type(error).__name__}: {error}",
                backend=self.name,
                hint="Check the address, the credentials and the connection.",
            ) from error


def _commit(file: Any) -> None:
    file.close()
    file.commit()


def _discard(file: Any) -> None:
    with contextlib.suppress(Exception):
        file.close()
    with contextlib.suppress(Exception):
        file.discard()
