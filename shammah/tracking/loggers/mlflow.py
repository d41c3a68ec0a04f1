"""MLflow through its own client: a database in the data folder, or a server where that is allowed.

MLflow's own usage statistics are switched off. A run that goes on is found by its key, which it
carries as the tag `shammah.run`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlparse

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read when the client is imported

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from shammah.errors import TrackingError
from shammah.files import private_folder
from shammah.ports.metrics_store import Number
from shammah.tracking.loggers.base import Artifact, Outcome, RunIdentity, RunLogger, flat

TAG = "shammah.run"
VALUE_LENGTH = 500
"""Characters of a parameter that every version takes."""
STATUS: dict[Outcome, str] = {"done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class MlflowLogger(RunLogger):
    """One run of an MLflow experiment, which is the project."""

    tool = "mlflow"

    def __init__(self, run: RunIdentity) -> None:
        # A server that does not answer is given up in seconds, not in the client's ten minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        folder = private_folder(run.tool_folder(self.tool))
        uri = run.mlflow_uri or f"sqlite:///{folder / 'mlflow.db'}"
        self._local = urlparse(uri).scheme not in ("http", "https", "databricks")
        if not self._local and not run.online:
            raise TrackingError(
                f"{uri} is a server, and tracking.online is false.",
                hint="Set tracking.online to true to send runs there.",
            )
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._uri = uri
        self._client: Any = MlflowClient(tracking_uri=uri)
        self._experiment = self._found(run, None if not self._local else str(folder / "artifacts"))
        self._id = self._begun(run)
        self._params: dict[str, str] = dict(self._client.get_run(self._id).data.params)

    def log_metrics(self, metrics: Mapping[str, Number], step: int) -> None:
        now = int(time.time() * 1000)
        values = [Metric(name, float(value), now, step) for name, value in metrics.items()]
        self._client.log_batch(self._id, metrics=values)

    def log_hparams(self, hparams: Mapping[str, Any]) -> None:
        """A parameter cannot change: where a run goes on with others, the first ones stay."""
        given = {name: str(value)[:VALUE_LENGTH] for name, value in flat(hparams).items()}
        new = {name: value for name, value in given.items() if name not in self._params}
        self._params |= new
        if new:
            params = [Param(name, value) for name, value in new.items()]
            for start in range(0, len(params), 100):  # as many as a server takes at once
                self._client.log_batch(self._id, params=params[start : start + 100])

    def log_text(self, name: str, text: str, step: int | None = None) -> None:
        self._client.log_text(self._id, text, f"{name}.txt")

    def log_artifact(self, artifact: Artifact) -> None:
        self._client.log_artifact(self._id, str(artifact.path), artifact.kind)
        about = {"name": artifact.name, **artifact.lineage}
        self._client.log_dict(self._id, about, f"{artifact.kind}/{artifact.name}.json")
        for name, value in artifact.lineage.items():
            self._client.set_tag(self._id, f"{artifact.kind}.{name}", str(value))

    @property
    def url(self) -> str:
        if self._local:
            return self._uri
        return f"{self._uri}/#/experiments/{self._experiment}/runs/{self._id}"

    def close(self, outcome: Outcome = "done") -> None:
        self._client.set_terminated(self._id, STATUS[outcome])

    def _found(self, run: RunIdentity, artifacts: str | None) -> str:
        known = self._client.get_experiment_by_name(run.project)
        if known is not None:
            return str(known.experiment_id)
        return str(self._client.create_experiment(run.project, artifact_location=artifacts))

    def _begun(self, run: RunIdentity) -> str:
        before = self._client.search_runs(
            [self._experiment], filter_string=f"tags.`{TAG}` = '{run.key}'", max_results=1
        )
        if before:
            known = str(before[0].info.run_id)
            self._client.update_run(known, status="RUNNING")
            return known
        tags = {TAG: run.key, **{f"tag.{tag}": "true" for tag in run.tags}}
        if run.group:
            tags["group"] = run.group
        made = self._client.create_run(self._experiment, run_name=run.shown, tags=tags)
        return str(made.info.run_id)
