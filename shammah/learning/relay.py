"""What a worker says over its pipe, told as telemetry to those who listen in this process.

The lines themselves stay the only thing that passes between the two.
"""

from __future__ import annotations

from shammah.learning.job import Checkpoint, Complete, Event, Failed, Progress, Start
from shammah.tracking.telemetry import emit

STEP = ("step", "loss", "learning_rate", "grad_norm", "tokens_per_second")
PROGRESS = ("epoch", "epochs", "step", "steps", "batch", "batches", "learned", "seconds_left")


def relay(job: int, event: Event) -> None:
    """Emit the telemetry of one event of a job's worker; `job` is in the metadata."""
    about = {"job": job}
    match event:
        case Start():
            measured = {"step": event.resumed_step, "lessons": event.lessons}
            emit("training.start", measured, {**about, "model": event.model})
        case Progress():
            emit("training.step", _numbers(event, STEP), about)
            emit("training.progress", _numbers(event, PROGRESS), about)
        case Checkpoint():
            emit("training.checkpoint", {"step": event.step}, about)
        case Complete():
            ended = {"loss": event.final_loss, "learned": len(event.learned)}
            names = ("steps", "epochs", "tokens", "seconds")
            emit("training.complete", {**_numbers(event, names), **ended}, about)
        case Failed():
            why = {"kind": event.kind, "message": event.message}
            emit("training.failed", {"step": event.step}, {**about, **why})


def _numbers(event: Event, names: tuple[str, ...]) -> dict[str, int | float]:
    values = {name: getattr(event, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}
