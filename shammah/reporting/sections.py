"""The parts of a report, in the order in which they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from shammah.evaluation.comparison import Comparison, Flip
from shammah.evaluation.report import MetricReport, Spread
from shammah.reporting.contents import Ancestor, Contents, Evaluated, TaughtLesson
from shammah.reporting.drawings import chart, interval
from shammah.reporting.markup import Child, Markup, joined, raw, tag
from shammah.reporting.wording import count, figure_text, share
from shammah.tracking.story_html import folded

Section = tuple[str, str, Markup]
"""Its id, its title, what is in it."""
MOST_LESSONS = 200
MOST_GROUPS = 40
LONGEST = 1200
"""Characters of an answer that are shown."""


def sections(contents: Contents) -> list[Section]:
    """Those that have something to say."""
    results = ("evaluation", "Evaluation", _evaluations(contents))
    curves = ("training", "Training", _charts(contents))
    order = [results, curves] if contents.kind == "evaluation" else [curves, results]
    found: list[tuple[str, str, Markup | None]] = [
        *order,
        ("lessons", "Lessons", _lessons(contents)),
        ("health", "Checks and health", _health(contents)),
        ("lineage", "Lineage", _lineage(contents)),
        ("story", "Story", raw(folded(contents.story, depth=1)) if contents.story else None),
        ("settings", "Settings", _settings(contents)),
        ("measurements", "Measurements", _measurements(contents)),
    ]
    return [(name, title, inner) for name, title, inner in found if inner is not None]


def _charts(contents: Contents) -> Markup | None:
    if not contents.charts:
        return None
    marks = {kind for each in contents.charts for kind, steps in each.marks.items() if steps}
    notes = []
    if "checkpoint" in marks:
        notes.append("Short strokes on the axis are checkpoints.")
    if "resumed" in marks:
        notes.append("A dotted upright is where the run went on after an interruption.")
    if any(not each.curve.exact for each in contents.charts):
        notes.append("The shaded band holds the least and greatest values.")
    return joined(
        tag("div", [chart(each) for each in contents.charts], class_="charts"),
        tag("p", " ".join(notes), class_="quiet") if notes else None,
    )


def _evaluations(contents: Contents) -> Markup | None:
    if not contents.evaluations:
        return None
    parts = [_evaluation(each) for each in contents.evaluations]
    return joined(parts, _spread(contents.spread) if contents.spread else None)


def _evaluation(done: Evaluated) -> Markup:
    figures = done.figures
    facts = ", ".join(f"{label} {value}" for label, value in done.facts)
    parts: list[Child] = [
        tag("h3", f"{done.who} on {done.data}"),
        tag("p", f"{count(figures.examples, 'example')}. {facts}.", class_="quiet"),
        tag("p", done.note, class_="trouble") if done.note else None,
        _table(
            [
                ("scorer", ""),
                ("mean", "number"),
                (f"score ≥ {figures.pass_at:g}", "number"),
            ],
            [_metric(each) for each in figures.metrics],
        ),
    ]
    if figures.failed:
        kinds = ", ".join(f"{name} ({number:,})" for name, number in figures.errors.items())
        parts.append(tag("p", f"{count(figures.failed, 'example')} went wrong: {kinds}.",
                         class_="trouble"))  # fmt: skip
    if not math.isnan(figures.seconds.mean):
        took = figures.seconds
        parts.append(
            tag(
                "p",
                f"An answer took {took.mean:.3g} s, half of them under {took.p50:.3g} s, 99% under "
                f"{took.p99:.3g} s. Intervals hold the mean with a confidence of 95%.",
                class_="quiet",
            )
        )
    if done.comparison is not None and done.against is not None:
        parts.append(_comparison(done.comparison, done.against, done.who))
        parts.append(_flips(done.flips, done.against, done.who))
    parts.append(_totals(done))
    parts.append(_groups(done))
    return joined(parts)


def _metric(each: MetricReport) -> list[Child]:
    if not each.scored:
        return [each.name, "–", "nothing scored"]
    low, high = each.interval.low, each.interval.high
    return [
        [each.name, interval(each.mean, each.interval)],
        [f"{each.mean:.3f}", tag("span", f"{low:.3f} to {high:.3f}", class_="range")],
        [share(each.pass_rate), tag("span", f"of {each.scored:,}", class_="range")],
    ]


def _comparison(found: Comparison, first: str, second: str) -> Markup:
    widest = max((abs(v) for m in found.metrics for v in (m.interval.low, m.interval.high)),
                 default=1.0) or 1.0  # fmt: skip
    rows: list[list[Child]] = [
        [
            [each.name, interval(each.difference, each.interval, -widest, widest)],
            [
                f"{each.difference:+.3f}",
                tag(
                    "span",
                    f"{each.interval.low:+.3f} to {each.interval.high:+.3f}",
                    class_="range",
                ),
            ],
            f"{each.test.p:.2g}",
            [f"+{each.gained:,}", tag("span", f"−{each.lost:,}", class_="range")],
        ]
        for each in found.metrics
    ]
    tests = ", ".join(sorted({each.test.name for each in found.metrics}))
    return joined(
        tag("h3", f"{second} beside {first}"),
        _table(
            [("scorer", ""), ("difference", "number"), ("p", "number"), ("flipped", "number")],
            rows,
        ),
        tag(
            "p",
            f"{count(found.pairs, 'pair')} of answers; p by {tests}. Flipped are the examples that "
            f"pass with {second} alone (+), and with {first} alone (−).",
            class_="quiet",
        ),
    )


def _flips(found: Sequence[Flip], first: str, second: str) -> Markup | None:
    if not found:
        return None
    shown = []
    for flip in found:
        state = f"{flip.scorer} {'gained' if flip.gained else 'lost'}"
        shown.append(
            _answers(
                _asked(flip),
                state,
                flip.gained,
                ((first, flip.first.predicted), ("wanted", flip.first.expected),
                 (second, flip.second.predicted)),
            )
        )  # fmt: skip
    return joined(tag("h3", "Examples that flipped"), shown)


def _asked(flip: Flip) -> str:
    said = [message for message in flip.first.input if message.get("role") == "user"]
    content = said[-1].get("content", "") if said else ""
    if isinstance(content, str):
        return content
    return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))


def _totals(done: Evaluated) -> Markup | None:
    rows: list[list[Child]] = [
        [name, figure_text(value)]
        for name, value in sorted(done.figures.figures().items())
        if name.partition(".")[0] in done.figures.totals and not math.isnan(value)
    ]
    head = [("of the whole data set", ""), ("", "number")]
    return joined(tag("h3", "Figures of the whole data set"), _table(head, rows)) if rows else None


def _groups(done: Evaluated) -> Markup | None:
    groups = done.figures.groups
    if not groups:
        return None
    names = [metric.name for metric in done.figures.metrics]
    rows: list[list[Child]] = [
        [
            value,
            f"{metrics[0].scored:,}" if metrics else "0",
            *(f"{metric.mean:.3f}" if metric.scored else "–" for metric in metrics),
        ]
        for value, metrics in [*groups.items()][:MOST_GROUPS]
    ]
    rest = len(groups) - MOST_GROUPS
    heads = [(str(done.figures.group_by), ""), *((name, "number") for name in ("scored", *names))]
    return joined(
        tag("h3", f"By {done.figures.group_by}"),
        _table(heads, rows),
        tag("p", f"and {rest} more", class_="quiet") if rest > 0 else None,
    )


def _spread(spreads: Mapping[str, Spread]) -> Markup:
    rows: list[list[Child]] = [
        [name, f"{each.runs}", *(_number(v) for v in (each.mean, each.deviation, each.least,
                                                       each.most))]
        for name, each in spreads.items()
    ]  # fmt: skip
    heads = [("over runs", "")]
    heads += [(name, "number") for name in ("runs", "mean", "deviation", "least", "most")]
    return joined(tag("h3", "Over the repeats"), _table(heads, rows))


def _lessons(contents: Contents) -> Markup | None:
    lessons = contents.lessons
    if not lessons:
        return tag("p", contents.left_out) if contents.left_out else None
    rest = len(lessons) - MOST_LESSONS
    asked = any(each.before is not None or each.after is not None for each in lessons)
    return joined(
        tag("p", "Before: the answer that was judged, else the model's likeliest one. After: its "
            "likeliest one with this training.", class_="quiet") if asked else None,
        [_lesson(each) for each in lessons[:MOST_LESSONS]],
        tag("p", f"and {count(rest, 'lesson')} more", class_="quiet") if rest > 0 else None,
    )  # fmt: skip


def _lesson(each: TaughtLesson) -> Markup:
    state = {True: "✓ learned", False: "not learned", None: ""}[each.learned]
    cells: list[tuple[str, str | None]] = [("taught", each.taught)]
    if each.before is not None or each.after is not None:
        cells = [("before", each.before), *cells, ("after", each.after)]
    made = _answers(each.question, state, bool(each.learned), cells)
    return made if not each.problem else joined(made, tag("p", each.problem, class_="trouble"))


def _answers(
    question: str, state: str, good: bool, cells: Sequence[tuple[str, str | None]]
) -> Markup:
    """A question with answers side by side."""
    return tag(
        "article",
        tag(
            "h3",
            tag("span", _cut(question), class_="said"),
            tag("span", state, class_="state learned" if good else "state") if state else None,
        ),
        tag(
            "dl",
            [
                tag(
                    "div",
                    tag("dt", label),
                    tag("dd", "not asked", class_="gone")
                    if text is None
                    else tag("dd", _cut(text)),
                )
                for label, text in cells
            ],
            class_="answers",
        ),
        class_="lesson",
    )


def _health(contents: Contents) -> Markup | None:
    if not (contents.health or contents.troubles or contents.behaviour):
        return None
    lines = [tag("li", text, class_="trouble") for text in contents.troubles]
    lines += [tag("li", text) for text in contents.health]
    rows: list[list[Child]] = [[each.name, each.before, each.after] for each in contents.behaviour]
    heads = [("", ""), ("before training", "number"), ("after", "number")]
    return joined(
        tag("ul", lines, class_="plain") if lines else None,
        joined(tag("h3", "What was not taught"), _table(heads, rows)) if rows else None,
    )


def _lineage(contents: Contents) -> Markup | None:
    if contents.lineage is None:
        return None
    base = contents.settings.get("model.name", "the base model")
    return tag("ol", _ancestor(contents.lineage, str(base)), class_="lineage")


def _ancestor(each: Ancestor, base: str) -> Markup:
    weight = f" × {each.share:g}" if each.share is not None else ""
    facts = each.facts or ("no longer in the library",)
    below: list[Markup] = [_ancestor(parent, base) for parent in each.parents]
    if each.facts and not below:
        below = [tag("li", tag("strong", base), tag("p", tag("span", "base model"),
                                                     class_="facts"))]  # fmt: skip
    return tag(
        "li",
        tag("strong", f"{each.name}{weight}"),
        tag("p", [tag("span", fact) for fact in facts], class_="facts"),
        tag("ol", below) if below else None,
    )


def _settings(contents: Contents) -> Markup | None:
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, value in contents.settings.items():
        head, dot, rest = name.partition(".")
        groups.setdefault(head if dot else "run", []).append((rest or head, _value(value)))
    for name, version in contents.versions.items():
        groups.setdefault("versions", []).append((name, version))
    if not groups:
        return None
    return tag(
        "div",
        [
            tag(
                "div",
                tag("h3", head.replace("_", " ")),
                tag(
                    "dl",
                    [
                        tag("div", tag("dt", name.replace("_", " ")), tag("dd", value))
                        for name, value in pairs
                    ],
                ),
            )
            for head, pairs in groups.items()
        ],
        class_="settings",
    )


def _measurements(contents: Contents) -> Markup | None:
    if not contents.measurements:
        return None
    heads = [("metric", "")]
    heads += [(name, "number") for name in ("values", "first", "last", "least", "greatest", "mean")]
    rows: list[list[Child]] = [
        [
            one.metric,
            f"{one.points:,}",
            figure_text(one.first),
            figure_text(one.last),
            *(
                "–" if value is None else figure_text(value)
                for value in (one.least, one.greatest, one.mean)
            ),
        ]
        for one in contents.measurements
    ]
    return _table(heads, rows)


def _table(heads: Sequence[tuple[str, str]], rows: Sequence[Sequence[Child]]) -> Markup:
    """A table; `heads` are titles with the class of their column."""
    kinds = [kind or None for _, kind in heads]
    return tag(
        "div",
        tag(
            "table",
            tag(
                "thead",
                tag(
                    "tr",
                    [
                        tag("th", title, class_=kind)
                        for (title, _), kind in zip(heads, kinds, strict=True)
                    ],
                ),
            ),
            tag(
                "tbody",
                [
                    tag(
                        "tr",
                        [
                            tag("td", cell, class_=kind)
                            for cell, kind in zip(row, kinds, strict=True)
                        ],
                    )
                    for row in rows
                ],
            ),
        ),
        class_="wide",
    )


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return text[:16] if len(text) == 64 and text.isalnum() else text


def _number(value: float) -> str:
    return "–" if math.isnan(value) else figure_text(value)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
