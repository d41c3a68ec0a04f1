"""Runs as people name them, and the curves that are wanted of them."""

from __future__ import annotations

from collections.abc import Sequence

from shammah.backends.metric_curves import Curve
from shammah.backends.metric_rows import RunRecord
from shammah.backends.sqlite_metrics import SqliteMetrics
from shammah.errors import MetricsError, UsageError


def find_run(store: SqliteMetrics, name: str | None) -> RunRecord:
    """A run by its name, the number of its job, its title or its key; None is the newest.

    Raises:
        MetricsError: there is none, or not one.
    """
    records = store.overview()
    if not records:
        raise MetricsError(
            "there is no run yet.", backend=store.name, hint="Train something first."
        )
    if name is None:
        return records[0]
    for record in records:
        if name == record.name or f"job-{name}" == record.name or name == record.about.get("key"):
            return record
    titled = [record for record in records if name == record.about.get("title")]
    if len(titled) > 1:
        raise MetricsError(
            f"{len(titled)} runs are called {name!r}.",
            backend=store.name,
            hint=f"They are {', '.join(record.name for record in titled)}.",
        )
    return titled[0] if titled else store.get(name)


def named_curves(
    store: SqliteMetrics, run: str, metrics: Sequence[str], places: int
) -> dict[str, Curve]:
    """The curves of some metrics.

    Raises:
        UsageError: a metric was not measured in the run.
    """
    known = [one.metric for one in store.summaries(run)]
    for name in metrics:
        if name not in known:
            raise UsageError(
                f"{run} has no metric {name!r}.",
                hint=f"It has {', '.join(known)}." if known else "Nothing was measured.",
            )
    return {name: store.curve(run, name, places) for name in metrics}
