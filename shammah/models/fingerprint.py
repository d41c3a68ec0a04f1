"""A base model's fingerprint: what an adapter was trained on, told apart from all else.

It covers what the model computes (the configuration's architecture and the weights), not where its
folder lies, what it is called, or in how many files its weights are kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shammah.models.safetensors_header import StoredTensor, stored_tensors
from shammah.models.source import weight_files

WHOLE = 64 * 1024 * 1024
"""Up to this many bytes of weights are hashed whole; of larger models, WINDOWS a tensor."""
WINDOW = 4096
WINDOWS = 4

# Keys that change nothing about what the weights compute.
_INCIDENTAL = {
    "_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache",
    "_attn_implementation", "_attn_implementation_autoset", "bos_token_id", "eos_token_id",
    "pad_token_id", "architectures", "auto_map", "output_attentions", "output_hidden_states",
    "return_dict", "is_encoder_decoder", "chunk_size_feed_forward", "id2label", "label2id",
    "problem_type", "attention_dropout", "initializer_range", "pretraining_tp",
}  # fmt: skip


def fingerprint(path: Path) -> str:
    """SHA-256, in hexadecimal, of a model folder.

    It covers the configuration without incidental keys, every tensor's name, dtype and shape, and
    the tensors' bytes: all of them up to 64 MiB, of a larger model four windows of 4 KiB spread
    evenly over each tensor. Two models that differ only between the windows are not told apart;
    training moves whole matrices, so real ones differ inside them.

    Raises:
        ModelError: the configuration or a weight file cannot be read.
    """
    digest = hashlib.sha256()
    config = json.loads((path / "config.json").read_bytes())
    digest.update(json.dumps(_relevant(config), sort_keys=True).encode())
    tensors = stored_tensors(weight_files(path))
    for tensor in tensors:
        digest.update(f"\n{tensor.name} {tensor.dtype} {tensor.shape}".encode())
    for window in _windows(tensors):
        digest.update(window)
    return digest.hexdigest()


def _relevant(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _relevant(inner)
            for key, inner in value.items()
            if key not in _INCIDENTAL and inner is not None
        }
    if isinstance(value, list):
        return [_relevant(inner) for inner in value]
    return value


def _windows(tensors: Sequence[StoredTensor]) -> Iterator[bytes]:
    whole = sum(tensor.size for tensor in tensors) <= WHOLE
    streams = {file: file.open("rb") for file in {tensor.file for tensor in tensors}}
    try:
        for tensor in tensors:
            stream = streams[tensor.file]
            if whole or tensor.size <= WINDOW * WINDOWS:
                stream.seek(tensor.offset)
                yield stream.read(tensor.size)
                continue
            for number in range(WINDOWS):
                start = (tensor.size - WINDOW) * number // (WINDOWS - 1)
                stream.seek(tensor.offset + start)
                yield stream.read(WINDOW)
    finally:
        for stream in streams.values():
            stream.close()
