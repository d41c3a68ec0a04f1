"""An adapter's tensors, read into memory that is their own.

Knows nothing of libraries or of the model that will use them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shammah.adapters.header import StoredTensor, open_checked, read_tensors, refusal
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
        AdapterInvalidError: the file is not sound, or its rank is not that of the description.
        StorageError: the file cannot be read.
    """
    stream, header = open_checked(path)
    with stream:
        stream.seek(header.data_start)
        return _weights(path, metadata, list(read_tensors(path, stream, header)))


def load_checked(
    path: Path, metadata: AdapterMetadata, base: BaseModelShape, *, folder: Path | None = None
) -> LoraWeights:
    """`check_against` and `load_weights` in one reading: what was checked is what is returned.

    Raises:
        AdapterInvalidError: a check failed; the message names the file and the check.
        StorageError: the file cannot be read.
    """
    return _weights(path, metadata, list(checked_tensors(path, metadata, base, folder=folder)))


def _weights(
    path: Path, metadata: AdapterMetadata, stored: Sequence[tuple[StoredTensor, bytearray]]
) -> LoraWeights:
    pairs = lora_pairs(path, (tensor for tensor, _ in stored))
    for a, _ in pairs.values():
        if a.shape[0] != metadata.lora.rank:
            raise refusal(
                path, "rank", f"rank {a.shape[0]}; its description says {metadata.lora.rank}"
            )
    tensors = {
        # The tensor keeps its bytearray alive; nobody else holds it.
        tensor.name: torch.frombuffer(content, dtype=DTYPES[tensor.dtype]).view(tensor.shape)
        for tensor, content in stored
    }
    return LoraWeights(
        modules={module: (tensors[a.name], tensors[b.name]) for module, (a, b) in pairs.items()},
        scaling=metadata.lora.scaling,
    )
