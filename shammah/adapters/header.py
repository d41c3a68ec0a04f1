"""The header of a safetensors file, read by hand and bounded, before anything else looks at it.

    8 bytes, little endian: length of the header;  the header, JSON;  the tensors, without gaps

Never a pickle; knows nothing about LoRA or models.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from shammah.adapters.regular_file import DAMAGED, open_regular
from shammah.errors import AdapterInvalidError

MAX_FILE_BYTES = 8 * 2**30
"""Rank 128 on every layer of a 70B model, in float32, is below this."""
MAX_HEADER_BYTES = 16 * 2**20
"""About a hundred thousand tensors."""
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
"""The number formats of an adapter, by the names of the file format."""
SUFFIX = ".safetensors"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file: bytes `begin` to `end`, counted from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """Tensors in the order of their bytes, which fill the file from `data_start` to its end."""

    tensors: tuple[StoredTensor, ...]
    data_start: int
    size: int

    @property
    def parameters(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.tensors)


def check_file(path: Path, *, folder: Path | None = None) -> Header:
    """Check that a file is a sound safetensors file of float tensors; nothing but its header is
    read.

    Args:
        folder: the file must lie in it, with all links followed; None allows any place.

    Raises:
        AdapterInvalidError: a check failed; the message names the file and the check.
        StorageError: the file cannot be read.
    """
    stream, header = open_checked(path, folder)
    stream.close()
    return header


def open_checked(path: Path, folder: Path | None = None) -> tuple[BufferedReader, Header]:
    """`check_file`, with the very file that was checked left open at its beginning.

    Raises:
        AdapterInvalidError, StorageError: as for `check_file`.
    """
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        raise refusal(
            path,
            "format",
            f"{suffix} files are pickles, which can run code when they are read",
            hint="Only safetensors are read: save it again with safe_serialization=True.",
        )
    if suffix != SUFFIX:
        raise refusal(path, "format", f"only {SUFFIX} files are read")
    try:
        stream = open_regular(path, folder)
    except FileNotFoundError as error:
        raise refusal(
            path, "presence", "there is no such file", hint="See `shammah adapters list`."
        ) from error
    try:
        header = _read(path, stream)
        stream.seek(0)
    except BaseException:
        stream.close()
        raise
    return stream, header


def read_tensors(
    path: Path, stream: BufferedReader, header: Header
) -> Iterator[tuple[StoredTensor, bytearray]]:
    """Every tensor with its bytes, in the order of the file; the stream stands at the first.

    Raises:
        AdapterInvalidError: the file has become shorter since its header was checked.
    """
    for tensor in header.tensors:
        content = bytearray(tensor.end - tensor.begin)
        if stream.readinto(content) != len(content):
            raise refusal(path, "length", f"it was cut short while {tensor.name!r} was read")
        yield tensor, content


def refusal(path: Path, check: str, what: str, *, hint: str = DAMAGED) -> AdapterInvalidError:
    """The error for a file that failed a check."""
    return AdapterInvalidError(f"{path.name} was refused ({check}): {what}.", hint=hint)


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    dtype: str
    shape: list[int]
    data_offsets: list[int]


_ENTRIES: TypeAdapter[dict[str, _Entry]] = TypeAdapter(dict[str, _Entry])
_TEXTS: TypeAdapter[dict[str, str]] = TypeAdapter(dict[str, str])


def _read(path: Path, stream: BufferedReader) -> Header:
    size = os.fstat(stream.fileno()).st_size
    if size > MAX_FILE_BYTES:
        raise refusal(path, "size", f"{size:,} bytes; at most {MAX_FILE_BYTES:,} are read")
    beginning = stream.read(8)
    if len(beginning) < 8:
        raise refusal(path, "size", f"{size} bytes are too few for a safetensors file")
    (length,) = struct.unpack("<Q", beginning)
    if length > MAX_HEADER_BYTES:
        if _looks_pickled(beginning):
            raise refusal(
                path,
                "format",
                "it is a pickle under another name, which can run code when it is read",
                hint="Do not rename such files. Get the adapter as safetensors, or delete it.",
            )
        raise refusal(
            path,
            "header length",
            f"it claims a header of {length:,} bytes; at most {MAX_HEADER_BYTES:,} are read",
        )
    if length > size - 8:
        raise refusal(
            path,
            "header length",
            f"it claims a header of {length:,} bytes, and {size - 8:,} are left in the file",
        )
    content = _json(path, stream.read(length))
    tensors = _tensors(path, content, size - 8 - length)
    return Header(tensors=tensors, data_start=8 + length, size=size)


def _looks_pickled(beginning: bytes) -> bool:
    # torch.save writes a zip archive; pickle itself begins with its protocol number.
    return beginning.startswith(b"PK\x03\x04") or (beginning[0] == 0x80 and 2 <= beginning[1] <= 5)


def _json(path: Path, raw: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name stands in it twice")
        return found

    try:
        if not raw.startswith(b"{"):
            raise ValueError("it does not begin with {")
        content: dict[str, Any] = json.loads(raw.decode(), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise refusal(path, "header", f"it is not valid JSON ({error})") from error
    return content


def _tensors(path: Path, content: dict[str, Any], room: int) -> tuple[StoredTensor, ...]:
    notes = content.pop("__metadata__", {})
    try:
        _TEXTS.validate_python(notes, strict=True)
        entries = _ENTRIES.validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = " ".join(repr(part) for part in first["loc"]) or "__metadata__"
        raise refusal(path, "header", f"{where}: {first['msg'].lower()}") from error
    if not entries:
        raise refusal(path, "header", "it names no tensors")
    tensors = [_tensor(path, name, entry) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: tensor.begin)
    place = 0
    for tensor in tensors:
        if tensor.begin != place:
            raise refusal(
                path,
                "offsets",
                f"{tensor.name!r} begins at byte {tensor.begin:,}, where {place:,} was expected",
            )
        place = tensor.end
    if place > room:
        raise refusal(
            path,
            "length",
            f"it is cut short: its tensors take {place:,} bytes, and {room:,} are there",
        )
    if place < room:
        raise refusal(path, "length", f"{room - place:,} bytes follow its last tensor")
    return tuple(tensors)


def _tensor(path: Path, name: str, entry: _Entry) -> StoredTensor:
    item = ITEM_BYTES.get(entry.dtype)
    if item is None:
        raise refusal(
            path,
            "number format",
            f"{name!r} is {entry.dtype!r}; an adapter is {', '.join(ITEM_BYTES)}",
        )
    if any(length < 1 for length in entry.shape):
        raise refusal(path, "shape", f"{name!r} is {entry.shape}")
    if len(entry.data_offsets) != 2 or entry.data_offsets[0] < 0:
        raise refusal(path, "offsets", f"{name!r} has the offsets {entry.data_offsets}")
    begin, end = entry.data_offsets
    needed = math.prod(entry.shape) * item
    if end - begin != needed:
        raise refusal(
            path,
            "offsets",
            f"{name!r} takes {end - begin:,} bytes, and its shape {entry.shape} needs {needed:,}",
        )
    return StoredTensor(name, entry.dtype, tuple(entry.shape), begin, end)
