"""How many steps there are, and the learning rate of each. Knows nothing about optimisers."""

from __future__ import annotations

import math
from typing import Protocol


class ScheduleSettings(Protocol):
    """What a schedule needs to know; `TrainingSettings` has it."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def schedule(self) -> str: ...


class StepSettings(Protocol):
    """What decides how many steps there are; `TrainingSettings` has it."""

    @property
    def epochs(self) -> int: ...
    @property
    def accumulation(self) -> int: ...
    @property
    def max_steps(self) -> int: ...


def rate_for_width(width: int) -> float:
    """A learning rate for LoRA on a model whose hidden states have `width` numbers.

    `8e-4 * (2000 / width)^0.781`: the exponent is that of tinker-cookbook's `hyperparam_utils` for
    Llama; the factor is the one that taught the embedded model (width 256, 4e-3) best, 1.6 times
    theirs.
    """
    return float(8e-4 * (2000.0 / width) ** 0.781)


def learning_rate(
    step: int,
    total: int,
    settings: ScheduleSettings,
    *,
    power: float = 2.0,
    final_share: float = 0.01,
) -> float:
    """The learning rate of a step.

    It rises linearly over the warmup (step 0 already moves). Then, with x the share of what is left
    that is done, it is the peak times

    - constant: 1
    - linear: 1 - x
    - cosine: (1 + cos(pi x)) / 2
    - polynomial: (1 - x)^power
    - exponential: final_share^x

    A warmup longer than a third of the run is shortened to it: one that never ends is a learning
    rate that was never used.

    Args:
        step: counts from 0.
        total: steps of the whole run; x would be 1 at it.
    """
    peak = settings.learning_rate
    warmup = min(settings.warmup_steps, total // 3)
    if step < warmup:
        return peak * (step + 1) / warmup
    if settings.schedule == "constant":
        return peak
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    if settings.schedule == "linear":
        return peak * (1.0 - progress)
    if settings.schedule == "polynomial":
        return float(peak * (1.0 - progress) ** power)
    if settings.schedule == "exponential":
        return float(peak * final_share**progress)
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))


def most_steps(batches: int, settings: StepSettings) -> int:
    """Optimiser steps at most, of epochs of so many batches."""
    total = -(-batches // settings.accumulation) * settings.epochs
    return min(total, settings.max_steps) if settings.max_steps else total
