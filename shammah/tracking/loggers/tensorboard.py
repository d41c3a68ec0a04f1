"""TensorBoard's event files: scalars, hyperparameters and texts. Nothing leaves the machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams as hparams_summary

from shammah.files import private_folder
from shammah.ports.metrics_store import Number
from shammah.tracking.loggers.base import Artifact, Outcome, RunIdentity, RunLogger, flat

FLUSH_SECONDS = 5


class TensorBoardLogger(RunLogger):
    """One folder of event files for each run, below `tracking/tensorboard/PROJECT[/GROUP]`."""

    tool = "tensorboard"

    def __init__(self, run: RunIdentity) -> None:
        folder = run.tool_folder(self.tool) / run.project
        if run.group:
            folder /= "".join(
                sign if sign.isalnum() or sign in "-_." else "_" for sign in run.group
            )
        self._folder = private_folder(folder / run.key)
        # What an interrupted run had written after its checkpoint is not shown.
        purge = run.resumed_step + 1 if run.resumed_step else None
        self._writer = SummaryWriter(str(self._folder), purge_step=purge, flush_secs=FLUSH_SECONDS)
        self._writer.add_text("run", f"{run.shown} ({', '.join(run.tags)})", run.resumed_step)

    def log_metrics(self, metrics: Mapping[str, Number], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def log_hparams(self, hparams: Mapping[str, Any]) -> None:
        # `add_hparams` would make a run of its own for them; these belong to this one.
        summaries: Any = hparams_summary
        writer: Any = self._writer
        for summary in summaries(flat(hparams), {"loss": 0.0, "learned": 0.0}):
            writer.file_writer.add_summary(summary)

    def log_text(self, name: str, text: str, step: int | None = None) -> None:
        self._writer.add_text(name, text, step)

    def log_artifact(self, artifact: Artifact) -> None:
        """TensorBoard keeps no files: the name and the lineage are written as a text."""
        about = {"kind": artifact.kind, "path": str(artifact.path), **artifact.lineage}
        self._writer.add_text(f"artifacts/{artifact.name}", json.dumps(about, indent=1))

    def sync(self) -> None:
        self._writer.flush()

    @property
    def url(self) -> str:
        return str(self._folder)

    def close(self, outcome: Outcome = "done") -> None:
        self._writer.close()
