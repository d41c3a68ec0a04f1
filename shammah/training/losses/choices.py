"""What a structured answer leaves open at each place, as a datum carries it, and how likely each
option is.

A slot is a place where a word is chosen: the label of a relation, the claim that it points to, a
token of a cited id. Its options are the words that could stand there, each as a path: targets
(position, token) whose log-probabilities add up to that of the option, given the answer before it.
Where several words begin alike and leave the answer's own at the same token, only what they have
together is known, and each gets its `share` of it. Knows arrays, no text and no tokenizer.

| input of a datum | holds |
| --- | --- |
| `slots` int64[S, 3] | kind, number of the relation or citation, claim that a relation is from |
| `options` int64[M, 2] | slot, value: a label (0 supports, 1 refutes), a claim, or just a number |
| `shares` float32[M] | what part of its path's probability belongs to an option |
| `paths` int64[L, 3] | option, position, token |
| `shape` int64[4] | V of the answer; V*, b0* and b1* of the wanted graph |
| `skew` float32[] | the wanted skew |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shammah.errors import TrainingError
from shammah.ports.datum import Datum
from shammah.training.losses.loss import Inputs

LABEL, TARGET, CITATION = 0, 1, 2
"""Kinds of slots."""
ARRAYS = {"slots": 3, "options": 2, "shares": 0, "paths": 3}
"""What carries them, and how many columns each has."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """`pairs[i]`: positions and tokens of datum i whose log-probabilities are wanted; `arrays`: all
    datums' slots, options and paths together, counted through."""

    pairs: tuple[tuple[NDArray[np.int64], NDArray[np.int64]], ...]
    arrays: dict[str, NDArray[Any]]


def gathered(datums: Sequence[Datum]) -> Gathered:
    """What structured losses take of some datums: to `slots` a column with the datum is added;
    `paths` keeps its option alone.

    Raises:
        TrainingError: a datum carries nothing of the kind.
    """
    pairs, slots, options, shares, paths = [], [], [], [], []
    seen_slots = seen_options = 0
    for number, datum in enumerate(datums):
        for name in ARRAYS:
            if name not in datum.loss_fn_inputs:
                raise TrainingError(
                    f"A structured loss needs {name!r} with every example.",
                    hint="training.structures.structured makes such examples.",
                )
        own = [datum.loss_fn_inputs[name].data for name in ARRAYS]
        slot, option, share, path = own
        slots.append(np.column_stack([slot, np.full(len(slot), number)]))
        options.append(option + np.array([seen_slots, 0]))
        shares.append(share)
        paths.append(path[:, 0] + seen_options)
        pairs.append((path[:, 1].astype(np.int64), path[:, 2].astype(np.int64)))
        seen_slots, seen_options = seen_slots + len(slot), seen_options + len(option)
    arrays = {
        "slots": np.concatenate(slots),
        "options": np.concatenate(options),
        "shares": np.concatenate(shares),
        "paths": np.concatenate(paths),
    }
    return Gathered(tuple(pairs), arrays)


def require(datums: Sequence[Datum], kinds: Sequence[int], what: str) -> None:
    """That there is something to choose.

    Raises:
        TrainingError: no datum has a slot of these kinds.
    """
    for datum in datums:
        found = datum.loss_fn_inputs.get("slots")
        if found is None:
            gathered([datum])
        elif len(found) and np.isin(found.data[:, 0], kinds).any():
            return
    raise TrainingError(f"None of {len(datums)} examples has {what}: the loss is a constant.")


def slot_logprobs(inputs: Inputs) -> torch.Tensor:
    """log of the probability of each value of each slot, [S, values]; -inf where a value is no
    option of a slot. Not brought to a sum of one: the rest is what is no option."""
    options, shares = inputs["options"], inputs["shares"]
    found = inputs["candidates"].new_zeros(len(options))
    found = found.index_add(0, inputs["paths"], inputs["candidates"])
    found = found + shares.to(found.dtype).log()
    width = max(2, int(options[:, 1].max()) + 1) if len(options) else 2
    table = found.new_full((len(inputs["slots"]), width), -torch.inf)
    return table.index_put((options[:, 0], options[:, 1]), found)


@dataclass(frozen=True, slots=True)
class Relations:
    """The R relations of one datum: `sources` int64[R], `labels` [R, 2] and `targets` [R, V] as
    log-probabilities."""

    sources: torch.Tensor
    labels: torch.Tensor
    targets: torch.Tensor


def relations(inputs: Inputs, claims: torch.Tensor) -> Iterator[tuple[int, Relations]]:
    """The relations of each datum.

    Args:
        claims: V of each datum, int64[examples].
    """
    table, slots = slot_logprobs(inputs), inputs["slots"]
    for number, count in enumerate(claims.tolist()):
        own = slots[:, 3] == number
        label, target = (
            torch.nonzero(own & (slots[:, 0] == kind))[:, 0] for kind in (LABEL, TARGET)
        )
        labels = table[label, :2]
        targets = table[target, :count]
        if targets.shape[1] < count:
            missing = count - targets.shape[1]
            targets = torch.nn.functional.pad(targets, (0, missing), value=-torch.inf)
        yield number, Relations(slots[target, 2], labels, targets)
