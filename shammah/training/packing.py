"""Which examples are computed together. Knows lengths, not tokens.

Examples of a pack lie one after the other in a single row, without padding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

WINDOW = 256
"""Examples that `pack_stream` holds at most."""


@dataclass(frozen=True, slots=True)
class Pack(Generic[T]):
    """Examples of one row. `boundaries` are n + 1 token positions: example i lies at
    `boundaries[i]:boundaries[i + 1]`, and attends to nothing outside."""

    items: tuple[T, ...]
    boundaries: tuple[int, ...]


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices in packs of at most `budget` tokens: first fit, longest first.

    A pack holds more than `budget` only where a single example does. Inside a pack, and among the
    packs, indices keep their order.
    """
    packs: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        for number, free in enumerate(room):
            if lengths[index] <= free:
                packs[number].append(index)
                room[number] -= lengths[index]
                break
        else:
            packs.append([index])
            room.append(budget - lengths[index])
    return sorted(sorted(members) for members in packs)


def pack_groups(lengths: Sequence[int], budget: int, size: int) -> list[list[int]]:
    """`pack` where each `size` indices in turn stay together."""
    if size == 1:
        return pack(lengths, budget)
    groups = [range(start, start + size) for start in range(0, len(lengths), size)]
    packs = pack([sum(lengths[index] for index in group) for group in groups], budget)
    return [[index for number in members for index in groups[number]] for members in packs]


def pack_stream(
    items: Iterable[T],
    budget: int,
    *,
    length: Callable[[T], int] | None = None,
    window: int = WINDOW,
) -> Iterator[Pack[T]]:
    """`pack` for a stream: every item once, in packs of at most `budget` tokens.

    Up to `window` items are held; when there are so many, the fuller half of their packs goes out,
    and that of the item that has waited longest; the others wait for items that fill the gaps.

    Args:
        length: the tokens of an item; its `len` if not given.
    """
    held: list[tuple[T, int]] = []
    for item in items:
        held.append((item, length(item) if length is not None else _len(item)))
        if len(held) < window:
            continue
        packs = pack([tokens for _, tokens in held], budget)
        fill = [sum(held[index][1] for index in members) for members in packs]
        fullest = sorted(range(len(packs)), key=lambda number: -fill[number])
        # The packs are in order: the first one has the item that has waited longest.
        out = sorted({0, *fullest[: (len(packs) + 1) // 2]})
        yield from (_pack([held[index] for index in packs[number]]) for number in out)
        gone = {index for number in out for index in packs[number]}
        held = [each for index, each in enumerate(held) if index not in gone]
    for members in pack([tokens for _, tokens in held], budget):
        yield _pack([held[index] for index in members])


def bucket(length: int, step: int = 16) -> int:
    """`length` rounded up to a multiple of `step`.

    On CPU every new matrix shape makes oneDNN compile and keep kernels, some 8 MB for each new
    row length of a half-billion-parameter model. A few idle rows are cheaper.
    """
    return -(-length // step) * step


def _pack(members: Sequence[tuple[T, int]]) -> Pack[T]:
    boundaries = itertools.accumulate((tokens for _, tokens in members), initial=0)
    return Pack(tuple(item for item, _ in members), tuple(boundaries))


def _len(item: object) -> int:
    if not isinstance(item, Sized):
        raise TypeError(f"{type(item).__name__} has no length: say how long an item is")
    return len(item)
