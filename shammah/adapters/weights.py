"""An adapter's tensors, read into memory that is their own.

Knows nothing of libraries or of the model that will use them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shammah.adapters.header import StoredTensor, open_checked, refusal
from shammah.adapters.metadata import AdapterMetadata
from shammah.adapters.validate import BaseModelShape, checked_tensors, lora_pairs

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """`modules` maps a layer's path, as in the base model's `named_modules()`, to A [rank, in] and
    B [out, rank], on the CPU in the dtype of the file. The layer's output gains
    `scaling * x A^T B^T`.
    """

    modules: dict[str, tuple[Tensor, Tensor]]
    scaling: float


def load_weights(path: Path, metadata: AdapterMetadata) -> LoraWeights:
    """The tensors of a file that `check_against` has accepted.

    They do not depend on the file: it may be changed or deleted afterwards.

    Raises:
        AdapterInvalidError: the header is not sound, or the rank is not that of the description.
        StorageError: the file cannot be read.
    """
    stream, header = open_checked(path)
    with stream:
        pairs = lora_pairs(path, header)
        stream.seek(header.data_start)
        tensors = {}
        for tensor in header.tensors:
            content = bytearray(tensor.end - tensor.begin)
            if stream.readinto(content) != len(content):  # type: ignore[attr-defined]
                raise refusal(path, "length", f"it was cut short while {tensor.name!r} was read")
            tensors[tensor.name] = _tensor(tensor, content)
    if any(a.shape[0] != metadata.lora.rank for a, _ in pairs.values()):
        raise refusal(path, "rank", f"its description says {metadata.lora.rank}")
    return _weights(pairs, tensors, metadata)


def load_checked(
    path: Path, metadata: AdapterMetadata, base: BaseModelShape, *, folder: Path | None = None
) -> LoraWeights:
    """`check_against` and `load_weights` in one reading: what was checked is what is returned.

    Raises:
        AdapterInvalidError: a check failed; the message names the file and the check.
        StorageError: the file cannot be read.
    """
