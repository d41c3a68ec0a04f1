"""The curves and intervals of a report as PNG, for slides and messages, drawn by matplotlib: it
brings its own fonts and needs no browser. Light, as on paper."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from shammah.errors import UsageError
from shammah.files import private_folder, replacing
from shammah.reporting.contents import Chart, Contents, Evaluated

ACCENT, INK, QUIET, RULE = "#0b6e6e", "#1f2328", "#646b73", "#dedfdb"
DOTS = 200
"""To the inch."""


def write_pictures(contents: Contents, folder: Path) -> list[Path]:
    """One picture of each curve and evaluation, and one of all curves together.

    Raises:
        UsageError: matplotlib is not installed, or there is nothing to draw.
        StorageError: the folder cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "Pictures are drawn by matplotlib, which is not installed.",
            hint="Run `pip install 'shammah[report]'`.",
        ) from error
    if not contents.charts and not contents.evaluations:
        raise UsageError(f"There is nothing to draw of {contents.title}: nothing was measured.")
    private_folder(folder)
    written: list[Path] = []

    def save(name: str, figure: Any) -> None:
        path = folder / f"{name}.png"
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=DOTS, facecolor="white")
        written.append(path)

    if len(contents.charts) > 1:
        columns = min(3, len(contents.charts))
        rows = -(-len(contents.charts) // columns)
        figure = Figure(figsize=(3.6 * columns, 2.3 * rows), layout="constrained")
        for place, each in enumerate(contents.charts):
            _curve(figure.add_subplot(rows, columns, place + 1), each)
        save("overview", figure)
    for each in contents.charts:
        figure = Figure(figsize=(5.4, 3.2), layout="constrained")
        _curve(figure.add_subplot(), each)
        save(_file_name(each.metric), figure)
    for number, done in enumerate(contents.evaluations, start=1):
        figure = Figure(figsize=(5.4, 1.2 + 0.4 * len(done.figures.metrics)), layout="constrained")
        _intervals(figure.add_subplot(), done)
        save("evaluation" if len(contents.evaluations) == 1 else f"evaluation-{number}", figure)
    return written


def _curve(axes: Any, each: Chart) -> None:
    curve = each.curve
    _calm(axes, each.title, each.unit)
    if not curve.exact:
        axes.fill_between(
            curve.steps, curve.least, curve.greatest, color=ACCENT, alpha=0.17, linewidth=0
        )
    axes.plot(curve.steps, curve.values, color=ACCENT, linewidth=1.5, solid_capstyle="round")
    axes.plot(curve.steps[-1:], curve.values[-1:], "o", color=ACCENT, markersize=3.5)
    if each.limit is not None and each.limit <= max(curve.greatest or curve.values) * 2:
        axes.axhline(each.limit, color=QUIET, linewidth=0.8, linestyle=(0, (3, 3)))
    axes.locator_params(nbins=5)
    axes.grid(axis="y", color=RULE, linewidth=0.6)


def _intervals(axes: Any, done: Evaluated) -> None:
    shown = [each for each in done.figures.metrics if each.scored]
    _calm(axes, f"{_plain(done.who)} on {_plain(done.data)}", "mean with its 95% interval")
    for place, each in enumerate(reversed(shown)):
        low, high = each.interval.low, each.interval.high
        axes.plot([low, high], [place, place], color=ACCENT, linewidth=2.5, alpha=0.55)
        axes.plot([each.mean], [place], "o", color=ACCENT, markersize=6)
    axes.set_yticks(range(len(shown)), [_plain(each.name) for each in reversed(shown)])
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.grid(axis="x", color=RULE, linewidth=0.6)


def _calm(axes: Any, title: str, unit: str) -> None:
    axes.set_title(_plain(title), loc="left", fontsize=10, fontweight="bold", color=INK)
    if unit:
        axes.set_title(_plain(unit), loc="right", fontsize=7.5, color=QUIET)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(length=0, labelsize=8, labelcolor=QUIET)
    axes.set_axisbelow(True)


def _plain(text: str) -> str:
    """Text in which nothing is a formula."""
    return text.replace("$", r"\$")


def _file_name(metric: str) -> str:
    return re.sub(r"[^\w.-]+", "-", metric).strip("-.") or "metric"
