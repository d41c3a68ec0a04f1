"""The run's own folder: `metrics.jsonl` and `config.json`. Always on; what every other tool lacks
can be read here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from shammah.backends.jsonl_metrics import JsonlMetrics
from shammah.files import write_atomic
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
        # `flush` waits for nothing but a thread, so that a loop of its own is as good as any.
        with_loop = asyncio.new_event_loop()
        try:
            with_loop.run_until_complete(self._metrics.flush())
        finally:
            with_loop.close()

    @property
    def url(self) -> str:
        return str(self._run.folder / METRICS)

    def close(self, outcome: Outcome = "done") -> None:
        self._metrics.close()
