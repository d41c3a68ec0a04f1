"""Learning to score answers from pairs: a Bradley-Terry head, or the model's own comparison.

`RewardMethod` needs a client with a scalar head (`training.reward_client`) and pairs made by
`training.reward_model.scored_pairs`. `ComparisonMethod` runs on any client and teaches the model to
say which of two answers is the better one, each pair in both orders (`training.comparison`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from shammah.errors import TrainingError
from shammah.ports.training_client import ForwardBackwardOutput, TrainingClient
from shammah.training import losses
from shammah.training.comparison import Comparison, judged, summary
from shammah.training.loops.method import StepFigures
from shammah.training.loops.pairs import Pair
from shammah.training.loops.windowed import Windowed
from shammah.training.reward_client import RewardTrainingClient


class RewardMethod(Windowed):
    """A `Method` for `run_loop`. Measures, of pairs: `accuracy`, the share whose chosen answer has
    the higher score; `margin`, by how much on average; `score_chosen` and `score_rejected`, means.
    """

    name = "reward"

    def __init__(
        self,
        pairs: Sequence[Pair],
        held_out: Sequence[Pair] = (),
        *,
        loss: str = "reward_bradley_terry",
        batch_size: int = 16,
        accumulation: int = 1,
        seed: int = 0,
    ) -> None:
        """
        Args:
            pairs: what is learned from.
            held_out: pairs that are evaluated on alone.
            loss: of pairs of scores: `reward_bradley_terry`, with `center` or without.
            batch_size: pairs of a pass. accumulation: passes of an optimiser step.

        Raises:
            TrainingError: there is no pair, or no such loss, or it takes no scores.
        """
        made = losses.get(loss)
        if made.members != 2 or made.needs:
            raise TrainingError(
                f"{loss} is no loss of scores.", hint="reward_bradley_terry is one."
            )
        super().__init__(
            loss, len(pairs), (pairs, held_out),
            batch_size=batch_size, accumulation=accumulation, seed=seed,
        )  # fmt: skip
        self._loss, self._pairs, self._held_out = loss, list(pairs), list(held_out)

    async def step(self, client: TrainingClient, number: int) -> StepFigures:
        _scoring(client)
        outputs = [
            await client.forward_backward(
                [each for index in members for each in self._pairs[index].datums], self._loss
            )
            for members in self._windows.batches(number)
        ]
        loss, figures = _figures(outputs)
        return StepFigures(loss, sum(output.tokens for output in outputs), figures)

    async def evaluate(self, client: TrainingClient) -> Mapping[str, float]:
        _scoring(client)
        if not self._held_out:
            return {}
        group = [each for pair in self._held_out for each in pair.datums]
        loss, figures = _figures([await client.forward(group, self._loss)])
        return {"loss": loss, **figures}


class ComparisonMethod(Windowed):
    """A `Method` for `run_loop`: cross-entropy of the right label, each pair in both orders.

    Measures of held-out pairs are those of `comparison.summary`: `accuracy`, `margin`,
    `position_bias`, `agreement`; `loss` is per token.
    """

    name = "reward"

    def __init__(
        self,
        comparisons: Sequence[Comparison],
        held_out: Sequence[Comparison] = (),
        *,
        batch_size: int = 8,
        accumulation: int = 1,
        seed: int = 0,
    ) -> None:
        """
        Args:
            comparisons: what is learned from; `comparison.comparison_of` makes them.
            held_out: those that are evaluated on alone.
            batch_size: pairs of a pass. accumulation: passes of an optimiser step.

        Raises:
            TrainingError: there is none.
        """
        super().__init__(
            "comparison", len(comparisons), [_ordered(part) for part in (comparisons, held_out)],
            batch_size=batch_size, accumulation=accumulation, seed=seed,
        )  # fmt: skip
        self._comparisons, self._held_out = list(comparisons), list(held_out)

    async def step(self, client: TrainingClient, number: int) -> StepFigures:
        loss = weight = 0.0
        tokens = 0
        for members in self._windows.batches(number):
            group = [each for index in members for each in self._comparisons[index].right]
            output = await client.forward_backward(group)
            loss, weight = loss + output.loss, weight + output.weight
            tokens += output.tokens
        return StepFigures(loss / weight, tokens)

    async def evaluate(self, client: TrainingClient) -> Mapping[str, float]:
        if not self._held_out:
            return {}
        right = await client.forward([each for one in self._held_out for each in one.right])
        return {"loss": right.mean_loss, **summary(await judged(client, self._held_out))}


def _ordered(comparisons: Sequence[Comparison]) -> list[Pair]:
    return [Pair(a, b) for each in comparisons for a, b in each.orders]


def _scoring(client: TrainingClient) -> None:
    if not isinstance(client, RewardTrainingClient):
        raise TrainingError(
            "A reward model needs a client with a scalar head.",
            hint="RewardTrainingClient is one; ComparisonMethod runs on any.",
        )


def _figures(outputs: Sequence[ForwardBackwardOutput]) -> tuple[float, dict[str, float]]:
    """The mean loss, and what the scores of chosen and rejected in turn show."""
    scores: NDArray[np.float64] = np.array(
        [each.sum(dtype=np.float64) for output in outputs for each in output.logprobs]
    )
    chosen, rejected = scores[0::2], scores[1::2]
    weight = sum(output.weight for output in outputs)
    return sum(output.loss for output in outputs) / weight, {
        "accuracy": float((chosen > rejected).mean()),
        "margin": float((chosen - rejected).mean()),
        "score_chosen": float(chosen.mean()),
        "score_rejected": float(rejected.mean()),
    }
