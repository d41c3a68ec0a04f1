"""Losses of single tokens: how likely they are, and how far that is from a reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from shammah.training.losses.loss import Inputs, Loss, Measures


def cross_entropy() -> Loss:
    """`-sum_t w_t log p_t`."""

    def value(logprobs: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        return -(logprobs * inputs["weights"]).sum()

    return Loss(value)


def mse() -> Loss:
    """`sum_t w_t (log p_t - log q_t)^2` with q of `reference`: the log-probabilities themselves are
    matched, of the targets alone."""

    def value(logprobs: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        return (inputs["weights"] * (logprobs - inputs["reference"]) ** 2).sum()

    return Loss(value, ("reference",))


def kl_divergence(*, direction: Literal["forward", "reverse"] = "reverse") -> Loss:
    """The divergence from reference distributions q, given by their log-probabilities.

    With K targets at a position these are the K tokens that `reference` tells of: all of the
    vocabulary, or the likeliest. What p and q give all other tokens counts as one more, so that the
    value is at most the whole divergence, and is it with all tokens. A position weighs what its
    targets weigh together.

    - reverse: `sum_k p_k log(p_k / q_k)`
    - forward: `sum_k q_k log(q_k / p_k)`

    With one target, a sampled token, its distribution is not known: the value is then
    `q/p - 1 - log(q/p)`, which is not negative and whose mean over tokens drawn from p is the
    reverse divergence (Schulman 2020, "Approximating KL Divergence", k3); forward is
    `(q/p) log(q/p) - q/p + 1`.
    """

    def value(logprobs: torch.Tensor, inputs: Inputs) -> tuple[torch.Tensor, Measures]:
        reference = inputs["reference"]
        position = inputs.get("position")
        if position is None:
            position = torch.arange(len(logprobs), device=logprobs.device)
        else:
            position = torch.unique(position, return_inverse=True)[1]
        count = int(position.max()) + 1 if len(position) else 0

        def summed(values: torch.Tensor) -> torch.Tensor:
            return values.new_zeros(count).index_add(0, position, values)

        weights = summed(inputs["weights"].to(logprobs.dtype))
        alone = summed(torch.ones_like(logprobs)) == 1
        gap = reference - logprobs
        ratio = gap.exp()
        if direction == "reverse":
            sampled = ratio - 1.0 - gap
            known = _bucketed(logprobs, reference, summed)
        else:
            sampled = ratio * gap - ratio + 1.0
            known = _bucketed(reference, logprobs, summed)
        divergence = torch.where(alone, summed(sampled), known)
        total = (weights * divergence).sum()
        return total, {"kl": (total.detach(), weights.sum())}

    return Loss(value, ("reference",), shares=True)


def _bucketed(
    of: torch.Tensor, to: torch.Tensor, summed: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """KL(of || to) over the given tokens and one more that stands for all others."""
    # Of whole distributions nothing is left but rounding, which must not be made much of.
    least = 16 * torch.finfo(of.dtype).eps
    rest_of = (1.0 - summed(of.exp())).clamp(min=least)
    rest_to = (1.0 - summed(to.exp())).clamp(min=least)
    return summed(of.exp() * (of - to)) + rest_of * (rest_of.log() - rest_to.log())
