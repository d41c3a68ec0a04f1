"""The store of all runs in the data folder, which `shammah runs` reads. Always on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shammah.backends.sqlite_metrics import SqliteMetrics
from shammah.ports.metrics_store import Number
from shammah.tracking.loggers.base import Artifact, Outcome, RunIdentity, RunLogger

RUNS = "runs.db"


def open_store(data: Path) -> SqliteMetrics:
    """The store of a data folder.

    Raises:
        MetricsError: it cannot be opened.
    """
    return SqliteMetrics(data / RUNS)


class StoreLogger(RunLogger):
    """Writes a run with what is known of it, and how it ended."""

    tool = "runs"

    def __init__(self, run: RunIdentity) -> None:
        self._run = run
        self._store = open_store(run.data)
        self._texts: dict[str, str] = {}
        self._artifacts: dict[str, dict[str, str | int | float]] = {}
        self._store.begin(
            run.name,
            {
                "title": run.shown,
                "key": run.key,
                "project": run.project,
                "group": run.group,
                "tags": list(run.tags),
            },
        )

    def log_metrics(self, metrics: Mapping[str, Number], step: int) -> None:
        self._store.record(metrics, step=step, run=self._run.name)

    def log_hparams(self, hparams: Mapping[str, Any]) -> None:
        self._store.begin(self._run.name, {"hparams": hparams})

    def log_text(self, name: str, text: str, step: int | None = None) -> None:
        self._texts[name] = text

    def log_artifact(self, artifact: Artifact) -> None:
        self._artifacts[artifact.name] = {"kind": artifact.kind, **artifact.lineage}

    def close(self, outcome: Outcome = "done") -> None:
        self._store.end(
            self._run.name, outcome, {"texts": self._texts, "artifacts": self._artifacts}
        )
        self._store.close()
