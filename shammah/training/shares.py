"""What came of datums that were divided among processes, put together again. Knows no process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shammah.ports.training_client import ForwardBackwardOutput

Share = tuple[list[int], ForwardBackwardOutput]
"""Which datums, and what came of them."""


def together(shares: Sequence[Share], count: int) -> ForwardBackwardOutput:
    """What `count` datums give altogether."""
    logprobs: list[Any] = [np.zeros(0, dtype=np.float32)] * count
    greedy = [False] * count
    for own, output in shares:
        for index, values, right in zip(own, output.logprobs, output.greedy, strict=True):
            logprobs[index], greedy[index] = values, right
    outputs = [output for _, output in shares]
    return ForwardBackwardOutput(
        sum(output.loss for output in outputs),
        sum(output.weight for output in outputs),
        sum(output.tokens for output in outputs),
        tuple(logprobs),
        tuple(greedy),
        _means(outputs),
    )


def _means(outputs: Sequence[ForwardBackwardOutput]) -> Mapping[str, float]:
    names = dict.fromkeys(name for output in outputs for name in output.metrics)
    pairs = {
        name: [(each.metrics[name], each.weight) for each in outputs if name in each.metrics]
        for name in names
    }
    return {
        name: sum(value * weight for value, weight in found) / sum(weight for _, weight in found)
        for name, found in pairs.items()
    }
