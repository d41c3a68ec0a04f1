"""The checks before an adapter is used: its file, and that it fits one base model.

Whatever fails, nothing of the adapter has been used. Imports no tensor library but numpy, and that
only to look at numbers; knows a base model only by its shape.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from shammah.adapters.header import StoredTensor, check_file, open_checked, read_tensors, refusal
from shammah.adapters.metadata import AdapterMetadata
from shammah.errors import AdapterInvalidError

__all__ = [
    "BaseModelShape",
    "check_against",
    "check_file",
    "checked_tensors",
    "is_finite",
    "lora_pairs",
    "sha256_of",
]

OTHER_BASE = "It was trained on another base model: load that one, or unload the adapter."
WINDOW = 2**20
"""Bytes looked at together for NaN: they stay in the processor's cache."""

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight", re.DOTALL)


class BaseModelShape(Protocol):
    """What an adapter must fit. `modules` maps each adaptable linear layer, by its path in
    `named_modules()`, to (in_features, out_features)."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def modules(self) -> Mapping[str, tuple[int, int]]: ...


def check_against(
    path: Path,
    metadata: AdapterMetadata,
    base: BaseModelShape,
    *,
    folder: Path | None = None,
) -> None:
    """Check everything about an adapter: the file, and that it belongs to this base model.

    In this order: `check_file`, the base model's fingerprint, tensor names, shapes and rank, finite
    numbers, sha256. The file is read once, tensor by tensor.

    Args:
        path: the weights.
        metadata: what is known about them.
        base: the model that shall answer with them.
        folder: the file must lie in it, with all links followed; None allows any place.

    Raises:
        AdapterInvalidError: a check failed; the message names the file and the check.
        StorageError: the file cannot be read.
    """
    for _ in checked_tensors(path, metadata, base, folder=folder):
        pass


def checked_tensors(
    path: Path,
    metadata: AdapterMetadata,
    base: BaseModelShape,
    *,
    folder: Path | None = None,
) -> Iterator[tuple[StoredTensor, bytearray]]:
    """The tensors, with their bytes, in the order of the file, checked while they are read.

    Only when the iterator has ended are all checks passed; until then nothing may be used.

    Raises:
        AdapterInvalidError, StorageError: as for `check_against`.
    """
    stream, header = open_checked(path, folder)
    with stream:
        _check_fingerprint(path, metadata, base)
        _check_shapes(path, metadata, base, lora_pairs(path, header.tensors))
        digest = hashlib.sha256(stream.read(header.data_start))
        for tensor, content in read_tensors(path, stream, header):
            digest.update(content)
            if not is_finite(tensor.dtype, content):
                raise refusal(
                    path,
                    "finite numbers",
                    f"{tensor.name!r} holds NaN or infinity",
                    hint="Its training went wrong: delete it, and train again from another one.",
                )
            yield tensor, content
        if digest.hexdigest() != metadata.sha256:
            raise refusal(
                path,
                "sha256",
                f"its bytes give {digest.hexdigest()[:16]}..., its description says "
                f"{metadata.sha256[:16]}...",
                hint="It was changed after it was made: bring back a copy, or delete it.",
            )


def lora_pairs(
    path: Path, tensors: Iterable[StoredTensor]
) -> dict[str, tuple[StoredTensor, StoredTensor]]:
    """Module path -> (A [rank, in], B [out, rank]), of one rank in all modules.

    Args:
        path: for messages.

    Raises:
        AdapterInvalidError: another tensor is among them, one is missing, or ranks differ.
    """
    factors: dict[str, dict[str, StoredTensor]] = {}
    for tensor in tensors:
        match = _KEY.fullmatch(tensor.name)
        if match is None:
            raise refusal(
                path,
                "tensor names",
                f"{tensor.name!r} is no LoRA matrix of a linear layer",
                hint="Only plain LoRA is read: lora_A and lora_B, with PEFT's key names.",
            )
        factors.setdefault(match["module"], {})[match["factor"]] = tensor
    pairs = {}
    ranks: dict[int, str] = {}
    for module, found in factors.items():
        if found.keys() != {"A", "B"}:
            missing = ({"A", "B"} - found.keys()).pop()
            raise refusal(path, "tensor names", f"{module!r} has no lora_{missing}")
        a, b = found["A"], found["B"]
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
            raise refusal(
                path,
                "shapes",
                f"{module!r} has a lora_A of {list(a.shape)} and a lora_B of {list(b.shape)}; "
                "[rank, in] and [out, rank] belong together",
            )
        ranks[a.shape[0]] = module
        pairs[module] = (a, b)
    if len(ranks) > 1:
        shown = ", ".join(f"{rank} in {module!r}" for rank, module in sorted(ranks.items())[:3])
        raise refusal(
            path,
            "rank",
            f"it mixes ranks ({shown})",
            hint="Adapters have one rank: train or convert it with a single one.",
        )
    return pairs


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_finite(dtype: str, content: bytes | bytearray) -> bool:
    """Whether no number is NaN or infinite.

    Args:
        dtype: `F32`, `F16` or `BF16`.
        content: the numbers, little endian.
    """
    import numpy as np

    kind, exponent = {
        "F32": ("<u4", 0x7F800000),
        "F16": ("<u2", 0x7C00),
        "BF16": ("<u2", 0x7F80),
    }[dtype]
    bits = np.frombuffer(content, dtype=kind)
    step = WINDOW // bits.itemsize
    # An exponent of ones alone says it, in all three formats.
    return not any(
        bool(((bits[start : start + step] & exponent) == exponent).any())
        for start in range(0, len(bits), step)
    )


def _check_fingerprint(path: Path, metadata: AdapterMetadata, base: BaseModelShape) -> None:
    if metadata.base_fingerprint != base.fingerprint:
        raise refusal(
            path,
            "base model",
            f"it was made for {metadata.base_model} ({metadata.base_fingerprint[:16]}), and "
            f"{base.name} ({base.fingerprint[:16]}) is loaded",
            hint=OTHER_BASE,
        )


def _check_shapes(
    path: Path,
    metadata: AdapterMetadata,
    base: BaseModelShape,
    pairs: Mapping[str, tuple[StoredTensor, StoredTensor]],
) -> None:
    for module, (a, b) in pairs.items():
        sizes = base.modules.get(module)
        if sizes is None:
            raise refusal(
                path,
                "tensor names",
                f"{base.name} has no linear layer {module!r} that an adapter can change",
                hint=OTHER_BASE,
            )
        inputs, outputs = sizes
        rank = a.shape[0]
        if a.shape != (rank, inputs) or b.shape != (outputs, rank):
            raise refusal(
                path,
                "shapes",
                f"{module!r} is made for {a.shape[1]} inputs and {b.shape[0]} outputs; in "
                f"{base.name} it has {inputs} and {outputs}",
                hint=OTHER_BASE,
            )
        if rank != metadata.lora.rank:
            raise AdapterInvalidError(
                f"{path.name} was refused (rank): its matrices have rank {rank}, its description "
                f"says {metadata.lora.rank}.",
                hint="The two files do not belong together: bring back copies of both.",
            )
