"""The run's own folder: `metrics.jsonl` and `config.json`. Always on; what every other tool lacks
can be read here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from shammah.backends.jsonl_metrics import JsonlMetrics
from shammah.files import sync, write_atomic
from shammah.ports.metrics_store import Number
from shammah.tracking.loggers.base import Outcome, RunIdentity, RunLogger

METRICS = "metrics.jsonl"
CONFIG = "config.json"


class JsonlLogger(RunLogger):
    """Metrics survive the process the moment they are logged."""

    tool = "jsonl"
    immediate = True

    def __init__(self, run: RunIdentity) -> None:
        self._run = run
        self._metrics = JsonlMetrics(run.folder / METRICS)

    def log_metrics(self, metrics: Mapping[str, Number], step: int) -> None:
        self._metrics.record(metrics, step=step, run=self._run.name)

    def log_hparams(self, hparams: Mapping[str, Any]) -> None:
        write_atomic(self._run.folder / CONFIG, json.dumps(hparams, indent=1) + "\n")

    def sync(self) -> None:
        sync(self._run.folder / METRICS)  # `flush` is for those who have an event loop to spare

    @property
    def url(self) -> str:
        return str(self._run.folder / METRICS)

    def close(self, outcome: Outcome = "done") -> None:
        self.sync()
        self._metrics.close()
