"""How a job is written down: as a run, in its folder, in the store of all runs, and in the tools
that were chosen. No word of a conversation is written anywhere but in the job's own folder.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from shammah.learning.gate import Figures, GateReport
from shammah.learning.job import MEASURED, Complete, JobSpec, Progress, Start
from shammah.models.describe import ModelDescription
from shammah.tracking import telemetry
from shammah.tracking.loggers.base import Artifact, Outcome, RunIdentity
from shammah.tracking.loggers.multiplexer import CLOSE_SECONDS, Multiplexer
from shammah.tracking.loggers.opening import open_loggers
from shammah.version import VERSION

HANDLER, ISSUES = "run log", "issues"
INTERRUPTED_SECONDS = 3.0
"""What loggers get to finish where the job was told to end."""


class RunLog:
    """The loggers of one job's run."""

    def __init__(self, run: RunIdentity, loggers: Multiplexer) -> None:
        self.run = run
        self.loggers = loggers
        self.outcome: Outcome = "done"
        """How the run will have ended."""

    def begin(self, spec: JobSpec, start: Start, model: ModelDescription) -> None:
        """What the run is made with."""
        self.loggers.log_hparams(
            {
                "model": model.hparams(),
                "lora": spec.lora.model_dump(mode="json"),
                "training": spec.training.model_dump(mode="json"),
                "lessons": start.lessons,
                "replay": start.replay,
                "parent": start.parent,
                "reason": spec.reason,
                "threads": start.threads,
                "versions": versions(),
            }
        )

    def step(self, progress: Progress) -> None:
        """The figures of one optimiser step."""
        measured = {name: getattr(progress, name) for name in MEASURED}
        self.loggers.log_metrics(
            {name: value for name, value in measured.items() if value is not None}, progress.step
        )

    def complete(self, weights: Path, complete: Complete, spec: JobSpec) -> None:
        """The adapter with what it was made from, and how it did."""
        lineage: dict[str, str | int | float] = {
            "base_model": complete.model,
            "base_fingerprint": complete.fingerprint,
            "parent": spec.parent.name if spec.parent else "none",
            "sha256": complete.sha256,
            "parameters": complete.parameters,
            "final_loss": complete.final_loss,
        }
        self.loggers.log_artifact(Artifact(weights, f"adapter-{self.run.key}", lineage=lineage))
        if complete.gate is not None:
            self.loggers.log_text("verdict", _verdict(complete.gate), complete.steps)

    def _evaluated(
        self, name: str, measured: Mapping[str, int | float], about: Mapping[str, Any]
    ) -> None:
        kind = name.removeprefix("training.")
        named = {f"{kind}/{key}": value for key, value in measured.items() if key != "step"}
        self.loggers.log_metrics(named, int(measured["step"]))


@contextmanager
def run_log(
    spec: JobSpec, folder: Path, resumed_step: int, tell: Callable[[str], object]
) -> Iterator[RunLog]:
    """The run of a job while inside; it ends as its `outcome` says, by an error as failed.

    Args:
        folder: of the job; the data folder is the one that holds the folder of jobs.
        tell: is given a line about each logger that fails, and about gradients that do.
    """
    tracking = spec.tracking
    run = RunIdentity(
        name=spec.run_name,
        key=spec.run_key,
        folder=folder,
        data=folder.parent.parent,
        project=tracking.project,
        title=tracking.name,
        group=tracking.group,
        tags=tuple(tracking.tags),
        resumed_step=resumed_step,
        online=tracking.online,
        mlflow_uri=tracking.mlflow_uri,
        otel_endpoint=tracking.otel_endpoint,
    )
    loggers = open_loggers(tracking.loggers, run, tell=tell)
    log = RunLog(run, loggers)
    events = ("training.eval", "training.checkpoint", "training.gradients")

    def issue(name: str, measured: Mapping[str, int | float], about: Mapping[str, Any]) -> None:
        tell(str(about["text"]))

    try:
        with (
            telemetry.attached(HANDLER, events, log._evaluated),
            telemetry.attached(ISSUES, ["training.issue"], issue),
        ):
            yield log
    except Exception:
        log.outcome = "failed"
        raise
    except BaseException:  # a signal
        log.outcome = "interrupted"
        raise
    finally:
        # Who was told to end is soon killed.
        interrupted = log.outcome == "interrupted"
        loggers.close(log.outcome, INTERRUPTED_SECONDS if interrupted else CLOSE_SECONDS)


def versions() -> dict[str, str]:
    """Of this program, of Python, and of what computes."""
    return {
        "shammah": VERSION,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "transformers", "peft")},
    }


def evaluated(step: int, figures: Figures) -> None:
    """Tell of a look at how the adapter behaves."""
    shares = {
        "held": figures.held / figures.earlier if figures.earlier else None,
        "unchanged": figures.unchanged / figures.anchors if figures.anchors else None,
        "endless": figures.endless / figures.looked_at if figures.looked_at else None,
        "anchor_loss": figures.anchor_loss if figures.anchors else None,
    }
    measured = {name: value for name, value in shares.items() if value is not None}
    telemetry.emit("training.eval", {"step": step, **measured})


def _verdict(gate: GateReport) -> str:
    if gate.passed:
        return "It passed its checks."
    return "It failed its checks:\n" + "\n".join(gate.failures)
