"""`shammah runs`: what training measured, of every run in the data folder. Needs no model."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shammah.backends.metric_curves import Curve
from shammah.backends.metric_rows import RunRecord, Summary
from shammah.backends.sqlite_metrics import SqliteMetrics
from shammah.cli.context import log_changes, paths_of, settings_of, start_log
from shammah.cli.output import coloured, emit, say, tell
from shammah.errors import UsageError
from shammah.files import write_atomic
from shammah.repl.text import columns, width_of_output
from shammah.repl.wording import runs as wording
from shammah.repl.wording.story import story_tree
from shammah.tracking.finding import find_run, named_curves
from shammah.tracking.loggers.store import open_store
from shammah.tracking.story import STORY, read_story, scope_record
from shammah.tracking.story_html import story_page

LOOK_SECONDS = 0.3
POINTS = 400
"""Places of a curve in JSON."""


def list_all(options: Namespace) -> int:
    with _store(options) as store:
        rows = [(record, _by_name(store, record)) for record in store.overview()]
    if options.json:
        emit([_summary(record, metrics) for record, metrics in rows])
    elif rows:
        say(wording.runs_table(rows, coloured=coloured()))
    else:
        tell("No run yet: the first one comes with the first training job.")
    return 0


def show(options: Namespace) -> int:
    with _store(options) as store:
        record = find_run(store, options.name)
        metrics = store.summaries(record.name)
        places = POINTS if options.json else wording.SPARK
        curves = {one.metric: store.curve(record.name, one.metric, places) for one in metrics}
    if options.json:
        emit(
            {
                **_summary(record, {}),
                "about": record.about,
                "metrics": [
                    {**asdict(one), "curve": _points(curves[one.metric])} for one in metrics
                ],
            }
        )
    else:
        say(wording.run_details(record, metrics, curves, coloured=coloured()))
    return 0


def compare(options: Namespace) -> int:
    if len(options.names) < 2:
        raise UsageError("There is nothing to compare with: name two runs or more.")
    with _store(options) as store:
        records = [find_run(store, run) for run in options.names]
        metrics = [_by_name(store, record) for record in records]
    differing = wording.differing(records)
    if options.json:
        emit(
            {
                "runs": [
                    _summary(record, one) for record, one in zip(records, metrics, strict=True)
                ],
                "differing": dict(differing),
            }
        )
    else:
        say(wording.comparison(records, metrics, differing, coloured=coloured()))
    return 0


def draw(options: Namespace) -> int:
    width = options.width or (columns() if coloured() else min(columns(), width_of_output()))
    with _store(options) as store:
        record = find_run(store, options.name)
        places = POINTS if options.json else max(20, width) * 2
        curves = named_curves(store, record.name, options.metric or wording.DRAWN, places)
    if options.json:
        drawn = {name: _points(curve) for name, curve in curves.items()}
        emit({"run": record.name, "curves": drawn})
    else:
        say(wording.curves_drawn(record.name, curves, width=width, coloured=coloured()))
    return 0


def tail(options: Namespace) -> int:
    with _store(options) as store:
        record = find_run(store, options.name)
        place = store.newest(record.name, options.lines) if options.lines else 0
        while True:
            # Asked before the records are, so that what a run writes last is not missed.
            running = store.get(record.name).status == "running"
            while found := store.after(record.name, place):
                place = found[-1][0]
                for _, step, metrics in found:
                    if options.json:
                        emit({"run": record.name, "step": step, **metrics})
                    else:
                        print(wording.tail_line(step, metrics), flush=True)
            if not (options.follow and running):
                break
            time.sleep(LOOK_SECONDS)
    return 0


def story(options: Namespace) -> int:
    if options.depth is not None and options.depth < 1:
        raise UsageError("--depth takes a number from 1 on.")
    file, title = _story_file(options)
    told = read_story(file)
    if options.html is not None:
        page = Path(options.html).expanduser().absolute()
        write_atomic(page, story_page(told, title))
        if options.json:
            emit({"html": str(page)})
        else:
            tell(f"Written to {page}")
    elif options.json:
        emit([scope_record(scope) for scope in told])
    else:
        width = columns() if coloured() else min(columns(), width_of_output())
        say(story_tree(told, width=width, coloured=coloured(), depth=options.depth))
    return 0


def _story_file(options: Namespace) -> tuple[Path, str]:
    """The file of a run's story, or of the folder that is named, and what to call it.

    Raises:
        MetricsError: there is no such run.
        UsageError: it has no story.
    """
    if options.name is not None and (Path(options.name).expanduser() / STORY).is_file():
        folder = Path(options.name).expanduser().absolute()
        start_log(paths := paths_of(options), settings_of(paths, log_changes(options)))
        return folder / STORY, folder.name
    with _store(options) as store:
        name = find_run(store, options.name).name
    file = paths_of(options).jobs / name.removeprefix("job-") / STORY
    if not file.is_file():
        raise UsageError(f"{name} has no story.", hint="Training jobs and evaluations tell one.")
    return file, name


def delete(options: Namespace) -> int:
    with _store(options) as store:
        names = [find_run(store, run).name for run in options.names]
        for name in dict.fromkeys(names):
            store.delete(name)
    if options.json:
        emit({"deleted": names})
    else:
        tell(f"Deleted: {', '.join(names)}. The jobs and their adapters stay.")
    return 0


@contextmanager
def _store(options: Namespace) -> Iterator[SqliteMetrics]:
    paths = paths_of(options)
    start_log(paths, settings_of(paths, log_changes(options)))
    store = open_store(paths.data)
    try:
        yield store
    finally:
        store.close()


def _by_name(store: SqliteMetrics, record: RunRecord) -> dict[str, Summary]:
    return {one.metric: one for one in store.summaries(record.name)}


def _summary(record: RunRecord, metrics: dict[str, Summary]) -> dict[str, Any]:
    about = {name: record.about.get(name) for name in ("title", "key", "group", "tags")}
    shown: dict[str, Any] = {
        "run": record.name,
        "status": record.status,
        "began": record.began,
        "seconds": record.seconds,
        **about,
    }
    if metrics:
        shown["steps"] = wording.steps_of(metrics)
        shown["metrics"] = {name: one.last for name, one in metrics.items()}
    return shown


def _points(curve: Curve) -> list[tuple[int, float]]:
    return list(zip(curve.steps, curve.values, strict=True))
