"""From a rendered conversation to a training example, and changing what an example weighs.

Knows nothing about models. The weight of an example is spread evenly over its answer tokens, so
that the loss of an example is `weight * mean_t(-log p_t)`, however long the answer is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from shammah.errors import EmptyLessonError
from shammah.ports.datum import Datum, ModelInput, TensorData

if TYPE_CHECKING:
    from shammah.renderers.base import RenderedExample


def datum(rendered: RenderedExample, weight: float = 1.0) -> Datum:
    """A next-token example whose token weights sum to `weight`.

    Args:
        rendered: `tokens` and, aligned to them, `weights`: above zero on answer tokens.
        weight: what the whole example weighs, relative to others of its batch.

    Raises:
        EmptyLessonError: no token after the first has a weight above zero.
    """
    return from_tokens(rendered.tokens, rendered.weights, weight)


def from_tokens(
    tokens: Sequence[int], token_weights: Sequence[float], weight: float = 1.0
) -> Datum:
    """The same from plain lists. The first token is never a target: nothing comes before it.

    Raises:
        EmptyLessonError: no token after the first has a weight above zero.
    """
    if len(tokens) != len(token_weights):
        raise ValueError(f"{len(tokens)} tokens but {len(token_weights)} weights")
    weights = np.asarray(token_weights[1:], dtype=np.float64)
    total = float(weights.sum())
    if total <= 0 or not np.isfinite(total):
        raise EmptyLessonError(
            "A training example has no token to learn.",
            hint="Its answer is empty, or was cut away because the example is too long.",
        )
    # Positions after the last target influence nothing.
    length = int(np.flatnonzero(weights)[-1]) + 1
    return Datum(
        ModelInput.of(tokens[:length]),
        {
            "target_tokens": TensorData.ints(tokens[1 : length + 1]),
            "weights": TensorData((weights[:length] * (weight / total)).astype(np.float32)),
        },
    )


def datum_weight(example: Datum) -> float:
    """The sum of an example's token weights."""
    return float(example.loss_fn_inputs["weights"].data.sum(dtype=np.float64))


def reweighted(example: Datum, weight: float) -> Datum:
    """The same example with token weights that sum to `weight`.

    Raises:
        EmptyLessonError: the example weighs nothing.
    """
    present = datum_weight(example)
    if present <= 0:
        raise EmptyLessonError("A training example has no token with a weight above zero.")
    weights = example.loss_fn_inputs["weights"].data.astype(np.float64) * (weight / present)
    return replace(
        example,
        loss_fn_inputs={
            **example.loss_fn_inputs,
            "weights": TensorData(weights.astype(np.float32)),
        },
    )
