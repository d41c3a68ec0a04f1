"""Round numbers for an axis. Knows numbers alone."""

from __future__ import annotations

import itertools
import math
import sys

LARGEST = sys.float_info.max


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from at most `low` to at least `high`, evenly apart: 2 to about `most`.

    Raises:
        ValueError: one is not finite, or `low` is above `high`.
    """
    if not (math.isfinite(low) and math.isfinite(high)) or low > high:
        raise ValueError(f"There is no axis from {low} to {high}.")
    if low == high:
        pad = abs(low) / 2 or 1.0
        low, high = max(low - pad, -LARGEST), min(high + pad, LARGEST)
    span = high / 2 - low / 2
    # Of numbers this far apart, or this near to each other, none between is rounder.
    if span > 1e300 or span < max(abs(low), abs(high), 1e-300) * 1e-12:
        return [low, high]
    rough = span * 2 / max(1, most - 1)
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * part for part in (1, 2, 2.5, 5, 10, 20) if scale * part >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def whole_ticks(first: int, last: int, most: int = 5) -> list[int]:
    """Round whole numbers from `first` to `last`, within them."""
    if first >= last:
        return [first]
    found = ticks(first, last, most)
    inside = {round(value) for value in found if value == round(value) and first <= value <= last}
    return sorted(inside) or [first, last]


def label(value: float, values: list[float]) -> str:
    """A tick as short as it can be told apart from its neighbours."""
    if value == 0:
        return "0"
    greatest = max(abs(each) for each in values)
    if not 1e-3 <= greatest < 1e5:
        mantissa, _, power = f"{value:.3g}".partition("e")
        if not power:
            mantissa, _, power = f"{value:.2e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(power)}"
    apart = min((b - a for a, b in itertools.pairwise(values)), default=greatest)
    decimals = max(0, min(8, -math.floor(math.log10(apart) + 1e-9)))
    text = f"{value:,.{decimals + 1}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
