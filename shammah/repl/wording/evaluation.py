"""What is said about evaluations: figures, comparisons, flips, targets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shammah.repl import text
from shammah.repl.text import counted, one_line, styled

if TYPE_CHECKING:
    from shammah.assistant.views import LessonCheck
    from shammah.evaluation.comparison import Comparison, Flip
    from shammah.evaluation.quality import QualityResult
    from shammah.evaluation.report import MetricReport, Report, Spread

_ERRORS = 5
_GROUPS = 40


def evaluation_report(found: Report, *, coloured: bool) -> str:
    """The figures of a run."""
    rows = [_metric_row(metric) for metric in found.metrics]
    parts = [
        text.table(
            ["scorer", "scored", "mean", "95% interval", f"score >= {found.pass_at:g}"],
            rows,
            coloured=coloured,
            right=(1, 2, 4),
            whole=(0, 3),
        )
    ]
    facts: list[tuple[str, object]] = [
        ("examples", f"{found.examples:,}"),
        ("passed by all", _share(found.overall_pass_rate)),
    ]
    for scorer, figures in found.totals.items():
        for name, value in figures.items():
            if isinstance(value, Mapping):
                shown = {key: each for key, each in value.items() if isinstance(each, float)}
                if shown:
                    text_of = ", ".join(f"{key} {each:.4f}" for key, each in shown.items())
                    facts.append((f"{scorer} {name}", text_of))
            elif isinstance(value, int | float) and not isinstance(value, bool):
                shown_as = f"{value:,}" if isinstance(value, int) else _number(value)
                facts.append((f"{scorer} {name}", shown_as))
    if found.failed:
        facts.append(("errors", f"{found.failed:,}"))
        facts += [(f"  {name}", f"{count:,}") for name, count in [*found.errors.items()][:_ERRORS]]
    if found.without_expected:
        facts.append(("no answer given", f"{found.without_expected:,} (by the data set)"))
    seconds = found.seconds
    if not math.isnan(seconds.mean):
        facts.append(
            (
                "seconds an answer",
                f"{seconds.mean:.3g} (half under {seconds.p50:.3g}, 90% under {seconds.p90:.3g}, "
                f"99% under {seconds.p99:.3g})",
            )
        )
    parts.append(text.pairs(facts, coloured=coloured))
    if found.groups is not None:
        parts.append(_groups(found, coloured))
    return "\n\n".join(parts)


def evaluation_spread(spreads: Mapping[str, Spread], *, coloured: bool) -> str:
    """Figures over repeated runs."""
    return text.table(
        ["over runs", "runs", "mean", "deviation", "least", "most"],
        [
            (
                name,
                each.runs,
                *map(_number, (each.mean, each.deviation, each.least, each.most)),
            )
            for name, each in spreads.items()
        ],
        coloured=coloured,
        right=(1, 2, 3, 4, 5),
    )


def evaluation_comparison(found: Comparison, names: tuple[str, str], *, coloured: bool) -> str:
    """Two runs pair by pair; `names` are those of the first and the second."""
    table = text.table(
        [
            "scorer", "pairs", names[0], names[1], "difference", "95% interval", "p", "gained",
            "lost",
        ],
        [
            (
                each.name,
                f"{each.pairs:,}",
                _number(each.first),
                _number(each.second),
                f"{each.difference:+.4f}",
                f"{each.interval.low:+.4f} to {each.interval.high:+.4f}",
                f"{each.test.p:.2g}",
                each.gained,
                each.lost,
            )
            for each in found.metrics
        ],
        coloured=coloured,
        right=(1, 2, 3, 4, 6, 7, 8),
        whole=(0, 5),
    )  # fmt: skip
    tests = sorted({each.test.name for each in found.metrics})
    notes = [f"p: {', '.join(tests)}"]
    if found.alone:
        notes.append(f"{counted(found.alone, 'example')} in one of the runs alone")
    return f"{names[1]} beside {names[0]}:\n{table}\n{'; '.join(notes)}"


def evaluation_flips(found: Sequence[Flip], names: tuple[str, str], *, coloured: bool) -> str:
    """Examples that pass in one run alone, with both answers."""
    width = text.cell(30, 4)
    return text.table(
        ["flipped", "example", "asked", "wanted", *names],
        [
            (
                f"{flip.scorer} {'gained' if flip.gained else 'lost'}",
                flip.first.index,
                one_line(_asked(flip), width),
                one_line(flip.first.expected or "", width),
                one_line(flip.first.predicted or "", width),
                one_line(flip.second.predicted or "", width),
            )
            for flip in found
        ],
        coloured=coloured,
        right=(1,),
    )


def lesson_check(found: LessonCheck, *, coloured: bool) -> str:
    """How many lessons are answered as taught, and those that are not."""
    who = found.adapter or "The base model"
    of = f"{found.as_taught} of {counted(found.asked, 'lesson')}"
    if found.asked < found.lessons:
        of += f" (the newest of {found.lessons})"
    line = f"{who} answers {of} as taught"
    if found.base_as_taught is not None:
        line += f"; the base model {found.base_as_taught}"
        if found.p is not None:
            line += f" (p = {found.p:.2g})"
    parts = [f"{line}."]
    if found.failed:
        parts.append(f"{found.failed} could not be answered.")
    others = [each for each in found.answers if not each.as_taught]
    if others:
        width = text.cell(8, 3)
        table = text.table(
            ["not as taught", "taught", "answered"],
            [
                tuple(one_line(cell, width) for cell in (each.question, each.aim, each.answer))
                for each in others
            ],
            coloured=coloured,
        )
        parts.append(table)
    return "\n".join(parts)


def quality(found: QualityResult, *, coloured: bool) -> str:
    """Targets and whether they are met."""
    table = text.table(
        ["target", "value", "margin", ""],
        [
            (
                each.target,
                "-" if each.value is None else _number(each.value),
                "-" if each.margin is None else f"{each.margin:+.4g}",
                "met" if each.passed else "missed",
            )
            for each in found.targets
        ],
        coloured=coloured,
        right=(1, 2),
    )
    style = "green" if found.passed else "red"
    return f"{table}\n{styled(found.summary, style, coloured=coloured)}"


def flip_record(flip: Flip) -> dict[str, Any]:
    """A flip as JSON."""
    return {
        "scorer": flip.scorer,
        "gained": flip.gained,
        "index": flip.first.index,
        "place": flip.first.place,
        "input": flip.first.input,
        "expected": flip.first.expected,
        "first": flip.first.predicted,
        "second": flip.second.predicted,
    }


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with nan as None."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }


def _metric_row(metric: MetricReport) -> tuple[object, ...]:
    low, high = metric.interval.low, metric.interval.high
    return (
        metric.name,
        f"{metric.scored:,}",
        _number(metric.mean),
        "-" if math.isnan(low) else f"{low:.4f} to {high:.4f}",
        _share(metric.pass_rate),
    )


def _groups(found: Report, coloured: bool) -> str:
    assert found.groups is not None
    names = [metric.name for metric in found.metrics]
    rows = [
        (one_line(value), metrics[0].scored if metrics else 0, *(_number(m.mean) for m in metrics))
        for value, metrics in [*found.groups.items()][:_GROUPS]
    ]
    table = text.table(
        [str(found.group_by), "scored", *names],
        rows,
        coloured=coloured,
        right=range(1, len(names) + 2),
    )
    rest = len(found.groups) - _GROUPS
    return table if rest <= 0 else f"{table}\nand {rest} more"


def _asked(flip: Flip) -> str:
    content = flip.first.input[-1].get("content") if flip.first.input else ""
    if isinstance(content, str):
        return content
    return " ".join(str(part.get("text", "")) for part in content or () if isinstance(part, dict))


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}%"
