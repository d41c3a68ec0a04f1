"""The library: every adapter there is, in one folder, each a weights file and a JSON file.

An adapter is there when its JSON file is: the weights are written first, so that a process that
dies in between leaves nothing that is listed. Does not import torch.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from shammah.adapters.activations import Activations
from shammah.adapters.header import SUFFIX, check_file
from shammah.adapters.metadata import AdapterMetadata
from shammah.adapters.validate import sha256_of
from shammah.errors import (
    AdapterError,
    AdapterExistsError,
    AdapterInvalidError,
    AdapterNotFoundError,
    ShammahError,
)
from shammah.files import private_folder, storage_error, sync, write_atomic
from shammah.storage.database import Database

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter of the library. `metadata` is None where `problem` says what is wrong."""

    name: str
    path: Path
    metadata: AdapterMetadata | None
    size: int
    problem: str | None = None

    def require_metadata(self) -> AdapterMetadata:
        """Its metadata.

        Raises:
            AdapterInvalidError: it is broken.
        """
        if self.metadata is None:
            raise AdapterInvalidError(
                f"{self.name} cannot be used: {self.problem}",
                hint=f"Delete it with /adapters delete {self.name}",
            )
        return self.metadata


class AdapterLibrary:
    """The adapters of one data folder, and which of them are active."""

    def __init__(self, folder: Path, database: Database) -> None:
        self.folder = private_folder(folder)
        self._activations = Activations(database)

    # --- looking ----------------------------------------------------------------------------

    def list(self) -> list[Adapter]:
        """Every adapter, the newest first; broken ones carry their problem. Reads no weights."""
        found = [self._open(path.stem) for path in self.folder.glob("*.json") if _named(path)]
        return sorted(found, key=_age, reverse=True)

    def get(self, name: str) -> Adapter:
        """One adapter by its name, with or without `.safetensors`.

        Raises:
            AdapterNotFoundError: it is not in the library.
            AdapterInvalidError: the name leads out of the library.
        """
        stem = self._stem(name)
        if not self._json(stem).is_file():
            names = [path.stem for path in self.folder.glob("*.json") if _named(path)]
            from shammah.settings import nearest

            raise AdapterNotFoundError(
                f"There is no adapter {stem!r}.",
                hint=nearest(stem, names) or "`/adapters list` shows what there is.",
            )
        return self._open(stem)

    def active(self, fingerprint: str) -> str | None:
        """The active adapter of a base model; None where the base model answers alone."""
        return self._activations.active(fingerprint)

    # --- changing ---------------------------------------------------------------------------

    def publish(self, weights: Path, metadata: AdapterMetadata) -> Adapter:
        """Copy a weights file into the library under a new name, with its metadata.

        The name is made of `metadata.created_at`; checksum, tensors and parameters are taken from
        the file itself.

        Raises:
            AdapterInvalidError: it is not a whole safetensors file.
            StorageError: the disk is full; the library is as it was.
        """
        entries = check_file(weights)
        stem = self._reserve(metadata.created_at)
        path = self._weights(stem)
        try:
            write_atomic(path, lambda temporary: shutil.copyfile(weights, temporary))
            complete = metadata.model_copy(
                update={
                    "name": stem,
                    "sha256": sha256_of(path),
                    "tensors": len(entries),
                    "parameters": sum(entry.parameters for entry in entries.values()),
                }
            )
            write_atomic(self._json(stem), complete.to_json())
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return self._open(stem)

    def activate(self, fingerprint: str, name: str | None) -> None:
        """Make an adapter the active one of a base model (None: the base model answers alone).

        Raises:
            AdapterNotFoundError, AdapterInvalidError: it cannot be used.
        """
        if name is not None:
            adapter = self.get(name)
            adapter.require_metadata()
            name = adapter.name
        self._activations.activate(fingerprint, name)

    def rollback(self, fingerprint: str) -> str | None:
        """Go back to what was active before; its name, None for the base model.

        Raises:
            AdapterError: nothing was active before.
        """
        return self._activations.rollback(fingerprint, lambda name: self._json(name).is_file())

    def rename(self, old: str, new: str) -> Adapter:
        """Give an adapter another name; where it is active it stays so.

        Raises:
            AdapterNotFoundError, AdapterExistsError: no such adapter; the name is taken.
            AdapterError: the name is not fit for a file.
        """
        adapter = self.get(old)
        metadata = adapter.require_metadata()
        stem = new.removesuffix(SUFFIX)
        if not NAME.fullmatch(stem):
            raise AdapterError(
                f"{new!r} is not a name for an adapter.",
                hint="Use letters, digits, '.', '_' and '-', beginning with a letter or digit.",
            )
        try:
            # Reserved first, so that two renames to one name do not meet.
            os.close(os.open(self._weights(stem), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError as error:
            raise AdapterExistsError(f"There is an adapter {stem!r} already.") from error
        except OSError as error:
            raise storage_error(error, self._weights(stem)) from error
        try:
            write_atomic(
                self._weights(stem), lambda temporary: shutil.copyfile(adapter.path, temporary)
            )
            renamed = metadata.model_copy(update={"name": stem})
            write_atomic(self._json(stem), renamed.to_json())
        except BaseException:
            self._weights(stem).unlink(missing_ok=True)
            raise
        self._activations.rename(adapter.name, stem)
        self._remove(adapter.name)
        return self._open(stem)

    def delete(self, name: str) -> None:
        """Remove an adapter.

        Raises:
            AdapterNotFoundError: it is not there.
            AdapterError: it is active.
        """
        adapter = self.get(name)
        if self._activations.is_active(adapter.name):
            raise AdapterError(
                f"{adapter.name} is active and was not deleted.",
                hint="Load another adapter first, or /adapters unload.",
            )
        self._remove(adapter.name)

    # --- inside -----------------------------------------------------------------------------

    def _open(self, stem: str) -> Adapter:
        path = self._weights(stem)
        try:
            size = path.stat().st_size
        except OSError:
            return Adapter(stem, path, None, 0, f"its weights {path.name} are missing.")
        try:
            metadata = AdapterMetadata.read(self._json(stem))
        except AdapterInvalidError as error:
            return Adapter(stem, path, None, size, error.message)
        # A file that was renamed by hand goes by the name it has.
        return Adapter(stem, path, metadata.model_copy(update={"name": stem}), size)

    def _reserve(self, moment: datetime) -> str:
        """A name that nobody has, also no other process: its empty weights file is made here."""
        number = 1
        while True:
            stem = stamp(moment) + (f"_{number}" if number > 1 else "")
            try:
                path = self._weights(stem)
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            except FileExistsError:
                number += 1
            except OSError as error:
                raise storage_error(error, self._weights(stem)) from error
            else:
                return stem

    def _remove(self, stem: str) -> None:
        # The JSON file first: without it the adapter is not there any more.
        try:
            self._json(stem).unlink(missing_ok=True)
            self._weights(stem).unlink(missing_ok=True)
            sync(self.folder)
        except OSError as error:
            raise storage_error(error, self._weights(stem)) from error

    def _stem(self, name: str) -> str:
        path = Path(name)
        if path.is_absolute() or len(path.parts) > 1:
            if path.expanduser().resolve().parent != self.folder.resolve():
                raise AdapterInvalidError(
                    f"{name!r} lies outside the library.",
                    hint="`shammah adapters import FOLDER` takes an adapter in.",
                )
            name = path.name
        stem = name.removesuffix(SUFFIX)
        if not NAME.fullmatch(stem):
            raise AdapterInvalidError(
                f"{name!r} is not the name of an adapter.",
                hint="`/adapters list` shows what there is.",
            )
        return stem

    def _weights(self, stem: str) -> Path:
        return self.folder / f"{stem}{SUFFIX}"

    def _json(self, stem: str) -> Path:
        return self.folder / f"{stem}.json"


def stamp(moment: datetime) -> str:
    """`lora_adapter_YYYYMMDD_HHMMSS` in local time."""
    return moment.astimezone().strftime("lora_adapter_%Y%m%d_%H%M%S")


def _named(path: Path) -> bool:
    return NAME.fullmatch(path.stem) is not None


def _age(adapter: Adapter) -> tuple[float, str]:
    try:
        created = adapter.metadata.created_at.timestamp() if adapter.metadata else None
    except ShammahError:
        created = None
    if created is None:
        try:
            created = adapter.path.with_suffix(".json").stat().st_mtime
        except OSError:
            created = 0.0
    return created, adapter.name
