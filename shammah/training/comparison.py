"""Which of two answers is better, as the model itself says: "A" or "B", asked in both orders.

What the model has for a label whatever stands behind it is then seen apart from what it has for an
answer. Of a pair let d1 be log p("A") - log p("B") with the chosen answer as A, and d2 the same
with it as B. Then (d1 - d2) / 2 is the margin, log-odds that the chosen answer is the better one,
and (d1 + d2) / 2 the position bias, log-odds for A that no answer is the reason of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from shammah.errors import TrainingError
from shammah.messages import assistant, user
from shammah.ports.datum import Datum
from shammah.ports.training_client import TrainingClient
from shammah.training.datums import datum

if TYPE_CHECKING:
    from shammah.datasets.formatters.base import ChatExample
    from shammah.messages import Conversation
    from shammah.renderers.base import Renderer

LABELS = ("A", "B")
ASK = "{question}\n\nA: {first}\n\nB: {second}\n\nWhich answer is better, A or B?"


@dataclass(frozen=True, slots=True)
class Comparison:
    """`orders[0]` has the chosen answer as A, `orders[1]` as B; in each stand the question with the
    label "A" for its answer, and with "B"."""

    orders: tuple[tuple[Datum, Datum], tuple[Datum, Datum]]

    @property
    def right(self) -> tuple[Datum, Datum]:
        """With the label of the chosen answer, in each order."""
        return self.orders[0][0], self.orders[1][1]


@dataclass(frozen=True, slots=True)
class Judgement:
    """Log-odds, in nats, that the chosen answer is the better one (`margin`), and for what is shown
    first (`position_bias`)."""

    margin: float
    position_bias: float

    @property
    def probability(self) -> float:
        """That the chosen answer is the better one."""
        return float(1.0 / (1.0 + np.exp(-np.clip(self.margin, -700, 700))))

    @property
    def agrees(self) -> bool:
        """Whether both orders give the same answer as the better one."""
        return abs(self.margin) > abs(self.position_bias)


def comparison_of(example: ChatExample, renderer: Renderer, *, ask: str = ASK) -> Comparison:
    """A pair as the model is asked about it.

    Args:
        ask: with places for `question` (all messages before the answer), `first` and `second`.

    Raises:
        TrainingError: the example has no rejected answer, or no chosen one.
        InputError: the conversation cannot be rendered.
    """
    if example.answer is None or example.rejected_answer is None:
        raise TrainingError(f"An example has no two answers to compare ({example.place or '?'}).")
    said = [message.text for message in example.prompt]
    chosen, rejected = example.answer.text, example.rejected_answer.text

    def asked(first: str, second: str) -> tuple[Datum, Datum]:
        text = ask.format(question="\n\n".join(said), first=first, second=second)
        one, other = (_labelled((user(text),), label, renderer) for label in LABELS)
        return one, other

    return Comparison((asked(chosen, rejected), asked(rejected, chosen)))


async def judged(client: TrainingClient, comparisons: Sequence[Comparison]) -> list[Judgement]:
    """What the model says of each, with the adapter as it is."""
    datums = [each for one in comparisons for order in one.orders for each in order]
    if not datums:
        return []
    output = await client.forward(datums)
    sums = np.array([each.sum(dtype=np.float64) for each in output.logprobs]).reshape(-1, 2, 2)
    odds = sums[:, :, 0] - sums[:, :, 1]
    return [Judgement(float(one - other) / 2, float(one + other) / 2) for one, other in odds]


def summary(judgements: Sequence[Judgement]) -> dict[str, float]:
    """`accuracy`: the share with a margin above 0. `margin`, `position_bias`: means of log-odds.
    `agreement`: the share where both orders say the same.

    Raises:
        TrainingError: there is none.
    """
    if not judgements:
        raise TrainingError("There is no judgement to sum up.")
    return {
        "accuracy": float(np.mean([each.margin > 0 for each in judgements])),
        "margin": float(np.mean([each.margin for each in judgements])),
        "position_bias": float(np.mean([each.position_bias for each in judgements])),
        "agreement": float(np.mean([each.agrees for each in judgements])),
    }


def _labelled(question: Conversation, label: str, renderer: Renderer) -> Datum:
    return datum(renderer.supervised((*question, assistant(label))))
