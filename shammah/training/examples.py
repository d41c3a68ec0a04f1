"""An example: what is to be learned, as one or more loss terms that are trained together.

Knows datums and the names of losses, not what they compute.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from shammah.ports.datum import Datum, TensorData
from shammah.ports.training_client import TrainingClient
from shammah.training import losses
from shammah.training.datums import reweighted

Shows = Literal["given", "avoided"]


@dataclass(frozen=True, slots=True)
class Term:
    """Datums that one loss takes together, and how much it counts beside the other terms."""

    loss: str
    datums: tuple[Datum, ...]
    weight: float = 1.0

    def weighing(self, weight: float) -> list[Datum]:
        """The datums with token weights that sum to `weight` times the term's own."""
        return [reweighted(datum, weight * self.weight) for datum in self.datums]


@dataclass(frozen=True, slots=True)
class Example:
    """`terms[0].datums[0]` is what the example is judged by: it is learned where greedy decoding
    gives that answer, or, where it `shows` as avoided, does not."""

    terms: tuple[Term, ...]
    shows: Shows = "given"

    @property
    def judged(self) -> Datum:
        return self.terms[0].datums[0]

    def learned(self, greedy: bool) -> bool:
        """Whether it is learned, given that greedy decoding gives its answer or does not."""
        return greedy == (self.shows == "given")

    @property
    def datums(self) -> tuple[Datum, ...]:
        """Those of all terms."""
        return tuple(datum for term in self.terms for datum in term.datums)


def supervised(datum: Datum) -> Example:
    """Towards an answer, by cross-entropy."""
    return Example((Term("cross_entropy", (datum,)),))


def parts(
    examples: Sequence[Example], shares: Sequence[tuple[int, float]]
) -> dict[str, list[tuple[Datum, int | None]]]:
    """The datums of some examples by the loss that takes them, and which example each tells of.

    Args:
        shares: index of an example, and what it weighs.
    """
    found: dict[str, list[tuple[Datum, int | None]]] = {}
    for index, share in shares:
        for number, term in enumerate(examples[index].terms):
            datums = term.weighing(share)
            told = [index if number == 0 else None, *[None] * (len(datums) - 1)]
            found.setdefault(term.loss, []).extend(zip(datums, told, strict=True))
    return found


def material(
    examples: Sequence[Example], weights: Sequence[float], others: Sequence[Datum], shaped: object
) -> str:
    """Tells examples, weights, other datums and what shapes the steps apart from others."""
    mark = hashlib.sha256()
    for datum in [*(datum for example in examples for datum in example.datums), *others]:
        mark.update(np.asarray(datum.model_input.tokens, dtype=np.int64).tobytes())
        mark.update(datum.loss_fn_inputs["target_tokens"].data.tobytes())
    kinds = [[term.loss for term in example.terms] for example in examples]
    mark.update(repr((weights, kinds)).encode())
    mark.update(repr(shaped).encode())
    return mark.hexdigest()


async def with_references(client: TrainingClient, examples: Sequence[Example]) -> list[Example]:
    """The examples with `reference`, the log-probabilities that the client gives now, in the terms
    whose loss needs them and does not have them."""
    wanted = [
        datum
        for example in examples
        for term in example.terms
        if "reference" in losses.get(term.loss).needs
        for datum in term.datums
        if "reference" not in datum.loss_fn_inputs
    ]
    if not wanted:
        return list(examples)
    output = await client.forward(wanted)
    known = {
        id(datum): replace(
            datum, loss_fn_inputs={**datum.loss_fn_inputs, "reference": TensorData(logprobs)}
        )
        for datum, logprobs in zip(wanted, output.logprobs, strict=True)
    }
    return [
        replace(
            example,
            terms=tuple(
                replace(term, datums=tuple(known.get(id(datum), datum) for datum in term.datums))
                if "reference" in losses.get(term.loss).needs
                else term
                for term in example.terms
            ),
        )
        for example in examples
    ]
