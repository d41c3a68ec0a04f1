"""Neptune through its own client: offline into a folder, or online where that is allowed.

Offline is the default; `neptune sync` sends such a run later. What the client would add of its own
accord (console, hardware, git, source files) is switched off.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Any

import neptune
from neptune.types import File

from shammah.errors import TrackingError
from shammah.files import private_folder
from shammah.ports.metrics_store import Number
from shammah.tracking.loggers.base import Artifact, Outcome, RunIdentity, RunLogger, flat


class NeptuneLogger(RunLogger):
    """One run of Neptune; `custom_run_id` is the run's key, so that a run goes on."""

    tool = "neptune"

    def __init__(self, run: RunIdentity) -> None:
        if run.online and not os.environ.get("NEPTUNE_API_TOKEN"):
            raise TrackingError(
                "there is no API token.",
                hint="Set NEPTUNE_API_TOKEN and NEPTUNE_PROJECT, or tracking.online to false.",
            )
        folder = private_folder(run.tool_folder(self.tool))
        os.environ["NEPTUNE_DATA_DIRECTORY"] = str(folder)
        self._run: Any = neptune.init_run(
            custom_run_id=run.key,
            name=run.shown,
            tags=[*run.tags, *([run.group] if run.group else [])] or None,
            mode="async" if run.online else "offline",
            capture_stdout=False,
            capture_stderr=False,
            capture_hardware_metrics=False,
            capture_traceback=False,
            git_ref=False,
            source_files=[],
        )
        self._offline = None if run.online else str(folder)
        self._files = folder / "files" / run.key
        self._newest: dict[str, int] = {}
        """The last step of each series, which can only grow."""

    def log_metrics(self, metrics: Mapping[str, Number], step: int) -> None:
        for name, value in metrics.items():
            if step > self._newest.get(name, -1):
                self._newest[name] = step
                self._run[f"metrics/{name}"].append(float(value), step=step)

    def log_hparams(self, hparams: Mapping[str, Any]) -> None:
        for name, value in flat(hparams).items():
            self._run[f"hparams/{name.replace('.', '/')}"] = value

    def log_text(self, name: str, text: str, step: int | None = None) -> None:
        self._run[f"texts/{name}"] = text

    def log_artifact(self, artifact: Artifact) -> None:
        where = f"{artifact.kind}/{artifact.name}"
        path = artifact.path
        if self._offline:  # It is sent later, when the original may be gone.
            path = private_folder(self._files) / artifact.path.name
            shutil.copyfile(artifact.path, path)
        self._run[f"{where}/file"].upload(File(str(path)))
        for name, value in artifact.lineage.items():
            self._run[f"{where}/lineage/{name}"] = value

    def sync(self) -> None:
        if not self._offline:
            self._run.sync()

    @property
    def url(self) -> str | None:
        return self._offline or str(self._run.get_url())

    def close(self, outcome: Outcome = "done") -> None:
        self._run["sys/failed"] = outcome == "failed"
        self._run.stop()
