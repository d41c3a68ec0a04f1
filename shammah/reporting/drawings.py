"""Curves and intervals as SVG, coloured by the page's style sheet: the same picture in light, in
dark and on paper.

Sizes are in the drawing's own units; the page stretches it to the width there is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from shammah.evaluation.statistics import Interval
from shammah.reporting.axes import label, ticks, whole_ticks
from shammah.reporting.contents import Chart
from shammah.reporting.markup import Markup, tag
from shammah.reporting.wording import figure_text

WIDTH, HEIGHT = 360, 196
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 12, 24


def chart(drawn: Chart) -> Markup:
    """A metric with its axes. The values lie beside it for the reader's pointer."""
    curve = drawn.curve
    lows, highs = curve.least or curve.values, curve.greatest or curve.values
    low, high = min(lows), max(highs)
    limited = drawn.limit is not None and drawn.limit <= high * 2
    if drawn.limit is not None and limited:
        low, high = min(low, drawn.limit), max(high, drawn.limit)
    # Where zero is near it is shown: a curve that falls by a tenth should look it.
    across = ticks(0.0 if 0 < low < high * 0.7 else low, high)
    first, last = curve.steps[0], curve.steps[-1]
    bottom, top = across[0], across[-1]

    def x(step: float) -> float:
        share = (step - first) / (last - first) if last > first else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 2)

    def y(value: float) -> float:
        share = (value / 2 - bottom / 2) / (top / 2 - bottom / 2)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 2)

    parts: list[Markup] = []
    for value in across:
        at = y(value)
        parts.append(tag("line", class_="rule", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at))
        text = tag("text", label(value, across), x=LEFT - 7, y=at + 3.5, text_anchor="end")
        parts.append(text)
    for step in whole_ticks(first, last):
        parts.append(
            tag("text", f"{step:,}", x=x(step), y=HEIGHT - 6, text_anchor=_anchor(step, last))
        )
    parts += _marks(drawn.marks, first, last, x)
    if drawn.limit is not None and limited:
        at = y(drawn.limit)
        parts.append(tag("line", class_="limit", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at))
    points = [(x(step), y(value)) for step, value in zip(curve.steps, curve.values, strict=True)]
    if not curve.exact:
        edge = [(x(s), y(v)) for s, v in zip(curve.steps, highs, strict=True)]
        edge += [(x(s), y(v)) for s, v in zip(curve.steps[::-1], lows[::-1], strict=True)]
        parts.append(tag("path", class_="band", d=f"M{_path(edge)}Z"))
    if len(points) > 1:
        parts.append(tag("path", class_="curve", d=f"M{_path(points)}"))
    end = points[-1]
    parts.append(tag("circle", class_="end", cx=end[0], cy=end[1], r=2.6))
    parts.append(tag("line", class_="cursor", x1=0, x2=0, y1=TOP, y2=HEIGHT - BOTTOM))
    parts.append(tag("circle", class_="cursor", cx=0, cy=0, r=3.4))
    said = (
        f"{drawn.title}: {figure_text(curve.values[0])} at step {first}, "
        f"{figure_text(curve.values[-1])} at step {last}, between {figure_text(min(lows))} and "
        f"{figure_text(max(highs))}."
    )
    places = [
        (px, py, step, figure_text(value))
        for (px, py), step, value in zip(points, curve.steps, curve.values, strict=True)
    ]
    unit = ", ".join(part for part in (drawn.unit, drawn.limit_name if limited else "") if part)
    return tag(
        "figure",
        tag(
            "figcaption",
            tag("strong", drawn.title),
            tag("output", figure_text(curve.values[-1]), class_="now"),
            tag("span", unit or "\N{NO-BREAK SPACE}", class_="unit"),
            tag("span", f"step {last:,}", class_="step"),
        ),
        tag(
            "svg", parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=said, tabindex=0,
        ),
        class_="chart",
        data_points=json.dumps(places, separators=(",", ":")),
    )  # fmt: skip


def interval(mean: float, found: Interval, low: float = 0.0, high: float = 1.0) -> Markup:
    """A mean as a dot on its interval, on a scale from `low` to `high`; 0 is marked where it lies
    between them."""

    def x(value: float) -> float:
        share = (min(max(value, low), high) - low) / (high - low)
        return round(4 + share * 192, 2)

    parts = [tag("line", class_="rule", x1=4, x2=196, y1=9, y2=9)]
    for at in (low, 0.0, high) if low < 0 < high else (low, high):
        parts.append(tag("line", class_="rule", x1=x(at), x2=x(at), y1=4, y2=14))
    parts.append(tag("line", class_="whisker", x1=x(found.low), x2=x(found.high), y1=9, y2=9))
    parts.append(tag("circle", class_="mean", cx=x(mean), cy=9, r=4))
    said = f"{mean:.3f}, between {found.low:.3f} and {found.high:.3f}"
    return tag("svg", parts, viewBox="0 0 200 18", role="img", aria_label=said, class_="interval")


def _marks(marks: Mapping[str, object], first: int, last: int, x: object) -> list[Markup]:
    found: list[Markup] = []
    assert callable(x)
    for kind, steps in marks.items():
        assert isinstance(steps, list | tuple)
        for step in steps:
            if first <= step <= last:
                top = TOP if kind == "resumed" else HEIGHT - BOTTOM - 5
                at = x(step)
                line = tag("line", class_=f"mark {kind}", x1=at, x2=at, y1=top, y2=HEIGHT - BOTTOM)
                found.append(line)
    return found


def _path(points: list[tuple[float, float]]) -> str:
    return "L".join(f"{x:g},{y:g}" for x, y in points)


def _anchor(step: int, last: int) -> str:
    return "end" if step == last else "middle"
