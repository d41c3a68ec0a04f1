"""Which examples are computed together. Knows lengths, not tokens.

Examples of a pack lie one after the other in a single row, without padding.
"""

from __future__ import annotations

from collections.abc import Sequence


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


def bucket(length: int, step: int = 16) -> int:
    """`length` rounded up to a multiple of `step`.

    On CPU every new matrix shape makes oneDNN compile and keep kernels, some 8 MB for each new
    row length of a half-billion-parameter model. A few idle rows are cheaper.
    """
    return -(-length // step) * step
