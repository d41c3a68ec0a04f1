"""Draw lessons in proportion to their weight.

Knows weights and random numbers, not what a lesson is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class WeightedSampler:
    """Draws indices with replacement; index i comes with probability w_i / sum(w).

    Numbers come from numpy's PCG64, so that a seed gives the same draws on every machine.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        """
        Args:
            weights: one finite number of at least 0 each, not all 0.
            seed: of the random numbers.

        Raises:
            ValueError: there are no weights, or one is negative or not finite, or all are 0.
        """
        self._weights = [float(weight) for weight in weights]
        if not self._weights:
            raise ValueError("there is nothing to draw from: no weights were given")
        for index, weight in enumerate(self._weights):
            if not math.isfinite(weight) or weight < 0:
                raise ValueError(f"weight {index} is {weight}: weights are finite and at least 0")
        total = sum(self._weights)
        if not 0 < total < math.inf:
            raise ValueError(f"the weights add up to {total}: nothing can be drawn")
        self._bounds = np.cumsum(np.asarray(self._weights) / total)
        # Rounding may leave the last bound just under 1, and a draw above it.
        self._bounds[np.flatnonzero(self._weights)[-1] :] = 1.0
        self._random = np.random.Generator(np.random.PCG64(seed))

    def __len__(self) -> int:
        return len(self._weights)

    def draw(self, n: int) -> list[int]:
        """The next n indices, independent of how they are split over calls."""
        return [int(i) for i in np.searchsorted(self._bounds, self._random.random(n), "right")]

    def state_dict(self) -> dict[str, Any]:
        """Where the drawing stands, as plain JSON values."""
        return {"weights": self._weights, "random": self._random.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: the state is of other weights.
        """
        if list(state["weights"]) != self._weights:
            raise ValueError(
                f"the state is of {len(state['weights'])} other weights, not of these "
                f"{len(self._weights)}"
            )
        self._random.bit_generator.state = dict(state["random"])
