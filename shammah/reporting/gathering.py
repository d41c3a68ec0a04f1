"""From a name to all that is known of it: the run, its adapter, the evaluations of that.

Reads the store of runs, the library, job folders and evaluation folders. Loads no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from shammah.adapters.library import Adapter, AdapterLibrary
from shammah.adapters.metadata import AdapterMetadata
from shammah.backends.metric_rows import RunRecord, Summary
from shammah.backends.sqlite_metrics import SqliteMetrics
from shammah.errors import AdapterNotFoundError, MetricsError, UsageError
from shammah.paths import Paths
from shammah.reporting.contents import Ancestor, Contents, Evaluated, TaughtLesson
from shammah.reporting.evaluations import (
    adapter_of,
    evaluated,
    evaluations_of,
    is_evaluation,
    settings_in,
)
from shammah.reporting.runs import (
    behaviour_of,
    charts_of,
    health_of,
    lessons_of_job,
    story_of_job,
    troubles_of,
)
from shammah.reporting.wording import count, duration, figure_text, moment, share
from shammah.tracking.finding import find_run
from shammah.tracking.loggers.base import flat

DEEPEST = 12
"""Generations of parents that are shown."""


@dataclass(frozen=True, slots=True)
class Stores:
    """Where things are looked up."""

    runs: SqliteMetrics
    library: AdapterLibrary
    paths: Paths


def gather(name: str | None, stores: Stores, *, lessons: bool = True) -> Contents:
    """All that is known of a run, an adapter or an evaluation.

    Args:
        name: of a run, as `find_run` takes it, of an adapter, or an evaluation's folder; None is
            the newest run.
        lessons: whether what the user said may be in it.

    Raises:
        UsageError: there is nothing of that name.
        MetricsError: there is no run, or several have that title.
        InputError: the evaluation is broken.
    """
    folder = _evaluation_folder(name, stores.paths)
    if folder is not None:
        found = _of_evaluation(folder, stores)
    else:
        record, adapter = _run_or_adapter(name, stores)
        found = _of(record, adapter, stores, "run" if record else "adapter")
        if adapter is not None and (record is None or _is_name(name, adapter)):
            found = replace(found, kind="adapter", name=adapter.name, title=adapter.name)
    if not lessons and found.lessons:
        left_out = f"{count(len(found.lessons), 'lesson')} left out: they quote the user."
        found = replace(found, lessons=(), left_out=left_out)
    return found if lessons else replace(found, story=())


def _run_or_adapter(name: str | None, stores: Stores) -> tuple[RunRecord | None, Adapter | None]:
    """The run of that name with its adapter, or the adapter of that name with its run."""
    problem: MetricsError | None = None
    try:
        record = find_run(stores.runs, name)
        return record, _adapter_of(record, stores.library)
    except MetricsError as error:
        if name is None or " are called " in error.message:
            raise
        problem = error
    try:
        adapter = stores.library.get(name)
    except AdapterNotFoundError as error:
        raise UsageError(
            f"There is no run, adapter or evaluation {name!r}.",
            hint="`shammah runs`, `shammah adapters list` show what there is; an evaluation is "
            "named by its folder.",
        ) from (problem or error)
    return _run_of(adapter, stores.runs), adapter


def _of(record: RunRecord | None, adapter: Adapter | None, stores: Stores, kind: str) -> Contents:
    about = adapter.require_metadata() if adapter is not None else None
    contents = Contents(kind="run" if kind == "run" else "adapter", name="", title="")
    if record is not None:
        contents = _with_run(contents, record, stores)
    if adapter is not None and about is not None:
        contents = _with_adapter(contents, about, adapter.name, stores)
    if not contents.title and adapter is not None:
        contents = replace(contents, name=adapter.name, title=adapter.name)
    return replace(contents, figures=tuple(_figures(record, about, contents)))


def _of_evaluation(folder: Path, stores: Stores) -> Contents:
    asked = adapter_of(settings_in(folder))
    adapter = next(
        (
            each
            for each in stores.library.list()
            if each.metadata is not None and each.metadata.sha256 == asked.get("sha256")
        ),
        None,
    )
    record = _run_of(adapter, stores.runs) if adapter is not None else None
    contents = _of(record, adapter, stores, "adapter")
    done, spread = evaluated(folder)
    first = done[0]
    who = first.who if first.against is None else f"{first.who} beside {first.against}"
    facts = [first.data, *(f"{label} {value}" for label, value in first.facts[:1])]
    if record is not None:
        facts.append(f"trained in {record.name}")
    return replace(
        contents,
        kind="evaluation",
        name=folder.name,
        title=who,
        facts=tuple(facts),
        evaluations=tuple(done),
        spread=spread,
        figures=(*_evaluation_figures(first), *contents.figures[:2]),
    )


def _with_run(contents: Contents, record: RunRecord, stores: Stores) -> Contents:
    summaries = {one.metric: one for one in stores.runs.summaries(record.name)}
    hparams = flat(record.about.get("hparams", {}))
    versions = {
        name.removeprefix("versions."): str(value)
        for name, value in hparams.items()
        if name.startswith("versions.")
    }
    job = stores.paths.jobs / record.name.removeprefix("job-")
    curves = charts_of(stores.runs, record, summaries, hparams, job)
    return replace(
        contents,
        name=record.name,
        run=record.name,
        title=str(record.about.get("title") or record.name),
        facts=tuple(_run_facts(record, hparams)),
        charts=curves,
        health=tuple(health_of(summaries, curves, job)),
        troubles=tuple(troubles_of(record, summaries, job)),
        measurements=tuple(summaries.values()),
        behaviour=tuple(behaviour_of(summaries)),
        lessons=lessons_of_job(job),
        story=story_of_job(job),
        settings={
            key: value
            for key, value in hparams.items()
            if value != "" and not key.startswith("versions.")
        },
        versions=versions,
    )


def _with_adapter(
    contents: Contents, about: AdapterMetadata, name: str, stores: Stores
) -> Contents:
    problems = {each.question: each.problem for each in contents.lessons}
    taught = tuple(
        TaughtLesson(
            each.query,
            each.aim,
            each.learned if about.merge is None else None,
            each.before,
            each.after,
            problems.get(each.query),
        )
        for each in about.lessons
    )
    settings = dict(contents.settings)
    if not settings:
        settings = flat(
            {
                "model": {"name": about.base_model, "fingerprint": about.base_fingerprint},
                "lora": about.lora.model_dump(mode="json"),
                "training": dict(about.metrics),
            }
        )
    failures = [f"It failed a check: {failure}." for failure in about.failures]
    passed = [] if failures or about.origin != "trained" else ["The adapter passed its checks."]
    return replace(
        contents,
        adapter=name,
        facts=contents.facts or tuple(_adapter_facts(about)),
        lessons=taught or contents.lessons,
        lineage=_ancestor(name, about, stores.library),
        evaluations=tuple(evaluations_of(stores.paths.evaluations, about.sha256)),
        settings=settings,
        health=(*passed, *contents.health),
        # The worker says the same when a job is over; the adapter's own word stands.
        troubles=(*failures, *contents.troubles),
    )


def _figures(
    record: RunRecord | None, about: AdapterMetadata | None, contents: Contents
) -> list[tuple[str, str, str]]:
    known = {one.metric: one for one in contents.measurements}
    found: list[tuple[str, str, str]] = []
    if "loss" in known:
        loss = known["loss"]
        found.append(("Loss", figure_text(loss.last), f"from {figure_text(loss.first)}"))
    elif about is not None and "final_loss" in about.metrics:
        found.append(("Loss", figure_text(about.metrics["final_loss"]), "at the end"))
    judged = [each.learned for each in contents.lessons if each.learned is not None]
    if judged:
        found.append(("Lessons learned", f"{sum(judged)} of {len(judged)}", "answered as taught"))
    steps = _steps(known, about)
    if steps is not None:
        epochs = (
            known["epoch"].last if "epoch" in known else (about and about.metrics.get("epochs"))
        )
        found.append(("Steps", f"{steps:,}", f"in {count(int(epochs), 'epoch')}" if epochs else ""))
    if record is not None:
        found.append(("Took", duration(record.seconds), f"{record.status}"))
    elif about is not None and "seconds" in about.metrics:
        found.append(("Took", duration(about.metrics["seconds"]), ""))
    if "tokens_per_second" in known:
        speed = known["tokens_per_second"].last
        found.append(("Throughput", f"{speed:,.0f}", "tokens per second"))
    if contents.evaluations:
        found += _evaluation_figures(contents.evaluations[0])[:1]
    return found


def _evaluation_figures(done: Evaluated) -> list[tuple[str, str, str]]:
    found = [
        (
            metric.name,
            f"{metric.mean:.3f}",
            f"{metric.interval.low:.3f} to {metric.interval.high:.3f}",
        )
        for metric in done.figures.metrics[:2]
        if metric.scored
    ]
    failed = f"{done.figures.failed:,} with an error" if done.figures.failed else "none failed"
    found.append(("Examples", f"{done.figures.examples:,}", failed))
    found.append(("Passed by all", share(done.figures.overall_pass_rate), done.data))
    return found


def _steps(known: Mapping[str, Summary], about: AdapterMetadata | None) -> int | None:
    if "loss" in known:
        return known["loss"].last_step
    steps = about.metrics.get("steps") if about is not None else None
    return int(steps) if steps is not None else None


def _run_facts(record: RunRecord, hparams: Mapping[str, Any]) -> list[str]:
    facts = [record.status, moment(record.began)]
    if record.about.get("title") not in (None, "", record.name):
        facts.append(record.name)
    if hparams.get("model.name"):
        facts.append(f"{hparams['model.name']} in {hparams.get('model.dtype', 'fp32')}")
    if hparams.get("model.device"):
        facts.append(f"on {hparams['model.device']}")
    facts += record.about.get("tags", [])
    return [*map(str, facts)]


def _adapter_facts(about: AdapterMetadata) -> list[str]:
    facts = [about.origin, _day(about.created_at), about.base_model, f"rank {about.lora.rank}"]
    facts.append(f"{about.parameters:,} parameters")
    return [*facts, *([f"for {about.domain}"] if about.domain else [])]


def _ancestor(
    name: str,
    about: AdapterMetadata | None,
    library: AdapterLibrary,
    share_of: float | None = None,
    seen: Sequence[str] = (),
) -> Ancestor:
    """An adapter with its parents; each is followed once on its own line, so that a circle ends."""
    if about is None or name in seen or len(seen) >= DEEPEST:
        return Ancestor(name, share=share_of)
    learned = sum(each.learned for each in about.lessons)
    facts = [*_adapter_facts(about)]
    if about.lessons:
        facts.append(f"{learned} of {count(len(about.lessons), 'lesson')} learned")
    if "final_loss" in about.metrics:
        facts.append(f"loss {figure_text(about.metrics['final_loss'])}")
    if about.merge is not None:
        facts.append(f"merged by {about.merge.method}")
    weights = {each.name: each.weight for each in about.merge.parents} if about.merge else {}
    parents = tuple(
        _ancestor(each, _metadata(library, each), library, weights.get(each), (*seen, name))
        for each in about.parents
    )
    return Ancestor(name, tuple(facts), share_of, parents)


def _metadata(library: AdapterLibrary, name: str) -> AdapterMetadata | None:
    try:
        return library.get(name).metadata
    except AdapterNotFoundError:
        return None


def _adapter_of(record: RunRecord, library: AdapterLibrary) -> Adapter | None:
    """The adapter that a run made, by the checksum of its file."""
    made = {each.get("sha256") for each in record.about.get("artifacts", {}).values()} - {None}
    return _first(library, made) if made else None


def _first(library: AdapterLibrary, checksums: set[Any]) -> Adapter | None:
    for adapter in library.list():
        if adapter.metadata is not None and adapter.metadata.sha256 in checksums:
            return adapter
    return None


def _run_of(adapter: Adapter, store: SqliteMetrics) -> RunRecord | None:
    if adapter.metadata is None:
        return None
    for record in store.overview():
        made = record.about.get("artifacts", {}).values()
        if any(each.get("sha256") == adapter.metadata.sha256 for each in made):
            return record
    return None


def _is_name(name: str | None, adapter: Adapter) -> bool:
    return name is not None and name.removesuffix(".safetensors") == adapter.name


def _evaluation_folder(name: str | None, paths: Paths) -> Path | None:
    if name is None:
        return None
    for folder in (Path(name).expanduser().absolute(), paths.evaluations / name):
        if is_evaluation(folder):
            return folder
    return None


def _day(when: datetime) -> str:
    return moment(when.timestamp())
