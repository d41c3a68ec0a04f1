"""Which lessons make up each batch, and how much each weighs in it.

A lesson's influence is to be proportional to its weight, once: multiplying a loss by w and drawing
its example w times as often would give w squared. And every lesson is to be seen, however light.
So epochs alternate:

- a **covering** epoch holds each lesson once, shuffled, weighing w_i / mean(w) in its batch;
- a **drawn** epoch holds as many draws with probability w_i / sum(w), each weighing 1; a lesson
  drawn k times into a batch is computed once and weighs k.

Both give lesson i the expected share w_i / sum(w). Adam takes a step of much the same size whatever
the scale of a gradient (so weights cannot act where a batch holds one lesson alone), which is what
the drawn epochs are for. Where all weights are equal, every epoch covers: it is the same
expectation with less variance. Knows indices and weights, not examples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shammah.feedback.sampler import WeightedSampler


@dataclass(frozen=True, slots=True)
class Batch:
    """(index, weight in the batch) of lessons, and the indices of replayed ones, which weigh 1."""

    lessons: tuple[tuple[int, float], ...]
    replay: tuple[int, ...]


class LessonBatches:
    """Batches of one epoch after the other, from a seed."""

    def __init__(
        self,
        weights: Sequence[float],
        *,
        replay: int,
        batch_size: int,
        replay_share: float,
        seed: int,
    ) -> None:
        """
        Args:
            weights: one above zero for each lesson.
            replay: how many earlier lessons there are to replay.
            batch_size: examples in a batch.
            replay_share: share of a batch that is replayed, if there is anything to replay.
        """
        self._weights = np.asarray(weights, dtype=np.float64)
        self._replay = replay
        self._slots = (
            max(1, batch_size - round(batch_size * replay_share)) if replay else batch_size
        )
        self._replay_slots = batch_size - self._slots
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._sampler = WeightedSampler(list(weights), seed)
        self._equal = bool(np.all(self._weights == self._weights[0]))

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch."""
        return -(-len(self._weights) // self._slots)

    def epoch(self, number: int) -> list[Batch]:
        """The batches of epoch `number`, counted from 0. Epochs are asked for in order."""
        count = len(self._weights)
        covering = self._equal or number % 2 == 0
        order = self._random.permutation(count) if covering else self._sampler.draw(count)
        relative = self._weights / self._weights.mean()
        # Parts of nearly equal size: a last batch of one lesson would be a step of its own.
        parts = np.array_split(np.asarray(order), self.per_epoch)
        replayed = self._replayed([len(part) for part in parts])
        batches = []
        for part, earlier in zip(parts, replayed, strict=True):
            if covering:
                members = [(int(index), float(relative[index])) for index in part]
            else:
                members = [(int(index), float(n)) for index, n in sorted(Counter(part).items())]
            batches.append(Batch(tuple(members), earlier))
        return batches

    def _replayed(self, lessons: Sequence[int]) -> list[tuple[int, ...]]:
        """Earlier lessons for batches that hold so many new ones: all before any twice."""
        sizes = [round(n * self._replay_slots / self._slots) for n in lessons]
        indices: list[int] = []
        while len(indices) < sum(sizes):
            indices += self._random.permutation(self._replay).tolist()
        groups, start = [], 0
        for size in sizes:
            # A batch may be larger than what there is to replay; the same twice adds nothing.
            groups.append(tuple(dict.fromkeys(indices[start : start + size])))
            start += size
        return groups

    def state_dict(self) -> dict[str, Any]:
        """Where the random numbers stand, as plain JSON values."""
        return {
            "random": self._random.bit_generator.state,
            "sampler": self._sampler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: the state is of other weights.
        """
        self._random.bit_generator.state = state["random"]
        self._sampler.load_state_dict(state["sampler"])
