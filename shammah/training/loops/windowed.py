"""What the methods share that learn from pairs in windows: their order, and what tells them apart.

Knows pairs and how many there are, no loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shammah.training.loops.pairs import Pair, Windows, digest


class Windowed:
    """The part of a `Method` whose steps follow from the seed and their number alone.

    Args:
        kind: what is done with them, with all that shapes the steps beside the numbers below.
        count: things to learn from.
        material: what the mark is of: what is learned from and what is held out, as pairs.
        batch_size: things of a pass. accumulation: passes of an optimiser step.

    Raises:
        TrainingError: there is nothing to learn from, or no such size.
    """

    def __init__(
        self,
        kind: str,
        count: int,
        material: Sequence[Sequence[Pair]],
        *,
        batch_size: int,
        accumulation: int,
        seed: int,
    ) -> None:
        self._windows = Windows(count, batch_size, accumulation, seed)
        told = " ".join(digest(pairs) for pairs in material)
        self._mark = f"{kind} {batch_size} {accumulation} {seed} {told}"

    @property
    def steps_per_epoch(self) -> int:
        return self._windows.per_epoch

    def mark(self) -> str:
        """See `Method.mark`."""
        return self._mark

    def state_dict(self) -> dict[str, Any]:
        """See `Method.state_dict`: nothing, as a step says which are its own."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Method.load_state_dict`."""
