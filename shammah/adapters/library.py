"""The library: every adapter there is, in one folder, each a weights file and a JSON file.

How they are written is the folder's business. Does not import torch.
"""

from __future__ import annotations

import builtins
import re
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

from shammah.adapters.activations import Activation, Activations
from shammah.adapters.folder import AdapterFolder, copy, link, stamps
from shammah.adapters.header import SUFFIX, Header, open_checked, refusal
from shammah.adapters.metadata import AdapterMetadata
from shammah.adapters.regular_file import check_inside
from shammah.adapters.validate import lora_pairs
from shammah.errors import (
    AdapterError,
    AdapterExistsError,
    AdapterInvalidError,
    AdapterNotFoundError,
    ShammahError,
)
from shammah.files import write_atomic
from shammah.settings import domain_name
from shammah.signs import sign, signs
from shammah.storage.database import Database
from shammah.tracking.telemetry import emit

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
PINS = ".in-use"
"""The folder, inside the library's, of the signs for adapters in use."""
RESERVED = {"none"}
"""`--adapter none` is the base model."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter of the library; `problem` says what is wrong with a broken one. `size` is that of
    the weights, in bytes."""

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
        if self.metadata is None or self.problem is not None:
            raise AdapterInvalidError(
                f"{self.name} cannot be used: {self.problem}",
                hint=f"Delete it with /adapters delete {self.name}",
            )
        return self.metadata


class AdapterLibrary:
    """The adapters of one data folder, and which of them are active."""

    def __init__(self, folder: Path, database: Database) -> None:
        self.folder = folder
        self._files = AdapterFolder(folder)
        self._activations = Activations(database)

    # --- looking ----------------------------------------------------------------------------

    def list(self) -> list[Adapter]:
        """Every adapter, the newest first; broken ones carry their problem. Reads no weights.

        Raises:
            StorageError: the folder cannot be read.
        """
        found = [self._open(stem) for stem in self._files.stems()]
        return sorted(found, key=_age, reverse=True)

    def get(self, name: str) -> Adapter:
        """One adapter by its name, with or without `.safetensors`, or by its path in the library.

        Raises:
            AdapterNotFoundError: it is not in the library.
            AdapterInvalidError: the name leads out of the library, or is none.
        """
        stem = self._stem(name)
        if not self._files.is_there(stem):
            from shammah.settings import nearest

            raise AdapterNotFoundError(
                f"There is no adapter {stem!r}.",
                hint=nearest(stem, self._files.stems()) or "`/adapters list` shows what there is.",
            )
        return self._open(stem)

    def stamp(self) -> object:
        """Something that is another one whenever an adapter was added, changed or removed; cheap,
        and reads no file.

        Raises:
            StorageError: the folder cannot be read.
        """
        return self._files.stamp()

    def lost(self) -> builtins.list[AdapterMetadata]:
        """What is known of adapters whose weights are gone though nobody deleted them."""
        found = []
        for stem in self._files.lost():
            with suppress(ShammahError):
                about = AdapterMetadata.read(self._files.metadata(stem), self.folder)
                found.append(about.model_copy(update={"name": stem}))
        return found

    def active(self, fingerprint: str) -> str | None:
        """The active adapter of a base model; None where the base model answers alone."""
        return self._activations.active(fingerprint)

    def history(self, fingerprint: str) -> builtins.list[Activation]:
        """Every change of a base model's active adapter, the newest first."""
        return self._activations.history(fingerprint)

    def previous(self, fingerprint: str) -> str | None:
        """The adapter that `rollback` would go back to; None where that is the base model, or
        where there is nothing."""
        return self._activations.previous(fingerprint, self._usable)

    def pin(self, name: str) -> AbstractContextManager[None]:
        """While inside, every process sees that an adapter is in use that need not be active."""
        return sign(self.folder / PINS, self._stem(name))

    def pinned(self) -> set[str]:
        """The adapters that some process has pinned."""
        return set(signs(self.folder / PINS))

    # --- changing ---------------------------------------------------------------------------

    def publish(self, weights: Path, metadata: AdapterMetadata, name: str | None = None) -> Adapter:
        """Copy a weights file into the library under a new name, with its metadata.

        The name is made of `metadata.created_at` where none is given; tensors and parameters are
        counted in the file, and so is the checksum where the metadata have none.

        Raises:
            AdapterExistsError, AdapterError: the name that was given is taken, or none.
            AdapterInvalidError: it is not a sound file of LoRA matrices, or not the one that the
                metadata were made for.
            StorageError: the disk is full or the library cannot be written; it is as it was.
        """
        self._files.sweep()
        names = stamps(metadata.created_at) if name is None else iter([self.check_name(name)])
        stream, header = open_checked(weights)
        with stream, self._files.reserved(names) as (stem, part):
            _check_rank(weights, header, metadata)
            sha256 = copy(stream, part)
            if metadata.sha256 not in ("", sha256):
                raise refusal(weights, "sha256", "it is not the file that its description tells of")
            complete = metadata.model_copy(
                update={
                    "name": stem,
                    "sha256": sha256,
                    "tensors": len(header.tensors),
                    "parameters": header.parameters,
                }
            )
            self._files.finish(stem, complete.to_json())
        adapter = self._open(stem)
        emit(
            "adapter.published",
            {
                "bytes": adapter.size,
                "tensors": len(header.tensors),
                "parameters": header.parameters,
            },
            {"adapter": stem, "origin": metadata.origin, "parent": metadata.parent},
        )
        return adapter

    def activate(self, fingerprint: str, name: str | None) -> None:
        """Make an adapter the active one of a base model (None: the base model answers alone).

        Raises:
            AdapterNotFoundError, AdapterInvalidError: it cannot be used, or was made for another
                base model.
        """
        if name is None:
            self._activations.activate(fingerprint, None)
            emit("adapter.activated", metadata={"adapter": None, "base": fingerprint})
            return
        stem = self._stem(name)

        def check() -> None:
            metadata = self.get(stem).require_metadata()
            if metadata.base_fingerprint != fingerprint:
                raise AdapterInvalidError(
                    f"{stem} was made for {metadata.base_model}, not for this base model.",
                    hint="Load its base model first.",
                )

        self._activations.activate(fingerprint, stem, check)
        emit("adapter.activated", metadata={"adapter": stem, "base": fingerprint})

    def rollback(self, fingerprint: str) -> str | None:
        """Go back to what was active before; its name, None for the base model.

        Adapters that are gone or broken are passed over; going back twice goes back two steps.

        Raises:
            AdapterError: nothing was active before.
        """
        name = self._activations.rollback(fingerprint, self._usable)
        emit("adapter.activated", metadata={"adapter": name, "base": fingerprint})
        return name

    def rename(self, old: str, new: str) -> Adapter:
        """Give an adapter another name, also in what is stored: where it is active it stays so.

        Raises:
            AdapterNotFoundError, AdapterInvalidError: no such adapter, or a broken one.
            AdapterExistsError: the name is taken, or was that of a deleted adapter.
            AdapterError: the name is not fit for a file.
        """
        adapter = self.get(old)
        metadata = adapter.require_metadata()
        stem = _fit(new)
        if stem == adapter.name:
            return adapter
        # Both names are there until the database knows the new one: a process that dies in between
        # leaves the adapter twice, but never an active one that is gone.
        with self._files.reserved(iter([stem])) as (_, part):
            link(adapter.path, part)
            self._files.finish(stem, metadata.model_copy(update={"name": stem}).to_json())
        try:
            self._activations.rename(adapter.name, stem)
        except BaseException:
            self._files.remove(stem)
            raise
        self._files.remove(adapter.name)
        for child in self.list():
            if child.metadata is not None and adapter.name in child.metadata.parents:
                changed = child.metadata.renamed_parent(adapter.name, stem)
                write_atomic(self._files.metadata(child.name), changed.to_json())
        return self._open(stem)

    def check_name(self, name: str) -> str:
        """A name that a new adapter can have, without `.safetensors`.

        Raises:
            AdapterExistsError: there is one of that name, or the history tells of a deleted one.
            AdapterError: the name is not fit for a file.
        """
        stem = _fit(name)
        if self._files.is_there(stem):
            raise AdapterExistsError(
                f"There is an adapter {stem!r} already.", hint="Choose another name."
            )
        self._activations.check_unused(stem)
        return stem

    def set_domain(self, name: str, domain: str | None) -> Adapter:
        """Say what an adapter is for; None takes it back.

        Raises:
            AdapterNotFoundError, AdapterInvalidError: no such adapter, or a broken one.
            AdapterError: the domain has no fit name.
            StorageError: it cannot be written.
        """
        adapter = self.get(name)
        metadata = adapter.require_metadata()
        try:
            named = None if domain is None else domain_name(domain)
        except ValueError as error:
            raise AdapterError(str(error), hint="Such as rust, sql or c++.") from error
        changed = metadata.model_copy(update={"domain": named})
        write_atomic(self._files.metadata(adapter.name), changed.to_json())
        return self._open(adapter.name)

    def delete(self, name: str, check: Callable[[], object] | None = None) -> None:
        """Remove an adapter.

        Args:
            check: called while nobody can activate, rename or delete one; raises if it is to stay.

        Raises:
            AdapterNotFoundError: it is not there.
            AdapterError: it is active.
            StorageError: it cannot be removed.
        """
        stem = self.get(name).name
        self._activations.remove(stem, lambda: self._files.remove(stem), check)

    # --- inside -----------------------------------------------------------------------------

    def _usable(self, stem: str) -> bool:
        return self._files.is_there(stem) and self._open(stem).problem is None

    def _open(self, stem: str) -> Adapter:
        path = self._files.weights(stem)
        size = 0
        try:
            if not NAME.fullmatch(stem):
                raise AdapterInvalidError(
                    f"{path.name} has a name that cannot be typed: rename the file and its .json."
                )
            about = path.lstat()
            if stat.S_ISLNK(about.st_mode):
                check_inside(path, self.folder)
                about = path.stat()
            if not stat.S_ISREG(about.st_mode):
                raise refusal(path, "file type", "it is no regular file")
            size = about.st_size
            if size == 0:
                raise refusal(path, "size", "it is empty")
            metadata = AdapterMetadata.read(self._files.metadata(stem), self.folder)
        except ShammahError as error:
            return Adapter(stem, path, None, size, error.message)
        except OSError as error:
            return Adapter(stem, path, None, size, f"{path.name}: {error.strerror}.")
        # A file that was renamed by hand goes by the name it has.
        return Adapter(stem, path, metadata.model_copy(update={"name": stem}), size)

    def _stem(self, name: str) -> str:
        path = Path(name)
        if path.is_absolute() or len(path.parts) > 1:
            if path.expanduser().absolute().parent.resolve() != self.folder.resolve():
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


def _fit(name: str) -> str:
    stem = name.removesuffix(SUFFIX)
    if not NAME.fullmatch(stem) or stem.lower() in RESERVED:
        raise AdapterError(
            f"{name!r} is not a name for an adapter.",
            hint="Use letters, digits, '.', '_' and '-', beginning with a letter or digit.",
        )
    return stem


def _check_rank(path: Path, header: Header, metadata: AdapterMetadata) -> None:
    for a, _ in lora_pairs(path, header.tensors).values():
        if a.shape[0] != metadata.lora.rank:
            raise refusal(
                path, "rank", f"rank {a.shape[0]}; its description says {metadata.lora.rank}"
            )


def _age(adapter: Adapter) -> tuple[float, str]:
    if adapter.metadata is not None:
        return adapter.metadata.created_at.timestamp(), adapter.name
    try:
        return adapter.path.lstat().st_mtime, adapter.name
    except OSError:
        return 0.0, adapter.name
