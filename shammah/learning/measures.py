"""How the adapter that is being trained behaves, in the figures that the gate judges by.

Written against the `TrainingClient` protocol alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from shammah.learning.gate import Figures
from shammah.learning.lessons import Lesson
from shammah.learning.letter_order import LetterOrder, Reordered, reordered
from shammah.learning.material import Material
from shammah.ports.datum import Datum, ModelInput
from shammah.ports.sampling_client import SamplingParams
from shammah.ports.training_client import ForwardBackwardOutput, TrainingClient

LOOKED_AT = 8
"""Answers that are written out to see whether they end."""
LONGEST = 256
"""Tokens of such an answer at most; and one of the base's own that is longer is not looked at."""


@dataclass(frozen=True, slots=True)
class Probes:
    """What is measured: `earlier` lessons, and `anchors` that training does not see, as examples
    with the base's words for targets, beside `others` that the adapter will not be asked;
    `stop_tokens` end an answer."""

    earlier: Material
    anchors: Sequence[Datum]
    stop_tokens: tuple[int, ...]
    others: int = 0

    async def figures(self, client: TrainingClient) -> Figures:
        """The behaviour with the weights as they are."""
        held: list[bool] = []
        if self.earlier.datums:
            output = await client.forward(self.earlier.datums)
            held = self.earlier.shown(output.greedy)
        anchors = ForwardBackwardOutput(0.0, 0.0, 0, (), ())
        if self.anchors:
            anchors = await client.forward(self.anchors)
        # An answer that comes out as before ends as before; only the others can go astray.
        changed = [
            anchor
            for anchor, same in zip(self.anchors, anchors.greedy, strict=True)
            if not same and len(anchor.model_input) < LONGEST
        ][:LOOKED_AT]
        endless = [await self._endless(client, anchor) for anchor in changed]
        return Figures(
            earlier=len(self.earlier.lessons),
            held=sum(held),
            anchors=len(self.anchors) + self.others,
            asked=len(self.anchors),
            unchanged=sum(anchors.greedy) + self.others,
            anchor_loss=anchors.mean_loss,
            looked_at=len(changed),
            endless=sum(endless),
        )

    async def _endless(self, client: TrainingClient, anchor: Datum) -> bool:
        first = int(np.flatnonzero(anchor.loss_fn_inputs["weights"].data)[0])
        prompt = ModelInput.of(anchor.model_input.tokens[: first + 1])
        params = SamplingParams(max_tokens=LONGEST, stop_tokens=self.stop_tokens)
        (sample,) = await client.sampler.sample(prompt, params)
        return sample.stop_reason == "length"


Beside = tuple[Reordered, Sequence[Datum]]
"""An answer with its letters in other orders, and the examples of these, its own first."""


def beside_other_orders(
    lessons: Sequence[Lesson],
    letters: frozenset[str],
    render: Callable[[Sequence[Lesson]], Material],
) -> list[Beside]:
    """Answers beside other orders of their letters, after all that was said before them; those too
    long for the model are left out."""
    found: list[Beside] = []
    for answer in reordered(lessons, letters):
        made = render((answer.lesson, *answer.others))
        if not made.problems:
            fullest = dict(zip(made.owners, made.datums, strict=True))
            found.append((answer, list(fullest.values())))
    return found


async def letter_orders(client: TrainingClient, answers: Sequence[Beside]) -> list[LetterOrder]:
    """What answers cost with the weights as they are, beside their letters in other orders."""
    datums = [datum for _, given in answers for datum in given]
    if not datums:
        return []
    output = await client.forward(datums)
    nats = iter(
        [
            -float(logprobs[datum.loss_fn_inputs["weights"].data > 0].sum())
            for datum, logprobs in zip(datums, output.logprobs, strict=True)
        ]
    )
    found = []
    for answer, given in answers:
        own, *others = (next(nats) for _ in given)
        found.append(
            LetterOrder(lesson=answer.place, letters=answer.letters, nats=own, others=tuple(others))
        )
    return found
