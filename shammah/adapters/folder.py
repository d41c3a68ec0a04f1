"""One folder of adapters as files: `NAME.safetensors` with `NAME.json`, whole or not at all.

An adapter is there when its weights have their final name. They get it last: until then they are a
hidden `.NAME.part`, which also keeps the name for the process that writes it. A process that dies
in between leaves nothing that is listed, and the next one sweeps it away. Knows nothing of what is
in the files.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from io import BufferedReader
from pathlib import Path

from shammah.adapters.header import SUFFIX
from shammah.errors import AdapterExistsError, StorageError
from shammah.files import private_folder, storage_error, sync, write_atomic

PART = ".part"
CHUNK = 2**20
SWEEP_SECONDS = 3600.0
"""What a process left half-written this long ago it will not finish."""


class AdapterFolder:
    """The files of a library. `stem` is an adapter's name, fit for a file."""

    def __init__(self, path: Path) -> None:
        self.path = private_folder(path)

    def stems(self) -> list[str]:
        """The names that are there, in no order.

        Raises:
            StorageError: the folder cannot be read.
        """
        try:
            with os.scandir(self.path) as entries:
                return [
                    entry.name.removesuffix(SUFFIX)
                    for entry in entries
                    if entry.name.endswith(SUFFIX)
                    and not entry.name.startswith(".")
                    and not entry.is_dir(follow_symlinks=False)
                ]
        except OSError as error:
            raise StorageError(f"{self.path} cannot be read: {error.strerror}.") from error

    def stamp(self) -> frozenset[tuple[str, int, int]]:
        """Name, size and time of each file.

        Raises:
            StorageError: the folder cannot be read.
        """
        found = set()
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    # What goes while one looks has gone.
                    with suppress(FileNotFoundError):
                        about = entry.stat()
                        found.add((entry.name, about.st_size, about.st_mtime_ns))
        except OSError as error:
            raise StorageError(f"{self.path} cannot be read: {error.strerror}.") from error
        return frozenset(found)

    def lost(self) -> list[str]:
        """The names whose description is there without weights, and that nobody is writing."""
        return [
            path.stem
            for path in self.path.glob("*.json")
            if not path.name.startswith(".")
            and not os.path.lexists(self.part(path.stem))
            and not os.path.lexists(self.weights(path.stem))
        ]

    def is_there(self, stem: str) -> bool:
        path = self.weights(stem)
        return path.is_symlink() or (path.exists() and not path.is_dir())

    def weights(self, stem: str) -> Path:
        return self.path / f"{stem}{SUFFIX}"

    def metadata(self, stem: str) -> Path:
        return self.path / f"{stem}.json"

    def part(self, stem: str) -> Path:
        return self.path / f".{stem}{PART}"

    @contextmanager
    def reserved(self, stems: Iterator[str]) -> Iterator[tuple[str, Path]]:
        """The first of some names that nobody has, also no other process, with its `.part` file.

        What is not finished inside leaves nothing.

        Raises:
            AdapterExistsError: all names are taken.
        """
        for stem in stems:
            part = self.part(stem)
            try:
                os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            except FileExistsError:
                continue
            except OSError as error:
                raise storage_error(error, part) from error
            # Looked at afterwards: whoever finishes that name has the `.part` file until then.
            if not any(os.path.lexists(path) for path in (self.weights(stem), self.metadata(stem))):
                break
            part.unlink(missing_ok=True)
        else:
            raise AdapterExistsError(
                f"There is an adapter {stem!r} already.", hint="Choose another name."
            )
        try:
            yield stem, part
        finally:
            if not os.path.lexists(self.weights(stem)):
                self.metadata(stem).unlink(missing_ok=True)
            part.unlink(missing_ok=True)

    def finish(self, stem: str, metadata: str) -> None:
        """Make a reserved name an adapter: its JSON file, then its weights by one rename.

        Raises:
            StorageError: the disk is full; nothing of the adapter is listed.
        """
        write_atomic(self.metadata(stem), metadata)
        try:
            self.part(stem).rename(self.weights(stem))
            sync(self.path)
        except OSError as error:
            raise storage_error(error, self.weights(stem)) from error

    def remove(self, stem: str) -> None:
        """Remove both files.

        Raises:
            StorageError: they cannot be removed.
        """
        # One rename makes it disappear; what is left if the process dies now is swept away.
        try:
            with suppress(FileNotFoundError):
                self.weights(stem).replace(self.part(stem))
            self.metadata(stem).unlink(missing_ok=True)
            self.part(stem).unlink(missing_ok=True)
            sync(self.path)
        except OSError as error:
            raise storage_error(error, self.weights(stem)) from error

    def sweep(self) -> None:
        """Remove what processes that died have left half-written."""
        long_ago = time.time() - SWEEP_SECONDS
        for path in self.path.glob(".*"):
            if path.suffix not in (PART, ".tmp"):
                continue
            with suppress(OSError):
                if path.lstat().st_ctime > long_ago:
                    continue
                stem = path.name[1:].removesuffix(PART)
                if path.suffix == PART and not os.path.lexists(self.weights(stem)):
                    self.metadata(stem).unlink(missing_ok=True)
                path.unlink()


def stamp(moment: datetime) -> str:
    """`lora_adapter_YYYYMMDD_HHMMSS` in local time."""
    return moment.astimezone().strftime("lora_adapter_%Y%m%d_%H%M%S")


def stamps(moment: datetime) -> Iterator[str]:
    """The name of a moment, then those of the seconds after it."""
    while True:
        yield stamp(moment)
        moment += timedelta(seconds=1)


def copy(stream: BufferedReader, target: Path) -> str:
    """Copy an open file, to the disk and not only to its cache; the SHA-256 of what was copied."""
    digest = hashlib.sha256()
    try:
        with target.open("wb") as written:
            while content := stream.read(CHUNK):
                digest.update(content)
                written.write(content)
        sync(target)
    except OSError as error:
        raise storage_error(error, target) from error
    return digest.hexdigest()


def link(path: Path, part: Path) -> None:
    """Make a reserved `.part` file the same file as another, or a copy of it."""
    other = part.with_name(f"{part.name}.tmp")
    try:
        try:
            other.unlink(missing_ok=True)
            other.hardlink_to(path.resolve())
            other.replace(part)
        except OSError:
            # Not every file system has hard links.
            shutil.copyfile(path, part)
            sync(part)
    except OSError as error:
        raise storage_error(error, part) from error
    finally:
        other.unlink(missing_ok=True)
