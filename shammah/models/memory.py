"""How much memory a model takes, estimated from its files before it is loaded.

Reads headers and the configuration; knows no adapter and no training loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shammah.errors import NotEnoughMemoryError

if TYPE_CHECKING:
    import torch

    from shammah.models.safetensors_header import StoredTensor

_CONTEXT = 4096
_TRAINED_TOKENS = 512
_PROCESS = 400_000_000
"""Bytes of a process with torch and transformers in it, before any weight."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes. `inference_bytes` and `training_bytes` include the weights."""

    weights_bytes: int
    inference_bytes: int
    training_bytes: int

    def of(self, parts: int) -> MemoryEstimate:
        """What each of several processes takes that divide the weights evenly."""
        spared = self.weights_bytes - self.weights_bytes // parts
        return MemoryEstimate(
            self.weights_bytes - spared, self.inference_bytes - spared, self.training_bytes - spared
        )


def estimate(
    tensors: Sequence[StoredTensor], config: Any, dtype: torch.dtype, *, max_context: int = _CONTEXT
) -> MemoryEstimate:
    """What a model will take in a number format.

    Inference adds the key-value cache of a full context (at most `max_context` tokens) and the
    logits of one position; a checkpoint in another format adds its largest tensor, which is there
    twice while it is converted. Training adds a process of its own, the activations of 512 tokens
    in every layer, and rank-16 adapters on all linear layers with their gradients and two Adam
    moments in fp32.

    Args:
        tensors: the checkpoint's tensors, from the files' headers.
        config: the model's configuration (transformers).
        dtype: what will be computed in.
    """
    text = config.get_text_config(decoder=True)
    width = dtype.itemsize
    weights = sum(tensor.parameters for tensor in tensors) * width
    names = {"torch.bfloat16": "BF16", "torch.float16": "F16", "torch.float32": "F32"}
    own = names.get(str(dtype))
    converted = max((tensor.size for tensor in tensors if tensor.dtype != own), default=0)

    hidden = int(text.hidden_size)
    layers = int(text.num_hidden_layers)
    heads = int(text.num_attention_heads)
    kv_heads = int(getattr(text, "num_key_value_heads", None) or heads)
    head = int(getattr(text, "head_dim", None) or hidden // heads)
    inner = int(getattr(text, "intermediate_size", None) or 4 * hidden)
    context = min(context_length(config), max_context)
    cache = 2 * layers * kv_heads * head * context * width
    inference = weights + converted + cache + 4 * int(text.vocab_size)

    activations = _TRAINED_TOKENS * width * layers * (10 * hidden + 4 * inner)
    rank_parameters = 16 * layers * (8 * hidden + 3 * (hidden + inner))
    training = weights + converted + activations + 16 * rank_parameters + _PROCESS
    return MemoryEstimate(weights, inference, training)


def free_memory(device: str) -> int:
    """Bytes that can be taken on a device now; on a CPU the page cache counts as free."""
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    import psutil

    return int(psutil.virtual_memory().available)


def require_memory(name: str, needed: MemoryEstimate, device: str) -> None:
    """See that a model fits before it is loaded.

    Raises:
        NotEnoughMemoryError: it needs more than is free; the message has both figures.
    """
    free = free_memory(device)
    if needed.inference_bytes > free:
        raise NotEnoughMemoryError(
            f"{name} needs about {gigabytes(needed.inference_bytes)} of memory "
            f"({gigabytes(needed.weights_bytes)} of it weights) and {gigabytes(free)} are free "
            f"on {device}.",
            hint="Close other programs, choose a smaller model, or set model.dtype to bf16.",
        )


def context_length(config: Any) -> int:
    """Tokens the model can read and write altogether, as its configuration says."""
    text = config.get_text_config(decoder=True)
    for key in ("max_position_embeddings", "n_positions", "seq_length", "max_sequence_length"):
        value = getattr(text, key, None)
        if isinstance(value, int) and value > 0:
            return value
    return 2048


def gigabytes(size: int) -> str:
    """`1.3 GB`, or `23 MB` where that reads better."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
