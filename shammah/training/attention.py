"""Causal attention over several examples that lie in one row, each seeing only itself.

Registered as one of transformers' attention functions, so that models run unchanged. The bounds of
the examples are set around a forward pass with `segments`; no mask is ever made. Knows nothing
about which model calls it.

On CPU attention is computed by blocks of query rows with plain matrix products, and its
probabilities are computed again in the backward pass: several times faster than torch's own kernel
at the lengths of a conversation, and nothing quadratic is kept. Elsewhere torch's kernel is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from shammah.training.packing import bucket

NAME = "shammah_segments"
BLOCK = 256
STEP = 32
Span = tuple[int, int]


class UnsupportedAttentionError(Exception):
    """Raised when a model wants of its attention what is not built here (soft caps, sinks)."""


@dataclass
class Calls:
    """What a forward pass asked of the attention function: the window of every call."""

    windows: list[int | None] = field(default_factory=list)


_spans: Sequence[Span] | None = None
_calls: Calls | None = None


@contextmanager
def segments(spans: Sequence[Span]) -> Iterator[Calls]:
    """Within it, attention is confined to `spans` (start, end) of the row."""
    global _spans, _calls
    before = _spans, _calls
    _spans, _calls = spans, Calls()
    try:
        yield _calls
    finally:
        _spans, _calls = before


def register() -> None:
    """Make the function known to transformers under `NAME`."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **extra: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query [1, Hq, T, D], key and value [1, Hk, T, D] ->
    [1, T, Hq, D]."""
    del attention_mask
    wanted = [name for name in ("softcap", "s_aux", "position_bias") if extra.get(name) is not None]
    if wanted or _spans is None or _calls is None or query.shape[0] != 1:
        raise UnsupportedAttentionError(", ".join(wanted) or "no segments were set")
    if getattr(module, "is_causal", True) is False:
        raise UnsupportedAttentionError("not causal")
    _calls.windows.append(sliding_window)
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    return segment_attention(query[0], key[0], value[0], _spans, scale, sliding_window)[None], None


def segment_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: Sequence[Span],
    scaling: float,
    window: int | None = None,
) -> torch.Tensor:
    """softmax(scaling * q k^T) v inside each span, causal.

    Args:
        query: [Hq, T, D]. key: [Hk, T, D]. value: [Hk, T, Dv]; Hk divides Hq.
        window: a position sees itself and the `window - 1` positions before it; None for all.

    Returns:
        [T, Hq, Dv].
    """
    if query.device.type == "cpu":
        output: torch.Tensor = _Blocks.apply(  # type: ignore[no-untyped-call]
            query, key, value, tuple(spans), scaling, window
        )
        return output
    return _by_kernel(query, key, value, spans, scaling, window)


def _by_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: Sequence[Span],
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    groups = query.shape[0] // key.shape[0]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
    outputs = []
    for start, end in spans:
        part = slice(start, end)
        far = window is not None and end - start > window
        positions = torch.arange(end - start, device=query.device)
        distance = positions[:, None] - positions
        outputs.append(
            torch.nn.functional.scaled_dot_product_attention(
                query[None, :, part],
                key[None, :, part],
                value[None, :, part],
                attn_mask=(distance >= 0) & (distance < (window or 0)) if far else None,
                is_causal=not far,
                scale=scaling,
            )[0].transpose(0, 1)
        )
    return torch.cat(outputs)


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        spans: tuple[Span, ...],
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        # Zeros, because rows that belong to no span must stay finite.
        output = query.new_zeros(query.shape[1], query.shape[0], value.shape[-1])
        for block in _blocks(spans):
            probabilities, _, _ = _probabilities(query, key, block, scaling, window)
            mixed = torch.bmm(probabilities, block.of_keys(value))
            output[block.rows] = block.from_rows(mixed).transpose(0, 1)
        ctx.save_for_backward(query, key, value)
        ctx.spans, ctx.scaling, ctx.window = spans, scaling, window
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        query, key, value = ctx.saved_tensors
        gradient = gradients[0].transpose(0, 1)
        d_query = torch.zeros_like(query)
        # Blocks of one segment add to the same keys: sums in float32.
        d_key = torch.zeros_like(key, dtype=torch.float32)
        d_value = torch.zeros_like(value, dtype=torch.float32)
        for block in _blocks(ctx.spans):
            probabilities, queries, keys = _probabilities(
                query, key, block, ctx.scaling, ctx.window
            )
            outer = block.of_rows(gradient, key.shape[0])
            width = block.keys.stop - block.keys.start
            d_value[:, block.keys] += torch.bmm(probabilities.transpose(1, 2), outer)[:, :width]
            d_scores = torch._softmax_backward_data(
                torch.bmm(outer, block.of_keys(value).transpose(1, 2)),
                probabilities,
                -1,
                probabilities.dtype,
            )
            d_key[:, block.keys] += torch.bmm(d_scores.transpose(1, 2), queries)[:, :width]
            d_query[:, block.rows] = block.from_rows(torch.bmm(d_scores, keys).mul_(ctx.scaling))
        return d_query, d_key.to(key.dtype), d_value.to(value.dtype), None, None, None


@dataclass(frozen=True, slots=True)
class _Block:
    """Query rows and the keys they may look at, both with `idle` rows of zeros at the end: idle
    keys come after every row, so that causality hides them."""

    rows: slice
    keys: slice
    idle: int

    def of_rows(self, tensor: torch.Tensor, key_heads: int) -> torch.Tensor:
        """[Hq, T, D] -> [Hk, groups * rows, D]."""
        part = tensor[:, self.rows]
        if self.idle:
            part = F.pad(part, (0, 0, 0, self.idle))
        return part.reshape(key_heads, -1, tensor.shape[-1])

    def of_keys(self, tensor: torch.Tensor) -> torch.Tensor:
        """[Hk, T, D] -> [Hk, keys, D]."""
        part = tensor[:, self.keys]
        return F.pad(part, (0, 0, 0, self.idle)) if self.idle else part

    def from_rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """[Hk, groups * rows, D] -> [Hq, rows without the idle ones, D]."""
        count = self.rows.stop - self.rows.start
        return tensor.view(-1, count + self.idle, tensor.shape[-1])[:, :count]


def _blocks(spans: Sequence[Span]) -> Iterator[_Block]:
    for start, end in spans:
        for first in range(start, end, BLOCK):
            last = min(first + BLOCK, end)
            idle = bucket(last - first, STEP) - (last - first)
            yield _Block(slice(first, last), slice(start, last), idle)


def _probabilities(
    query: torch.Tensor,
    key: torch.Tensor,
    block: _Block,
    scaling: float,
    window: int | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """softmax of a block, [Hk, groups * rows, keys], its scaled queries and its keys."""
    count = block.rows.stop - block.rows.start + block.idle
    width = block.keys.stop - block.keys.start + block.idle
    queries, keys = block.of_rows(query, key.shape[0]) * scaling, block.of_keys(key)
    scores = torch.bmm(queries, keys.transpose(1, 2))
    square = scores.view(query.shape[0], count, width)
    if window is not None and width > window:
        distance = torch.arange(width - count, width)[:, None] - torch.arange(width)
        square.masked_fill_((distance < 0) | (distance >= window), -math.inf)
    else:
        # Only the last `count` columns hold keys that come after some of the rows.
        square[..., width - count :] += _future(count, scores.dtype)
    return torch.softmax(scores, -1, out=scores), queries, keys


_futures: dict[torch.dtype, torch.Tensor] = {}


def _future(count: int, dtype: torch.dtype) -> torch.Tensor:
    """[count, count]: minus infinity where the column comes after the row, else zero."""
    if dtype not in _futures:
        _futures[dtype] = torch.full((BLOCK, BLOCK), -math.inf, dtype=dtype).triu_(1)
    return _futures[dtype][:count, :count]
