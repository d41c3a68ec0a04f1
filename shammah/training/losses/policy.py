"""Losses of sampled tokens that did better or worse than expected: policy gradients.

`logprobs` of a datum are those that its tokens were drawn with, `advantages` say how much better
each was than the others of its kind (group-relative: the reward minus the mean of its group).
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from shammah.training.losses.loss import Inputs, Loss, Measures


def importance_sampling() -> Loss:
    """`-sum_t w_t (p_t / q_t) A_t` with q the probability that a token was drawn with."""

    def value(logprobs: torch.Tensor, inputs: Inputs) -> tuple[torch.Tensor, Measures]:
        ratio = (logprobs - inputs["logprobs"]).exp()
        loss = -(inputs["weights"] * ratio * inputs["advantages"]).sum()
        return loss, {"ratio": _mean(ratio, inputs)}

    return Loss(value, ("logprobs", "advantages"))


def ppo(
    *,
    clip_low: Annotated[float, Field(ge=0, lt=1)] = 0.2,
    clip_high: Annotated[float, Field(ge=0)] = 0.2,
) -> Loss:
    """`-sum_t w_t min(r_t A_t, clip(r_t, 1 - low, 1 + high) A_t)`, r_t = p_t / q_t (PPO, arXiv
    1707.06347; a higher upper end is DAPO's, arXiv 2503.14476)."""
    return _clipped("logprobs", clip_low, clip_high)


def clipped_advantage(
    *,
    clip_low: Annotated[float, Field(ge=0, lt=1)] = 0.2,
    clip_high: Annotated[float, Field(ge=0)] = 0.2,
) -> Loss:
    """`ppo` where q is `reference`, the log-probabilities that training starts from."""
    return _clipped("reference", clip_low, clip_high)


def _clipped(before: str, low: float, high: float) -> Loss:
    def value(logprobs: torch.Tensor, inputs: Inputs) -> tuple[torch.Tensor, Measures]:
        ratio = (logprobs - inputs[before]).exp()
        gain = inputs["advantages"]
        within = ratio.clamp(1.0 - low, 1.0 + high) * gain
        bounded = torch.minimum(ratio * gain, within)
        clipped = (within < ratio * gain).to(ratio.dtype)
        return -(inputs["weights"] * bounded).sum(), {
            "ratio": _mean(ratio, inputs),
            "clipped": _mean(clipped, inputs),
        }

    return Loss(value, (before, "advantages"))


def _mean(values: torch.Tensor, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    weights = inputs["weights"]
    return (weights * values.detach()).sum(), weights.sum()
