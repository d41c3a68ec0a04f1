"""What is said about runs: the same words in the chat and in the shell."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from shammah.repl import text
from shammah.repl.text import duration, when
from shammah.tracking.plot import number_text, plot, spark

if TYPE_CHECKING:
    from shammah.backends.metric_curves import Curve
    from shammah.backends.metric_rows import RunRecord, Summary

DRAWN = ("loss", "learning_rate")
"""What is drawn of a run unless something else is asked for."""
FLOW = "gradients/flow/"
BAR = 30
"""Columns of the longest bar."""
SPARK = 20
"""Columns of a curve beside numbers."""


def runs_table(runs: Sequence[tuple[RunRecord, Mapping[str, Summary]]], *, coloured: bool) -> str:
    """One line for each run."""
    return text.table(
        ["run", "status", "began", "took", "steps", "loss", "learned", "name", "tags"],
        [
            (
                record.name,
                record.status,
                moment(record.began),
                duration(record.seconds),
                steps_of(metrics),
                _last(metrics, "loss"),
                _last(metrics, "learned"),
                title if (title := str(record.about.get("title", ""))) != record.name else "",
                ", ".join(record.about.get("tags", [])),
            )
            for record, metrics in runs
        ],
        coloured=coloured,
        right=(3, 4, 5, 6),
        whole=(0, 1, 2, 3, 4, 5, 6),
    )


def flow(metrics: Sequence[Summary], *, coloured: bool, blocks: bool) -> str:
    """How large gradients were in each layer, in the order of the model: at the first step, on
    average and at the last one, and the average as a bar."""
    found = sorted(
        (one for one in metrics if one.metric.startswith(FLOW) and one.mean is not None),
        key=lambda one: [int(part) if part.isdigit() else part for part in _parts(one.metric)],
    )
    if not found:
        return "No gradient was looked at."
    most = max(one.mean or 0.0 for one in found) or 1.0
    bar = "█" if blocks else "#"
    return text.table(
        ["layer", "first", "mean", "last", "gradients by layer"],
        [
            (
                one.metric.removeprefix(FLOW),
                number_text(one.first),
                number_text(one.mean or 0.0),
                number_text(one.last),
                bar * max(1, round(BAR * (one.mean or 0.0) / most)),
            )
            for one in found
        ],
        coloured=coloured,
        right=(1, 2, 3),
        whole=(0, 1, 2, 3, 4),
    )


def _parts(name: str) -> list[str]:
    # Split at digits, so that texts and numbers stand at the same places.
    return re.split(r"(\d+)", name)


def run_details(
    record: RunRecord, metrics: Sequence[Summary], curves: Mapping[str, Curve], *, coloured: bool
) -> str:
    """Everything about a run: what it was made with, its metrics, and the way they went."""
    about = record.about
    lines: list[tuple[str, object]] = [
        ("run", record.name),
        ("status", record.status),
        ("began", moment(record.began)),
        ("took", duration(record.seconds)),
    ]
    for name in ("title", "group", "project", "key"):
        if about.get(name) and about[name] != record.name:
            lines.append((name, about[name]))
    if about.get("tags"):
        lines.append(("tags", ", ".join(about["tags"])))
    lines += [(name, value) for name, value in sorted(_flat(about.get("hparams", {})))]
    for name, told in about.get("texts", {}).items():
        lines.append((name, told))
    for name, lineage in about.get("artifacts", {}).items():
        parts = ", ".join(f"{key} {value}" for key, value in lineage.items())
        lines.append((name, parts))
    blocks = text.unicode_output()
    table = text.table(
        ["metric", "values", "first", "last", "least", "greatest", "mean", "way"],
        [
            (
                one.metric,
                one.points,
                number_text(one.first),
                number_text(one.last),
                _number(one.least),
                _number(one.greatest),
                _number(one.mean),
                spark(curves[one.metric].values, SPARK, blocks=blocks),
            )
            for one in metrics
        ],
        coloured=coloured,
        right=(1, 2, 3, 4, 5, 6),
        whole=(0, 1, 2, 3, 4, 5, 6, 7),
    )
    shown = text.pairs(lines, coloured=coloured)
    return f"{shown}\n\n{table}" if metrics else f"{shown}\n\nNothing was measured."


def comparison(
    records: Sequence[RunRecord],
    metrics: Sequence[Mapping[str, Summary]],
    differing: Sequence[tuple[str, Sequence[str]]],
    *,
    coloured: bool,
) -> str:
    """Runs side by side: what they were made with where that differs, then their last figures."""
    names = list(dict.fromkeys(name for one in metrics for name in one))
    heads = ["", *(record.name for record in records)]
    lines: list[Sequence[object]] = [("status", *(record.status for record in records))]
    lines.append(("took", *(duration(record.seconds) for record in records)))
    lines += [(name, *values) for name, values in differing]
    lines.append(("steps", *(steps_of(one) for one in metrics)))
    for name in names:
        lines.append((f"{name}, last", *(_last(one, name) for one in metrics)))
        if name in ("loss", "eval/loss", "grad_norm"):
            least = (_number(one[name].least) if name in one else "-" for one in metrics)
            lines.append((f"{name}, least", *least))
    width = range(1, len(heads))
    return text.table(heads, lines, coloured=coloured, right=tuple(width), whole=(0, *width))


def differing(records: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """The settings in which runs differ, with each one's value; `-` where it has none."""
    flat = [dict(_flat(record.about.get("hparams", {}))) for record in records]
    names = sorted({name for one in flat for name in one})
    rows = [(name, [one.get(name, "-") for one in flat]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def curves_drawn(run: str, curves: Mapping[str, Curve], *, width: int, coloured: bool) -> str:
    """Curves below one another, each as wide as the terminal."""
    unicode = text.unicode_output()
    drawn = []
    for name, curve in curves.items():
        title = f"{run}: {name.replace('_', ' ')}"
        if not curve.exact:
            title += " (means of neighbouring steps)"
        drawn.append(
            plot(
                text.harmless(title),
                curve.steps,
                curve.values,
                width=width,
                unicode=unicode,
                coloured=coloured,
            )
        )
    return "\n\n".join(drawn)


def tail_line(step: int, metrics: Mapping[str, int | float]) -> str:
    """One record of a run."""
    parts = (f"{text.harmless(name)} {number_text(value)}" for name, value in metrics.items())
    return f"step {step}  " + "  ".join(parts)


def moment(seconds: float) -> str:
    return when(datetime.fromtimestamp(seconds, UTC))


def steps_of(metrics: Mapping[str, Summary]) -> int | str:
    """The last step of what was measured."""
    return max((one.last_step for one in metrics.values()), default="-")


def _last(metrics: Mapping[str, Summary], name: str) -> str:
    return number_text(metrics[name].last) if name in metrics else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else number_text(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    from shammah.tracking.loggers.base import flat

    return [(name, str(value)) for name, value in flat(values, prefix).items()]
