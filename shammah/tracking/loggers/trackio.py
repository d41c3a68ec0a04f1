"""Trackio's database in the data folder (`trackio show` opens it). Nothing leaves the machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shammah.errors import TrackingError
from shammah.files import private_folder
from shammah.ports.metrics_store import Number
from shammah.tracking.loggers.base import Artifact, Outcome, RunIdentity, RunLogger

REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID", "TRACKIO_DATASET_ID")
"""Where the client would send runs if it were told so by the environment."""


class TrackioLogger(RunLogger):
    """One run of a Trackio project; a run of the same key goes on."""

    tool = "trackio"

    def __init__(self, run: RunIdentity) -> None:
        folder = private_folder(run.tool_folder(self.tool))
        sent = [name for name in REMOTE if os.environ.get(name)]
        if sent:
            raise TrackingError(
                f"{', '.join(sent)} would send the run elsewhere; this logger does not.",
                hint="Unset it to log into the data folder.",
            )
        os.environ["TRACKIO_DIR"] = str(folder)  # read when the client is imported
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        import trackio
        from trackio.utils import TRACKIO_DIR

        self._client: Any = trackio
        self._folder = Path(TRACKIO_DIR)
        self._run: Any = trackio.init(
            run.project,
            name=run.key,
            group=run.group or None,
            config={"name": run.shown, "tags": list(run.tags)},
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log_metrics(self, metrics: Mapping[str, Number], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def log_hparams(self, hparams: Mapping[str, Any]) -> None:
        self._run.config.update(dict(hparams))

    def log_artifact(self, artifact: Artifact) -> None:
        made = self._client.Artifact(
            artifact.name, type=artifact.kind, metadata=dict(artifact.lineage)
        )
        made.add_file(str(artifact.path))
        self._run.log_artifact(made)

    @property
    def url(self) -> str:
        return str(self._folder)

    def close(self, outcome: Outcome = "done") -> None:
        self._run.finish()
