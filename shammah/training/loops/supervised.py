"""Supervised fine-tuning: examples are learned by a loss that has a name, or by a mixture.

A window of `batch_size` examples makes one optimiser step, normalised by the weight of all of it,
however it is divided for the computation. The order is a function of the seed and the epoch alone,
so that a run that goes on needs no other state than its step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from shammah.errors import TrainingError
from shammah.ports.datum import Datum
from shammah.ports.training_client import TrainingClient
from shammah.training import losses
from shammah.training.datums import datum, reweighted
from shammah.training.loops.method import StepFigures
from shammah.training.packing import pack_groups

if TYPE_CHECKING:
    from shammah.datasets.formatters.base import ChatExample
    from shammah.renderers.base import Renderer


class Supervised:
    """A `Method`.

    Its evaluation has, on what is held out, `nll_per_token`, `exact` (the share of examples whose
    every token is the likeliest, which greedy decoding would give as they are), `loss` where it is
    another than cross-entropy, and what that loss reports.

    Args:
        datums: what is learned; of a loss of pairs, one after the other.
        held_out: what is evaluated on.
        loss: as `losses.get` takes it: `cross_entropy`, `0.9 cross_entropy, 0.1 chirality`.
        batch_size: examples in a step, or pairs.
        tokens_at_once: tokens of one call of the client at most; 0 leaves it to the client to
            divide a window. The gradients are the same.
        seed: of the order.

    Raises:
        TrainingError: there are no examples, there is no such loss, or a part of it would be a
            constant on all of them.
    """

    name = "supervised"

    def __init__(
        self,
        datums: Sequence[Datum],
        *,
        held_out: Sequence[Datum] = (),
        loss: str = "cross_entropy",
        batch_size: int = 8,
        tokens_at_once: int = 0,
        seed: int = 0,
    ) -> None:
        self._datums = list(datums)
        self._held_out = list(held_out)
        self._loss = loss
        self._batch_size = batch_size
        self._tokens_at_once = tokens_at_once
        self._seed = seed
        found = losses.get(loss)
        self._members = found.members
        if not self._datums or batch_size < 1:
            raise TrainingError(f"{len(self._datums)} examples in batches of {batch_size}.")
        if len(self._datums) % self._members:
            raise TrainingError(
                f"{loss} takes {self._members} datums at a time, not {len(self._datums)}."
            )
        found.check_material(self._datums)
        self._order: tuple[int, list[list[int]]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self._datums) // (self._members * self._batch_size))

    def mark(self) -> str:
        """See `Method.mark`. What is held out is no part of it: it teaches nothing."""
        mark = hashlib.sha256(repr((self._loss, self._batch_size, self._seed)).encode())
        for one in self._datums:
            mark.update(np.asarray(one.model_input.tokens, dtype=np.int64).tobytes())
            for name, tensor in sorted(one.loss_fn_inputs.items()):
                mark.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
                mark.update(tensor.data.tobytes())
        return mark.hexdigest()

    async def step(self, client: TrainingClient, number: int) -> StepFigures:
        """See `Method.step`."""
        window = [self._datums[index] for index in self._window(number)]
        loss = weight = 0.0
        tokens = 0
        told: dict[str, float] = {}
        for group in self._groups(window):
            output = await client.forward_backward(group, self._loss)
            loss, weight = loss + output.loss, weight + output.weight
            tokens += output.tokens
            for name, value in output.metrics.items():
                told[name] = told.get(name, 0.0) + value * output.weight
        if weight <= 0:
            raise TrainingError("The examples of a step weigh nothing.")
        return StepFigures(
            loss / weight, tokens, {name: value / weight for name, value in told.items()}
        )

    async def evaluate(self, client: TrainingClient) -> Mapping[str, float]:
        """See `Method.evaluate`."""
        if not self._held_out:
            return {}
        output = await client.forward(self._held_out, self._loss)
        surprise = tokens = 0.0
        for one, logprobs in zip(self._held_out, output.logprobs, strict=True):
            targets, found = nll(one, logprobs)
            surprise, tokens = surprise + found, tokens + targets
        figures = {"nll_per_token": surprise / tokens, "exact": float(np.mean(output.greedy))}
        if self._loss != "cross_entropy":
            figures["loss"] = output.mean_loss
        return {**output.metrics, **figures}

    def state_dict(self) -> dict[str, Any]:
        """See `Method.state_dict`: nothing, as the step says it all."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Method.load_state_dict`."""
        if state:
            raise TrainingError(f"A supervised run keeps no {', '.join(state)}.")

    def _window(self, number: int) -> list[int]:
        """Indices of the examples of a step."""
        epoch, window = divmod(number, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            random = np.random.Generator(np.random.PCG64([self._seed, epoch]))
            units = random.permutation(len(self._datums) // self._members)
            # Parts of nearly equal size: a last one of one example would be a step of its own.
            parts = np.array_split(units, self.steps_per_epoch)
            self._order = (
                epoch,
                [
                    [
                        int(unit) * self._members + each
                        for unit in part
                        for each in range(self._members)
                    ]
                    for part in parts
                ],
            )
        return self._order[1][window]

    def _groups(self, window: Sequence[Datum]) -> Iterable[list[Datum]]:
        if not self._tokens_at_once:
            return [list(window)]
        lengths = [len(one.model_input) for one in window]
        packs = pack_groups(lengths, self._tokens_at_once, self._members)
        return [[window[index] for index in members] for members in packs]


def nll(one: Datum, logprobs: np.ndarray[Any, Any]) -> tuple[int, float]:
    """How many positions of an example are learned, and `-sum log p` over them; where there are
    several targets at a position, the mean by their weights."""
    inputs = one.loss_fn_inputs
    shape = logprobs.shape
    weights = inputs["weights"].data if "weights" in inputs else np.ones(shape, dtype=np.float32)
    wide = weights.reshape(len(weights), -1).astype(np.float64)
    total = wide.sum(1)
    learned = total > 0
    found = (wide * logprobs.reshape(wide.shape)).sum(1)[learned] / total[learned]
    return int(learned.sum()), float(-found.sum())


def datums_of(
    examples: Iterable[ChatExample],
    renderer: Renderer,
    *,
    weigh: Literal["tokens", "examples"] = "tokens",
    max_tokens: int = 0,
) -> tuple[list[Datum], int]:
    """Examples for `Supervised`, and how many were left out for being longer than `max_tokens` or
    for having no answer.

    Args:
        weigh: each answer token alike, or each example alike, however long its answer is.
        max_tokens: 0 takes any length.
    """
    made: list[Datum] = []
    left_out = 0
    for example in examples:
        if example.answer is None:
            left_out += 1
            continue
        rendered = renderer.supervised(example.messages)
        if max_tokens and len(rendered.tokens) > max_tokens:
            left_out += 1
            continue
        one = datum(rendered)
        if weigh == "tokens":
            count = int(np.count_nonzero(one.loss_fn_inputs["weights"].data))
            one = reweighted(one, float(count))
        made.append(one)
    return made, left_out
