"""Pairs of answers: which of them make up each step, and how a file's examples become them.

Knows datums and a renderer, no loss and no model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shammah.errors import TrainingError
from shammah.ports.datum import Datum
from shammah.training.datums import datum, datum_weight, reweighted

if TYPE_CHECKING:
    from shammah.datasets.formatters.base import ChatExample
    from shammah.messages import Conversation
    from shammah.renderers.base import Renderer

BESIDE = 2.0**-40
"""What the second of a pair weighs beside its first. It has to weigh something to be looked at; so
little is nothing in a sum of float32, and a window weighs what its pairs weigh."""


@dataclass(frozen=True, slots=True)
class Pair:
    """An answer and one that is not as good. A pair weighs what `chosen` weighs."""

    chosen: Datum
    rejected: Datum

    @property
    def datums(self) -> tuple[Datum, Datum]:
        """As losses of pairs take them."""
        weight = datum_weight(self.chosen) * BESIDE
        return self.chosen, reweighted(self.rejected, weight)


def pairs_of(examples: Iterable[ChatExample], renderer: Renderer) -> list[Pair]:
    """Pairs whose last answers are learned.

    Raises:
        TrainingError: an example has no rejected answer, or no chosen one.
        InputError, EmptyLessonError: a conversation cannot be rendered, or has no answer.
    """
    return made_pairs(examples, lambda conversation: datum(renderer.supervised(conversation)))


def made_pairs(
    examples: Iterable[ChatExample], make: Callable[[Conversation], Datum]
) -> list[Pair]:
    """Pairs of what is made of the chosen and of the rejected conversation.

    Raises:
        TrainingError: an example has no rejected answer, or no chosen one.
    """
    found = []
    for number, example in enumerate(examples, start=1):
        if example.answer is None or example.rejected is None:
            missing = "answer" if example.answer is None else "rejected answer"
            raise TrainingError(
                f"Example {number} has no {missing}{example.place and f' ({example.place})'}.",
                hint="A preference is learned from pairs: messages, and rejected ones.",
            )
        found.append(Pair(make(example.messages), make(example.rejected)))
    return found


@dataclass(frozen=True, slots=True)
class Windows:
    """Which of `count` things each optimiser step learns from: shuffled anew in each epoch, every
    one once. A step's are a function of the seed and its number."""

    count: int
    batch_size: int
    accumulation: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("count", "batch_size", "accumulation"):
            if getattr(self, name) < 1:
                raise TrainingError(f"A {name} of {getattr(self, name)} teaches nothing.")

    @property
    def per_epoch(self) -> int:
        """Steps in an epoch."""
        return -(-self.count // (self.batch_size * self.accumulation))

    def batches(self, number: int) -> list[NDArray[np.int64]]:
        """Indices in batches of at most `batch_size`, of step `number` counted from 0."""
        epoch, place = divmod(number, self.per_epoch)
        order = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(self.count)
        # Parts of nearly equal size: a last one of a single pair would be a step of its own.
        window = np.array_split(order, self.per_epoch)[place]
        return np.array_split(window, -(-len(window) // self.batch_size))


def digest(pairs: Sequence[Pair]) -> str:
    """Tells pairs apart from others."""
    sum_of = hashlib.sha256()
    for pair in pairs:
        for each in (pair.chosen, pair.rejected):
            sum_of.update(np.asarray(each.model_input.tokens, dtype=np.int64).tobytes() + b"/")
            for name, tensor in sorted(each.loss_fn_inputs.items()):
                sum_of.update(f"{name}{tensor.shape}".encode() + tensor.data.tobytes())
    return sum_of.hexdigest()
