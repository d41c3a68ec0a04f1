"""OpenTelemetry: a run as a trace of its stages and steps, its figures as metrics.

Written into the data folder, or sent to a collector. Spans come from the telemetry of this process,
from when the logger is open on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shammah.ports.metrics_store import Number
from shammah.tracking import telemetry
from shammah.tracking.loggers.base import Artifact, Outcome, RunIdentity, RunLogger, flat
from shammah.tracking.otel import Destination, SpanMap

HANDLER = "otel"
EVENTS = [name for name in telemetry.NAMES if name.split(".")[0] in ("stage", "training")]
"""The run itself is the workflow's span."""


class OtelLogger(RunLogger):
    """One trace, whose outermost span is the run."""

    tool = "otel"

    def __init__(self, run: RunIdentity) -> None:
        self._run = run
        self._to = Destination(run.otel_endpoint, run.online, run.tool_folder(self.tool))
        self._tracers, self._meters = self._to.open({"service.instance.id": run.key})
        about = {
            "run": run.name, "title": run.shown, "project": run.project, "group": run.group,
            "tags": list(run.tags), "resumed_step": run.resumed_step,
        }  # fmt: skip
        self._spans = SpanMap(self._tracers, self._meters, root=run.shown, attributes=about)
        telemetry.attach_many(HANDLER, EVENTS, self._spans.told)

    def log_metrics(self, metrics: Mapping[str, Number], step: int) -> None:
        about = {"run": self._run.key}
        for name, value in {**metrics, "step": step}.items():
            self._spans.gauge(name, value, about)

    def log_hparams(self, hparams: Mapping[str, Any]) -> None:
        if self._spans.root is not None:
            self._spans.root.set_attributes(flat(hparams))

    def log_text(self, name: str, text: str, step: int | None = None) -> None:
        self._spans.event(name, {"text": text, "step": step})

    def log_artifact(self, artifact: Artifact) -> None:
        about = {"name": artifact.name, "kind": artifact.kind, **artifact.lineage}
        self._spans.event("artifact", about)

    def sync(self) -> None:
        self._tracers.force_flush()
        self._meters.force_flush()

    @property
    def url(self) -> str:
        return self._to.shown

    def close(self, outcome: Outcome = "done") -> None:
        telemetry.detach(HANDLER)
        self._spans.end(failed=outcome == "failed")
        self._tracers.shutdown()
        self._meters.shutdown()
