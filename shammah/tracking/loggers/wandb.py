"""Weights & Biases through its own client: offline into a folder, or online where that is allowed.

Offline is the default; `wandb sync FOLDER` sends such a run later. What the client would add of its
own accord (the machine, its load, installed packages, the git repository, the code, the console) is
switched off.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

os.environ["WANDB_ERROR_REPORTING"] = "false"  # read when the client is imported

import wandb

from shammah.errors import TrackingError
from shammah.files import private_folder
from shammah.ports.metrics_store import Number
from shammah.tracking.loggers.base import Artifact, Outcome, RunIdentity, RunLogger

START_SECONDS = 30.0
EXIT_CODES: dict[Outcome, int] = {"done": 0, "failed": 1, "interrupted": 255}


class WandbLogger(RunLogger):
    """One run of W&B. Its steps are a metric `step`, since the client's own can only grow."""

    tool = "wandb"

    def __init__(self, run: RunIdentity) -> None:
        if run.online and not (os.environ.get("WANDB_API_KEY") or _logged_in()):
            raise TrackingError(
                "there is no API key.",
                hint="Run `wandb login`, set WANDB_API_KEY, or set tracking.online to false.",
            )
        self._offline = not run.online
        folder = private_folder(run.tool_folder(self.tool))
        os.environ["WANDB_SILENT"] = "true"
        # Copies of artifacts wait here until they are sent.
        os.environ.setdefault("WANDB_DATA_DIR", str(folder / "data"))
        os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "cache"))
        self._run: Any = wandb.init(
            project=run.project,
            id=run.key,
            name=run.shown,
            group=run.group or None,
            tags=list(run.tags) or None,
            dir=str(folder),
            mode="online" if run.online else "offline",
            resume="allow" if run.online else None,
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=START_SECONDS,
                disable_code=True,
                disable_git=True,
                save_code=False,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log_metrics(self, metrics: Mapping[str, Number], step: int) -> None:
        self._run.log({**metrics, "step": step})

    def log_hparams(self, hparams: Mapping[str, Any]) -> None:
        self._run.config.update(dict(hparams), allow_val_change=True)

    def log_text(self, name: str, text: str, step: int | None = None) -> None:
        self._run.summary[name] = text

    def log_artifact(self, artifact: Artifact) -> None:
        made = wandb.Artifact(artifact.name, type=artifact.kind, metadata=dict(artifact.lineage))
        made.add_file(str(artifact.path), name=artifact.path.name)
        self._run.log_artifact(made)

    @property
    def url(self) -> str | None:
        found = str(self._run.settings.sync_dir) if self._offline else self._run.url
        return str(found) if found else None

    def close(self, outcome: Outcome = "done") -> None:
        self._run.finish(exit_code=EXIT_CODES[outcome])
        # The client's own process may still be writing the file, and must not be left behind.
        wandb.teardown(EXIT_CODES[outcome])


def _logged_in() -> bool:
    """Whether `wandb login` left a key, without asking a server."""
    return bool(wandb.api.api_key)
