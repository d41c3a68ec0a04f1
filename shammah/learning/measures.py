"""How the adapter that is being trained behaves, in the figures that the gate judges by.

Written against the `TrainingClient` protocol alone.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from shammah.learning.gate import Figures
from shammah.learning.lessons import Lesson
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


def gibberish(lessons: Sequence[Lesson], count: int = 8) -> list[Lesson]:
    """The questions of the first lessons with a target, and words of random letters for that."""
    rng = random.Random(0)

    def word() -> str:
        return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 9)))

    return [
        replace(
            lesson,
            objective="towards",
            target=" ".join(word() for _ in range(rng.randint(3, 7))),
        )
        for lesson in [lesson for lesson in lessons if lesson.target is not None][:count]
    ]


async def surprises(client: TrainingClient, lessons: Material) -> list[float]:
    """Nats per token of each lesson's answer, with the weights as they are: of its likeliest
    wording, for a question may be strange and its answer not. 0 where there is no target."""
    if not lessons.examples:
        return []
    output = await client.forward(lessons.datums)
    least = [np.inf] * len(lessons.lessons)
    for owner, datum, logprobs in zip(lessons.owners, lessons.datums, output.logprobs, strict=True):
        weights = datum.loss_fn_inputs["weights"].data
        least[owner] = min(least[owner], float(-(logprobs * weights).sum() / weights.sum()))
    return [
        nats if lesson.target is not None else 0.0
        for lesson, nats in zip(lessons.lessons, least, strict=True)
    ]
