"""Whether a model is right as often as it is sure: expected calibration error.

Predictions are put into bins of equal width by their confidence; of each bin the share that is
right is compared with the mean confidence (Naeini et al. 2015; Guo et al. 2017, arXiv 1706.04599):

    ECE = sum over bins of n_b / n * |accuracy_b - confidence_b|

Knows pairs of numbers alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from shammah.errors import DataError, InputError

BINS = 10


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Of the predictions with a confidence in (`above`, `to`]; the first bin has 0 too. The means
    are None where there is none."""

    above: float
    to: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class Calibration:
    """Of n predictions: the expected and the largest calibration error, the Brier score (the mean
    of (confidence - correct)^2), and the bins. All errors lie in [0, 1], 0 being best."""

    examples: int
    expected_error: float
    maximum_error: float
    brier: float
    bins: tuple[CalibrationBin, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            "examples": self.examples,
            "expected_calibration_error": self.expected_error,
            "maximum_calibration_error": self.maximum_error,
            "brier": self.brier,
            "bins": [
                {
                    "above": each.above,
                    "to": each.to,
                    "count": each.count,
                    "confidence": each.confidence,
                    "accuracy": each.accuracy,
                }
                for each in self.bins
            ],
        }


def calibration(pairs: Iterable[tuple[float, bool]], *, bins: int = BINS) -> Calibration:
    """How well confidences foretell what is right. Memory does not grow with the pairs.

    Args:
        pairs: confidence in [0, 1], and whether the prediction was right.
        bins: at least 1.

    Raises:
        DataError: a confidence is not in [0, 1], or there is not one bin.
        InputError: there is no pair.
    """
    if bins < 1:
        raise DataError(f"{bins} bins were asked for.")
    counts, right, sums = [0] * bins, [0] * bins, [0.0] * bins
    squares = 0.0
    for confidence, correct in pairs:
        if not 0.0 <= confidence <= 1.0:
            raise DataError(f"A confidence is {confidence}; it has to lie between 0 and 1.")
        place = _bin(float(confidence), bins)
        counts[place] += 1
        right[place] += bool(correct)
        sums[place] += confidence
        squares += (confidence - bool(correct)) ** 2
    examples = sum(counts)
    if not examples:
        raise InputError("There is no prediction to measure the calibration of.")
    gaps = [
        abs(hits - total) / count if count else 0.0
        for hits, total, count in zip(right, sums, counts, strict=True)
    ]
    return Calibration(
        examples,
        math.fsum(gap * count for gap, count in zip(gaps, counts, strict=True)) / examples,
        max(gaps),
        squares / examples,
        tuple(
            CalibrationBin(
                place / bins,
                (place + 1) / bins,
                counts[place],
                sums[place] / counts[place] if counts[place] else None,
                right[place] / counts[place] if counts[place] else None,
            )
            for place in range(bins)
        ),
    )


def _bin(confidence: float, bins: int) -> int:
    """The bin by its own bounds, whatever the product rounds to: 0.3 is in the third of ten."""
    place = min(bins - 1, max(0, math.ceil(confidence * bins) - 1))
    if place and confidence <= place / bins:
        return place - 1
    if confidence > (place + 1) / bins:
        return place + 1
    return place
