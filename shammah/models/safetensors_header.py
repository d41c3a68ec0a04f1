"""What the header of a safetensors file says: names, dtypes, shapes and places of its tensors.

Reads headers and single windows of bytes; never a whole tensor, never a pickle.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, RootModel, ValidationError

from shammah.errors import ModelError

_LARGEST_HEADER = 100_000_000  # the format's own limit
DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
    "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file: `offset` and `size` in bytes, from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    size: int

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


class _Entry(BaseModel):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class _Header(RootModel[dict[str, _Entry | dict[str, str]]]):
    pass


def stored_tensors(files: Sequence[Path]) -> list[StoredTensor]:
    """Every tensor of the files, in order of name.

    Raises:
        ModelError: a file is not a safetensors file, or is cut short.
    """
    found = [tensor for file in files for tensor in _read(file)]
    return sorted(found, key=lambda tensor: tensor.name)


def _read(file: Path) -> list[StoredTensor]:
    length = file.stat().st_size
    with file.open("rb") as stream:
        beginning = stream.read(8)
        size = struct.unpack("<Q", beginning)[0] if len(beginning) == 8 else 0
        if not 0 < size <= min(_LARGEST_HEADER, length - 8):
            raise ModelError(
                f"{file} is not a whole safetensors file.", hint="Fetch the model again."
            )
        raw = stream.read(size)
    try:
        header = _Header.model_validate_json(raw).root
    except ValidationError as error:
        raise ModelError(
            f"The header of {file} cannot be read.", hint="Fetch the model again."
        ) from error
    tensors = []
    for name, entry in header.items():
        if not isinstance(entry, _Entry):
            continue
        begin, end = entry.data_offsets
        if not 0 <= begin <= end <= length - 8 - size:
            raise ModelError(
                f"{file} is cut short: {name} lies beyond its end.", hint="Fetch the model again."
            )
        place = 8 + size + begin
        tensors.append(
            StoredTensor(name, entry.dtype, tuple(entry.shape), file, place, end - begin)
        )
    return tensors
