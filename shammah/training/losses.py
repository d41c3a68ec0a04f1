"""Losses as functions of the log-probabilities of target tokens, by name.

Knows nothing about models: logits never come here, they are reduced to `logprobs` where they are
made. A loss returns a weighted sum, never a mean: the optimiser step divides by the weight of the
whole window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from shammah.errors import TrainingError

Loss = Callable[[torch.Tensor, Mapping[str, torch.Tensor]], torch.Tensor]
"""(`logprobs` float32[n], inputs with `weights` float32[n]) -> loss sum, float32[]."""


def cross_entropy(logprobs: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """`-sum_t w_t log p_t`."""
    return -(logprobs * inputs["weights"]).sum()


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy}


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
