"""Which of a model's anchors are replayed beside given lessons: those nearest to them, and others.

What a lesson changes first is what stands near it: another question of the same frame, another
admission not to know. Knows vectors, not models.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NEAR = 0.5
"""Share of the chosen that are there because they are near."""


def chosen(
    anchors: NDArray[np.float32],
    lessons: NDArray[np.float32],
    count: int,
    seed: int,
    near_share: float = NEAR,
) -> list[int]:
    """Indices of up to `count` anchors, in their order.

    A share of them are the nearest, the lessons taking turns; the others are drawn from all that is
    left.

    Args:
        anchors, lessons: unit vectors, float32 [n, d] and [m, d].
    """
    if len(anchors) <= count:
        return list(range(len(anchors)))
    near: dict[int, None] = {}
    order = np.argsort(-(lessons @ anchors.T), axis=1)
    for rank in range(order.shape[1]):
        for index in order[:, rank].tolist():
            if len(near) < round(near_share * count):
                near.setdefault(index)
    rest = [index for index in range(len(anchors)) if index not in near]
    drawn = np.random.default_rng(seed).permutation(rest)[: count - len(near)]
    return sorted([*near, *drawn.tolist()])
