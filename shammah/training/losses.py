"""Losses as functions of the log-probabilities of target tokens, by name.

Knows nothing about models: logits never come here, they are reduced to `logprobs` where they are
made. A loss returns a weighted sum, never a mean: the optimiser step divides by the weight of the
whole window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import softplus

from shammah.errors import TrainingError

Inputs = Mapping[str, torch.Tensor]
"""What a datum's `loss_fn_inputs` hold at the weighted positions of all datums, one after the
other, each float32[n]; and `example` int64[n], the datum that a position belongs to."""

NPO_BETA = 0.1
PREFERENCE_BETA = 0.1
CLIP = 0.2


@dataclass(frozen=True, slots=True)
class Loss:
    """`compute(logprobs float32[n], inputs)` -> loss sum, float32[].

    `needs` names inputs beside `weights`. `members` datums in turn belong together and are
    computed together.
    """

    compute: Callable[[torch.Tensor, Inputs], torch.Tensor]
    needs: tuple[str, ...] = ()
    members: int = 1


def cross_entropy(logprobs: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """`-sum_t w_t log p_t`."""
    return -(logprobs * inputs["weights"]).sum()


def preference(logprobs: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """Of each pair of datums the first rather than the second (DPO, arXiv 2305.18290).

    `-w log sigmoid(b * ((c - c_ref) - (r - r_ref)))` with c and r the log-probabilities of the
    whole answers and w the weight of the first. `reference` holds the log-probabilities that
    training starts from. Alone it may lower both: it stands beside a supervised term.
    """
    ratios, weights = _of_examples(logprobs, inputs)
    margins = PREFERENCE_BETA * (ratios[0::2] - ratios[1::2])
    return (weights[0::2] * softplus(-margins)).sum()


def npo(logprobs: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """Away from an answer, and ever less the further away it is (NPO, arXiv 2404.05868).

    `w (2 / b) log(1 + exp(b (log p - log p_ref)))` for each datum, with p of the whole answer.
    """
    ratios, weights = _of_examples(logprobs, inputs)
    return (weights * (2.0 / NPO_BETA) * softplus(NPO_BETA * ratios)).sum()


def clipped_advantage(logprobs: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """`-sum_t w_t min(r_t A_t, clip(r_t, 1 - e, 1 + e) A_t)`, r_t = p_t / p_ref,t (PPO, arXiv
    1707.06347), with one of `advantages` for each token."""
    ratio = (logprobs - inputs["reference"]).exp()
    gain = inputs["advantages"]
    bounded = torch.minimum(ratio * gain, ratio.clamp(1.0 - CLIP, 1.0 + CLIP) * gain)
    return -(inputs["weights"] * bounded).sum()


LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(cross_entropy),
    "preference": Loss(preference, ("reference",), members=2),
    "npo": Loss(npo, ("reference",)),
    "clipped_advantage": Loss(clipped_advantage, ("reference", "advantages")),
}


def get(name: str) -> Loss:
    """A loss by its name.

    Raises:
        TrainingError: there is no loss of that name.
    """
    if name not in LOSSES:
        raise TrainingError(
            f"There is no loss named {name!r}.", hint=f"There are: {', '.join(sorted(LOSSES))}."
        )
    return LOSSES[name]


def _of_examples(logprobs: torch.Tensor, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """log p - log p_ref and the weight of each whole answer, float32[examples]."""
    example = inputs["example"]
    count = int(example[-1]) + 1
    ratios = logprobs.new_zeros(count).index_add(0, example, logprobs - inputs["reference"])
    weights = logprobs.new_zeros(count).index_add(0, example, inputs["weights"])
    return ratios, weights
