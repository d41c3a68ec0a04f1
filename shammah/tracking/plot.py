"""Curves as text: braille dots, four rows and two columns to a character, or plain ASCII.

Knows numbers and a width. Colours are escape sequences only where they were asked for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

BARS = "▁▂▃▄▅▆▇█"
ASCII_BARS = "_.-=+*#@"
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
LABEL = 9
"""Columns of the numbers on the left."""
LEAST_WIDTH = 20
CURVE = "\x1b[36m"
PLAIN = "\x1b[0m"


def number_text(value: float) -> str:
    """A number in at most nine characters: three digits or so of it."""
    if isinstance(value, int) and abs(value) < 1_000_000:
        return str(value)
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}"
    text = f"{value:.2e}"
    return text if len(text) <= LABEL else f"{value:.1e}"


def spark(values: Sequence[float], width: int, *, blocks: bool) -> str:
    """The way of a metric on one line of at most `width` characters; what is not finite is a
    blank."""
    bars = BARS if blocks else ASCII_BARS
    if len(values) > width:
        cuts = [round(place * len(values) / width) for place in range(width + 1)]
        values = [_mean(values[start:end]) for start, end in itertools.pairwise(cuts)]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return " " * len(values)
    low, high = min(finite), max(finite)
    return "".join(
        bars[_level(value, low, high, len(bars))] if math.isfinite(value) else " "
        for value in values
    )


def plot(
    title: str,
    steps: Sequence[int],
    values: Sequence[float],
    *,
    width: int,
    height: int = 8,
    unicode: bool = True,
    coloured: bool = False,
) -> str:
    """A curve with its title, the numbers of its least and greatest value, and its steps.

    Args:
        steps: where each value stands; not falling.
        values: finite.
        width: columns of the whole; no line is longer, nor is one shorter than needed for 20.
        height: lines of the curve alone.
        unicode: whether braille dots can be shown; else `*`.
        coloured: whether escape sequences may be written.
    """
    if not values:
        return f"{title}: nothing to draw"
    columns = max(LEAST_WIDTH, width) - LABEL - 2
    across, up = (2, 4) if unicode else (1, 1)
    low, high = min(values), max(values)
    grid = [[False] * (columns * across) for _ in range(height * up)]
    first, last = steps[0], steps[-1]
    before: tuple[int, int] | None = None
    for step, value in zip(steps, values, strict=True):
        x = _level(step, first, last, columns * across)
        y = height * up - 1 - _level(value, low, high, height * up)
        for place in _way(before, (x, y)):
            grid[place[1]][place[0]] = True
        before = (x, y)
    labels = {height - 1: number_text(low), 0: number_text(high)}
    if low == high:
        labels = {(height * up - 1 - _level(low, low, high, height * up)) // up: number_text(low)}
    lines = [title[: max(LEAST_WIDTH, width)]]
    for row in range(height):
        label = labels.get(row, "")
        cells = "".join(
            _cell(grid, row, column, unicode=unicode) for column in range(columns)
        ).rstrip()
        if coloured and cells:
            cells = f"{CURVE}{cells}{PLAIN}"
        lines.append(f"{label[:LABEL]:>{LABEL}} {'┤' if unicode else '|'}{cells}")
    end = str(last)
    left = str(first)
    gap = max(1, columns - len(left) - len(end))
    lines.append(" " * (LABEL + 2) + (left + " " * gap + end if last != first else left))
    return "\n".join(lines)


def _cell(grid: list[list[bool]], row: int, column: int, *, unicode: bool) -> str:
    if not unicode:
        return "*" if grid[row][column] else " "
    dots = sum(
        bit
        for y, bits in enumerate(_DOTS)
        for x, bit in enumerate(bits)
        if grid[row * 4 + y][column * 2 + x]
    )
    return chr(0x2800 + dots) if dots else " "


def _way(before: tuple[int, int] | None, here: tuple[int, int]) -> list[tuple[int, int]]:
    """The dots from one place (without it) to another."""
    if before is None:
        return [here]
    dx, dy = here[0] - before[0], here[1] - before[1]
    count = max(abs(dx), abs(dy), 1)
    return [
        (before[0] + round(dx * part / count), before[1] + round(dy * part / count))
        for part in range(1, count + 1)
    ]


def _level(value: float, low: float, high: float, levels: int) -> int:
    if high <= low:
        return 0 if levels == 1 else (levels - 1) // 2
    # Halved, so that the distance of two huge numbers is finite.
    share = (value / 2 - low / 2) / (high / 2 - low / 2)
    return min(levels - 1, max(0, int(share * (levels - 1) + 0.5)))


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan
