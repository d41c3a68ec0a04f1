"""What a run's metrics and its job folder tell: curves, health, behaviour, lessons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shammah.backends.metric_rows import RunRecord, Summary
from shammah.backends.sqlite_metrics import SqliteMetrics
from shammah.errors import ShammahError, StorageError
from shammah.learning.job import RESULT, Complete, Failed, JobSpec, Remark, Start, read_events
from shammah.reporting.contents import Behaviour, Chart, TaughtLesson
from shammah.reporting.wording import count, figure_text, share
from shammah.tracking.story import STORY, Scope, read_story

PLACES = 360
"""Places of a curve at most: one for each unit of its drawing."""
MOST_CHARTS = 24
FEWEST = 3
"""Values that are worth a curve."""
TITLES: Mapping[str, tuple[str, str]] = {
    "loss": ("Loss", "nats per token"),
    "learning_rate": ("Learning rate", ""),
    "grad_norm": ("Gradient norm", ""),
    "tokens_per_second": ("Throughput", "tokens per second"),
    "learned": ("Learned", "wordings answered as taught"),
}
_LEFT_OUT = ("epoch", "checkpoint/seconds")
_BEHAVIOUR = {
    "eval/held": "Earlier lessons held",
    "eval/unchanged": "Other answers unchanged",
    "eval/endless": "Answers without an end",
}
_ANCHOR_LOSS = "eval/anchor_loss"


def charts_of(
    store: SqliteMetrics,
    record: RunRecord,
    summaries: Mapping[str, Summary],
    hparams: Mapping[str, Any],
    job: Path,
) -> tuple[Chart, ...]:
    """The curves: what every training has first, then whatever else was measured often enough."""
    others = [name for name in summaries if name not in TITLES and name not in _LEFT_OUT]
    marks = _marks(store, record.name, summaries, job)
    found: list[Chart] = []
    for name in [*(name for name in TITLES if name in summaries), *others]:
        summary = summaries[name]
        if name not in TITLES and summary.finite < FEWEST:
            continue
        curve = store.curve(record.name, name, PLACES)
        if not curve.steps or len(found) == MOST_CHARTS:
            continue
        title, unit = TITLES.get(name, (name, ""))
        if not curve.exact:
            unit = f"{unit}, means of neighbouring steps".removeprefix(", ")
        made = Chart(name, title, unit, curve, marks=marks)
        clip = hparams.get("training.max_grad_norm")
        if name == "grad_norm" and isinstance(clip, int | float) and clip > 0:
            made = replace(made, limit=float(clip), limit_name=f"clipped at {clip:g} (dashed)")
        found.append(made)
    return tuple(found)


def health_of(
    summaries: Mapping[str, Summary], charts: Sequence[Chart], job: Path
) -> Iterator[str]:
    """What went on besides, in sentences that are no bad news."""
    measured = [one for name, one in summaries.items() if name in TITLES]
    if measured and all(one.finite == one.points for one in measured):
        yield f"All {max(one.points for one in measured):,} steps were finite in every figure."
    for chart in charts:
        if chart.metric == "grad_norm" and chart.limit is not None and chart.curve.exact:
            above = sum(value > chart.limit for value in chart.curve.values)
            yield (
                f"The gradient was longer than {chart.limit:g}, and cut to that, in {above:,} of "
                f"{count(len(chart.curve.values), 'step')}."
            )
    if "checkpoint/seconds" in summaries:
        saved = summaries["checkpoint/seconds"]
        mean = f", {saved.mean:.2g} s each" if saved.mean is not None else ""
        yield f"{count(saved.points, 'checkpoint')} written{mean}."
    for event in read_events(job):
        if isinstance(event, Start) and event.resumed_step:
            yield f"It was interrupted, and went on from step {event.resumed_step:,}."


def troubles_of(record: RunRecord, summaries: Mapping[str, Summary], job: Path) -> Iterator[str]:
    """What is bad news."""
    if record.status == "running":
        yield "It is still running: this is how far it has come."
    if record.status == "interrupted":
        yield "It was interrupted, and has not gone on."
    events = read_events(job)
    failed = [event for event in events if isinstance(event, Failed)]
    if record.status == "failed":
        yield f"It failed: {failed[-1].message if failed else 'it is not known why.'}"
    for name, one in summaries.items():
        if one.finite < one.points:
            yield f"{one.points - one.finite:,} of {one.points:,} values of {name} are not finite."
    yield from dict.fromkeys(event.text for event in events if isinstance(event, Remark))


def behaviour_of(summaries: Mapping[str, Summary]) -> Iterator[Behaviour]:
    """The checks' figures before the first step and after the last."""
    for name, title in _BEHAVIOUR.items():
        if name in summaries:
            one = summaries[name]
            yield Behaviour(title, *_ends(one, share))
    if _ANCHOR_LOSS in summaries:
        yield Behaviour("Loss on other answers", *_ends(summaries[_ANCHOR_LOSS], figure_text))


def lessons_of_job(folder: Path) -> tuple[TaughtLesson, ...]:
    """The lessons of a job by its own folder; none where that is gone."""
    try:
        spec = JobSpec.read(folder)
    except ShammahError:
        return ()
    try:
        result = Complete.model_validate_json((folder / RESULT).read_bytes())
    except (OSError, ValidationError):
        return tuple(TaughtLesson(each.query, each.aim, None) for each in spec.taught)
    outcomes = {outcome.feedback_id: outcome for outcome in result.outcomes}
    found = []
    for each in spec.taught:
        outcome = outcomes.get(each.feedback_id)
        made = TaughtLesson(each.query, each.aim, None)
        if outcome is not None:
            made = TaughtLesson(
                each.query,
                outcome.revision or each.aim,
                outcome.learned,
                outcome.before,
                outcome.after,
                outcome.problem,
            )
        found.append(made)
    return tuple(found)


def _ends(one: Summary, said: Any) -> tuple[str, str]:
    """The first and the last value; a single one was measured before, or after."""
    first = said(float(one.first)) if one.first_step == 0 else "–"
    last = said(float(one.last)) if one.last_step > 0 else "–"
    return first, last


def _marks(
    store: SqliteMetrics, run: str, summaries: Mapping[str, Summary], job: Path
) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    if "checkpoint/seconds" in summaries:
        found["checkpoint"] = store.curve(run, "checkpoint/seconds", 60).steps
    resumed = tuple(
        event.resumed_step
        for event in read_events(job)
        if isinstance(event, Start) and event.resumed_step
    )
    return {**found, "resumed": resumed} if resumed else found


def story_of_job(folder: Path) -> tuple[Scope, ...]:
    """What a job told, by its own folder; nothing where that is gone."""
    try:
        return read_story(folder / STORY)
    except StorageError:
        return ()
