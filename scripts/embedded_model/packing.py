"""Tokens to batches: conversations packed into rows of one length, none seeing another.

The conversations are numbered, so the data position of a run is one number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from embedded_model.encoding import EncodedRow

IGNORE = -100
_TRIES = 24


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of packed conversations.

    input_ids, positions, labels: int64 [rows, length]. mask: bfloat16 [rows, 1, length, length],
    added to the attention scores.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True, slots=True)
class Shape:
    rows: int
    length: int


def pack(shape: Shape, draw: Callable[[int], EncodedRow], first: int) -> tuple[Batch, int]:
    """Fill one batch with rows `first`, `first + 1` ...; returns it and the number used.

    A conversation longer than a row is skipped. A row of the batch is closed when several
    conversations in turn do not fit; those are used in the next row.
    """
    used = 0
    waiting: list[EncodedRow] = []
    packed: list[list[EncodedRow]] = []
    for _ in range(shape.rows):
        room = shape.length
        row: list[EncodedRow] = []
        refused: list[EncodedRow] = []
        while room > 16 and len(refused) < _TRIES:
            if waiting:
                candidate = waiting.pop(0)
            else:
                candidate = draw(first + used)
                used += 1
            if len(candidate.ids) > shape.length:
                continue
            if len(candidate.ids) <= room:
                row.append(candidate)
                room -= len(candidate.ids)
            else:
                refused.append(candidate)
        waiting = refused + waiting
        packed.append(row)
    return _batch(packed, shape), used


def _batch(packed: list[list[EncodedRow]], shape: Shape) -> Batch:
    ids = torch.zeros(shape.rows, shape.length, dtype=torch.int64)
    positions = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORE)
    segment = torch.full_like(ids, -1)
    for at, row in enumerate(packed):
        start = 0
        for number, encoded in enumerate(row):
            count = len(encoded.ids)
            span = torch.tensor(encoded.ids)
            ids[at, start : start + count] = span
            positions[at, start : start + count] = torch.arange(count)
            segment[at, start : start + count] = number
            # Position i predicts token i + 1, so labels stand one to the left.
            learn = torch.tensor(encoded.learn[1:])
            labels[at, start : start + count - 1] = torch.where(learn, span[1:], IGNORE)
            start += count
    causal = torch.ones(shape.length, shape.length, dtype=torch.bool).tril()
    same = segment[:, :, None] == segment[:, None, :]
    # Large enough that nothing of it is left after the softmax, and no row becomes NaN.
    hidden = ~(same & causal)[:, None]
    mask = torch.zeros(hidden.shape, dtype=torch.bfloat16).masked_fill_(hidden, -30_000.0)
    return Batch(ids, positions, labels, mask)
