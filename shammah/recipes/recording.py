"""How a run of a recipe is written down: in its folder, in the store of all runs, in the tools that
were chosen. What is said in the examples is written nowhere but in the run's own folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from shammah.recipes.manifest import Manifest
from shammah.recipes.place import RunPlace
from shammah.recipes.recipe import Recipe
from shammah.settings import TrackingSettings
from shammah.tracking import telemetry
from shammah.tracking.loggers.base import Artifact, Outcome, RunIdentity
from shammah.tracking.loggers.multiplexer import Multiplexer
from shammah.tracking.loggers.opening import open_loggers

START, STEP = "training.start", "training.step"
OTHERS = ("training.eval", "training.checkpoint", "training.gradients")


class Recording:
    """The loggers of one run. `outcome` is how it will have ended.

    Args:
        hparams: what it was configured with; what was left to be chosen is taken from the manifest
            when the training begins.
    """

    def __init__(
        self, loggers: Multiplexer, manifest: Manifest, hparams: Mapping[str, Any]
    ) -> None:
        self.loggers = loggers
        self.outcome: Outcome = "done"
        self._manifest = manifest
        self._hparams: Mapping[str, Any] | None = hparams

    def begin(self) -> None:
        """Tell what the run is made with, once: tools take it a single time."""
        if self._hparams is not None:
            self.loggers.log_hparams({**self._hparams, **self._manifest.parts.get("loop", {})})
            self._hparams = None

    def adapter(self, artifact: Artifact) -> None:
        """The result, with what it was made from."""
        self.loggers.log_artifact(artifact)

    def measured(self, name: str, figures: Mapping[str, int | float], about: Any) -> None:
        """Take an event of the loop."""
        if _RECORDED.get() is not self:
            return
        self.begin()
        if name == START:
            return
        step = int(figures["step"])
        finite = {
            key: value
            for key, value in figures.items()
            if key not in ("step", "steps", "seconds_left") and math.isfinite(value)
        }
        if name != STEP:
            kind = name.removeprefix("training.")
            finite = {f"{kind}/{key}": value for key, value in finite.items()}
        self.loggers.log_metrics(finite, step)


_RECORDED: ContextVar[Recording | None] = ContextVar("recorded", default=None)
"""Whose events these are: several runs may be under way in a process, as branches of a workflow."""


@contextmanager
def recorded(
    recipe: Recipe,
    place: RunPlace,
    tracking: TrackingSettings,
    *,
    resumed: bool,
    hparams: Mapping[str, Any],
    tell: Callable[[str], object],
) -> Iterator[Recording]:
    """The run of a recipe while inside; it ends as its `outcome` says, by an error as failed.

    Args:
        tell: is given a line about each logger that fails, and about gradients that do.
    """
    name = place.folder.name
    run = RunIdentity(
        name=name,
        key=tracking.run_id or name,
        folder=place.folder,
        data=place.paths.data,
        project=tracking.project,
        title=tracking.name,
        group=tracking.group or recipe.kind,
        tags=tuple(tracking.tags),
        resumed_step=_step_of(place) if resumed else 0,
        online=tracking.online,
        mlflow_uri=tracking.mlflow_uri,
        otel_endpoint=tracking.otel_endpoint,
    )
    chosen = list(dict.fromkeys([*tracking.loggers, *recipe.loggers]))
    loggers = open_loggers(chosen, run, tell=tell)
    recording = Recording(loggers, place.manifest, hparams)

    def issue(name: str, measured: Mapping[str, int | float], about: Mapping[str, Any]) -> None:
        if _RECORDED.get() is recording:
            tell(str(about["text"]))

    token = _RECORDED.set(recording)
    try:
        with (
            telemetry.attached(f"run {place.folder}", [START, STEP, *OTHERS], recording.measured),
            telemetry.attached(f"issues of {place.folder}", ["training.issue"], issue),
        ):
            yield recording
    except Exception:
        recording.outcome = "failed"
        raise
    except BaseException:  # a signal
        recording.outcome = "interrupted"
        raise
    finally:
        _RECORDED.reset(token)
        recording.begin()
        loggers.close(recording.outcome)


def _step_of(place: RunPlace) -> int:
    """The step that training goes on from."""
    from shammah.training.checkpoint import latest_checkpoint, read_loop

    found = latest_checkpoint(place.checkpoints)
    return 0 if found is None else int(read_loop(found)["step"])
