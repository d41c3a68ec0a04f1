"""Keys and values of what was read already, kept for the next turn.

A cache belongs to one generation of the adapter: after a swap every key and value would be another.
Knows tokens and tensors, no text.

What was decoded token by token is not read again. In fp32 that changes no answer; in bf16 the last
bits of a key depend on how many tokens were computed with it, so that an answer with the cache and
one without it can part where two tokens are about equally likely. The same questions in the same
order always give the same answers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

_SMALLEST = 256


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values in buffers with room to grow, so that a token is not a copy of all.

    A sliding layer keeps the whole past too, so that it can go back; its mask hides what is out of
    the window. Shapes are [batch, heads, length, head size].
    """

    def __init__(self, sliding: bool = False) -> None:
        super().__init__()
        self.is_sliding = sliding
        self.length = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys = key_states.new_empty(0)
            self.values = value_states.new_empty(0)
        end = self.length + key_states.shape[-2]
        if self.keys.dim() != 4 or end > self.keys.shape[-2]:
            self._grow(key_states, value_states, end)
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.length

    def crop(self, tokens_to_remove: int) -> None:
        self.length -= min(abs(tokens_to_remove), self.length)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._rows(lambda held: held.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._rows(lambda held: held[indices])

    def _rows(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.length:
            self.keys = change(self.keys[:, :, : self.length])
            self.values = change(self.values[:, :, : self.length])

    def _grow(self, keys: Tensor, values: Tensor, needed: int) -> None:
        size = max(_SMALLEST, needed + needed // 2)
        grown = []
        for old, new in ((self.keys, keys), (self.values, values)):
            buffer = new.new_empty(*new.shape[:2], size, new.shape[-1])
            if self.length:
                buffer[:, :, : self.length] = old[:, :, : self.length]
            grown.append(buffer)
        self.keys, self.values = grown


def new_cache(config: Any) -> Cache:
    """An empty cache for a model: growing where its layers allow it, else transformers' own."""
    cache = DynamicCache(config=config)
    kinds = {type(layer) for layer in cache.layers}
    if kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
        cache.layers = [GrowingLayer(bool(layer.is_sliding)) for layer in cache.layers]
    return cache


def repeated(cache: Cache, rows: int) -> Cache:
    """A cache that holds in each of so many rows what this one holds in its only row; this one
    stays as it is."""
    copied = copy.deepcopy(cache)
    copied.batch_repeat_interleave(rows)
    return copied


def side_by_side(config: Any, rows: Sequence[tuple[Cache, int, int]]) -> Cache:
    """A cache whose rows end at the same place and begin where each of them does: what is before
    is padding, of zeros.

    Args:
        config: the model's configuration.
        rows: of each a cache, its row in it, and how many of the last positions are its own. All
            layers are growing ones (`can_stand_beside`).
    """
    longest = max(length for _, _, length in rows)
    size = longest + max(_SMALLEST, longest // 4)
    made = new_cache(config)
    for number, layer in enumerate(made.layers):
        like = rows[0][0].layers[number]
        layer.lazy_initialization(like.keys, like.values)
        for name in ("keys", "values"):
            one = getattr(like, name)
            # Zeros, for what is masked is multiplied by zero, and a chance value may be no number.
            buffer = one.new_zeros(len(rows), one.shape[1], size, one.shape[3])
            for at, (cache, row, length) in enumerate(rows):
                held = cache.layers[number]
                part = getattr(held, name)[row, :, held.length - length : held.length]
                buffer[at, :, longest - length : longest] = part
            setattr(layer, name, buffer)
        layer.length = longest
    return made


def can_stand_beside(cache: Cache) -> bool:
    """Whether `side_by_side` knows all kinds of layers of a cache."""
    return bool(cache.layers) and all(type(layer) is GrowingLayer for layer in cache.layers)


def can_repeat(cache: Cache) -> bool:
    """Whether `repeated` knows all kinds of layers of a cache."""
    # Not their subclasses: some hold a state beside keys and values.
    known = (GrowingLayer, DynamicLayer, DynamicSlidingWindowLayer)
    return bool(cache.layers) and all(type(layer) in known for layer in cache.layers)


@dataclass(slots=True)
class _Kept:
    tokens: list[int]
    cache: Cache


KEPT = 2
"""Generations whose last conversation is kept: with and without the adapter, in turns."""


class PrefixCache:
    """What the model has read last with each of a few generations, for prompts that begin the same.

    Args:
        config: the model's configuration.
    """

    def __init__(self, config: Any) -> None:
        self._config = config
        self._kept: dict[int, _Kept] = {}

    def take(self, generation: int, tokens: Sequence[int]) -> tuple[Cache, int]:
        """A cache that holds the first n of `tokens`, and n, which is less than their number.

        What was kept is taken out: a failure while decoding leaves nothing half-written behind.
        """
        kept = self._kept.pop(generation, None)
        if kept is None:
            return new_cache(self._config), 0
        shared = min(common_prefix(kept.tokens, tokens), len(tokens) - 1)
        surplus = len(kept.tokens) - shared
        if shared == 0 or (surplus and not _can_go_back(kept.cache)):
            return new_cache(self._config), 0
        if surplus:
            kept.cache.crop(-surplus)
        return kept.cache, shared

    def keep(self, generation: int, tokens: list[int], cache: Cache) -> None:
        """Keep a cache that holds exactly `tokens`; the generation used longest ago gives way."""
        self._kept.pop(generation, None)
        self._kept[generation] = _Kept(tokens, cache)
        while len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]

    def clear(self) -> None:
        self._kept.clear()


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences share at their beginning."""
    size = min(len(first), len(second))
    a, b = torch.tensor(first[:size]), torch.tensor(second[:size])
    different = (a != b).nonzero()
    return int(different[0]) if len(different) else size


def _can_go_back(cache: Cache) -> bool:
    return all(isinstance(layer, GrowingLayer) for layer in cache.layers)
