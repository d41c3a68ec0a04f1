"""Losses of whole answers: one rather than another, towards one, away from one.

With l the log-probability of an answer minus that of the reference, and w its weight (of a pair:
the first one's). `reference` holds the log-probabilities that training starts from.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch.nn.functional import softplus

from shammah.training.losses.loss import Inputs, Loss, Measures, of_examples

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


def dpo(
    *,
    beta: Positive = 0.1,
    variant: Literal["sigmoid", "ipo"] = "sigmoid",
    supervised: NotNegative = 0.0,
) -> Loss:
    """Of each pair of datums the first, c, rather than the second, r.

    - sigmoid: `-w log sigmoid(beta (l_c - l_r))` (DPO, arXiv 2305.18290)
    - ipo: `w (l_c / n_c - l_r / n_r - 1 / (2 beta))^2`, n tokens each (IPO, arXiv 2310.12036): the
      margin has an end. Per token, so that the same beta fits answers of any length.

    Alone it may lower both. `supervised` of the first one's cross-entropy, `-sum_t w_t log p_t`, is
    added against that.
    """

    def value(logprobs: torch.Tensor, inputs: Inputs) -> tuple[torch.Tensor, Measures]:
        ratios = of_examples(logprobs - inputs["reference"], inputs)
        weights = of_examples(inputs["weights"], inputs)[0::2]
        if variant == "ipo":
            ratios = ratios / of_examples(torch.ones_like(logprobs), inputs)
            margins = ratios[0::2] - ratios[1::2]
            loss = (weights * (margins - 0.5 / beta) ** 2).sum()
        else:
            margins = ratios[0::2] - ratios[1::2]
            loss = (weights * softplus(-beta * margins)).sum()
        if supervised:
            first = (inputs["example"] % 2 == 0).to(logprobs.dtype)
            loss = loss - supervised * (inputs["weights"] * first * logprobs).sum()
        return loss, _pairs(margins, weights)

    return Loss(value, ("reference",), members=2)


def npo(*, beta: Positive = 0.1) -> Loss:
    """Away from an answer, and ever less the further away it is: `w (2 / beta) log(1 + exp(beta
    l))` for each datum (NPO, arXiv 2404.05868)."""

    def value(logprobs: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        ratios = of_examples(logprobs - inputs["reference"], inputs)
        weights = of_examples(inputs["weights"], inputs)
        return (weights * (2.0 / beta) * softplus(beta * ratios)).sum()

    return Loss(value, ("reference",))


def kto(
    *, beta: Positive = 0.1, desirable_weight: Positive = 1.0, undesirable_weight: Positive = 1.0
) -> Loss:
    """Towards answers that are `desirable` (1) and away from the others (0), each by itself: `w (1
    - sigmoid(beta (l - z)))` and `w (1 - sigmoid(beta (z - l)))` (KTO, arXiv 2402.01306).

    z is `kl` of the datum, how far the model has moved altogether: the mean of l over answers to
    other prompts, at least 0, without a gradient (`kl_baseline`).
    """

    def value(logprobs: torch.Tensor, inputs: Inputs) -> tuple[torch.Tensor, Measures]:
        ratios = of_examples(logprobs - inputs["reference"], inputs)
        weights = of_examples(inputs["weights"], inputs)
        desirable = inputs["desirable"].to(ratios.dtype)
        signs = 2.0 * desirable - 1.0
        worth = torch.sigmoid(beta * signs * (ratios - inputs["kl"].to(ratios.dtype)))
        factors = desirable * desirable_weight + (1.0 - desirable) * undesirable_weight
        told = ratios.detach()
        return (weights * factors * (1.0 - worth)).sum(), {
            "desirable": ((weights * desirable * told).sum(), (weights * desirable).sum()),
            "undesirable": (
                (weights * (1.0 - desirable) * told).sum(),
                (weights * (1.0 - desirable)).sum(),
            ),
        }

    return Loss(value, ("reference", "desirable", "kl"))


def kl_baseline(ratios: torch.Tensor) -> float:
    """z of `kto`: max(0, mean) of l over answers to other prompts than their own, [n]."""
    return max(0.0, float(ratios.mean()))


def reward_bradley_terry(*, center: NotNegative = 0.0) -> Loss:
    """Of each pair of datums the first has the higher score s: `-w log sigmoid(s_c - s_r -
    margin)` (Bradley and Terry 1952), and `center w (s_c + s_r)^2`, which keeps scores around 0
    (arXiv 2312.09244).

    A datum's score is the sum of its targets' log-probabilities times their `coefficients` (1 where
    there are none): with +1 and -1 on "yes" and "no" after a question it is a logit. `margin` is
    one number of the first of a pair.
    """

    def value(logprobs: torch.Tensor, inputs: Inputs) -> tuple[torch.Tensor, Measures]:
        scores = of_examples(logprobs * inputs["coefficients"], inputs)
        weights = of_examples(inputs["weights"], inputs)[0::2]
        margin = inputs["margin"].to(scores.dtype)[0::2]
        loss = bradley_terry(scores[0::2], scores[1::2], margin=margin, center=center)
        return (weights * loss).sum(), _pairs(scores[0::2] - scores[1::2], weights)

    return Loss(value, defaults={"coefficients": 1.0, "margin": 0.0}, members=2)


def bradley_terry(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    *,
    margin: torch.Tensor | float = 0.0,
    center: float = 0.0,
) -> torch.Tensor:
    """The same of scores [pairs] that a reward head gave; float[pairs]."""
    return softplus(margin - (chosen - rejected)) + center * (chosen + rejected) ** 2


def _pairs(margins: torch.Tensor, weights: torch.Tensor) -> Measures:
    margins, weight = margins.detach(), weights.sum()
    return {
        "margin": ((weights * margins).sum(), weight),
        "accuracy": ((weights * (margins > 0)).sum(), weight),
    }
