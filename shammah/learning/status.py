"""What training is doing, for a toolbar. Light to import; never waits."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shammah.learning.job import EVENTS, Event, Progress, Start, parse_event

TrainingState = Literal["idle", "queued", "starting", "running", "paused", "publishing"]

_TAIL_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class TrainingStatus:
    """`paused` is while an answer streams. Numbers are None until they are known."""

    state: TrainingState = "idle"
    job: int | None = None
    examples: int = 0
    epoch: int | None = None
    epochs: int | None = None
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    learned: int | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    elsewhere: bool = False
    """Another process runs the job."""

    @property
    def active(self) -> bool:
        """Whether a job is queued or being worked on."""
        return self.state != "idle"


def status_from(
    state: TrainingState,
    *,
    job: int,
    examples: int,
    progress: Progress | None,
    elsewhere: bool = False,
) -> TrainingStatus:
    """The status of a job, with the numbers of its last step."""
    if progress is None:
        return TrainingStatus(state, job, examples, elsewhere=elsewhere)
    return TrainingStatus(
        state=state,
        job=job,
        examples=examples,
        epoch=progress.epoch,
        epochs=progress.epochs,
        step=progress.step,
        steps=progress.steps,
        loss=progress.loss,
        learned=progress.learned,
        learning_rate=progress.learning_rate,
        tokens_per_second=progress.tokens_per_second,
        seconds_left=progress.seconds_left,
        elsewhere=elsewhere,
    )


def status_of_folder(folder: Path, *, job: int, examples: int) -> TrainingStatus:
    """The status of a running job, read from what its worker writes down: for the processes that
    do not run it themselves."""
    events = last_events(folder)
    progress = next((event for event in reversed(events) if isinstance(event, Progress)), None)
    began = progress is not None or any(isinstance(event, Start) for event in events)
    return status_from(
        "running" if began else "starting",
        job=job,
        examples=examples,
        progress=progress,
        elsewhere=True,
    )


def last_events(folder: Path) -> list[Event]:
    """The newest events of a job folder, oldest first, without reading all of a long file."""
    try:
        with (folder / EVENTS).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return []
    return [event for line in lines if (event := parse_event(line)) is not None]
