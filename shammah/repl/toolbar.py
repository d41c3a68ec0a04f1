"""The line at the bottom: model, adapter, buffer, training, speed.

Reads `Assistant.status` and nothing else, so drawing it never waits.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prompt_toolkit.utils import get_cwidth

from shammah.repl.text import columns, duration, unicode_output

if TYPE_CHECKING:
    from shammah.assistant import Status
    from shammah.learning.status import TrainingStatus

FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
ASCII_FRAMES = "|/-\\"


def toolbar(status: Status, *, answering: bool = False, waiting: int = 0) -> str:
    """The toolbar's text, at most as wide as the terminal.

    Args:
        status: the assistant's state.
        answering: an answer is streaming.
        waiting: questions that wait for their turn.
    """
    training = training_progress(status.training)
    # What matters least goes first where the terminal is too narrow for all.
    parts = [
        (3, _model(status)),
        (2, _adapter(status)),
        (4, f"buffer {status.buffer_label}" if status.buffer_label else ""),
        (5, f"{spinner()} {training}" if training else ""),
        (6, f"{spinner()} answering, Ctrl-C stops" if answering else ""),
        (6, f"{waiting} waiting" if waiting else ""),
        (1, f"{status.tokens_per_second:.0f} tok/s" if status.tokens_per_second else ""),
    ]
    kept = [part for part in parts if part[1]]
    width = columns()
    while len(kept) > 1 and get_cwidth(_joined(kept)) > width:
        kept.remove(min(kept))
    return _joined(kept)


def moving(status: Status, *, answering: bool) -> bool:
    """Whether the toolbar changes by itself, so that it must be drawn again and again."""
    return answering or status.model_state == "loading" or training_progress(status.training) != ""


def training_progress(training: TrainingStatus | None) -> str:
    """`training epoch 3/30 step 12 loss 0.412 8 s left`, or nothing where no job runs."""
    if training is None or training.state == "idle":
        return ""
    parts = ["training" if training.state == "running" else f"training {training.state}"]
    if training.epochs:
        parts.append(f"epoch {training.epoch}/{training.epochs}")
    if training.steps:
        parts.append(f"step {training.step}/{training.steps}")
    if training.loss is not None:
        parts.append(f"loss {training.loss:.3f}")
    if training.seconds_left is not None:
        parts.append(f"{duration(training.seconds_left)} left")
    return " ".join(parts)


def short_name(adapter: str) -> str:
    """`lora_adapter_20260206_143025` without the part that all have in common."""
    return adapter.removeprefix("lora_adapter_")


def spinner() -> str:
    """The present frame of a turning mark."""
    frames = FRAMES if unicode_output() else ASCII_FRAMES
    return frames[int(time.monotonic() * 8) % len(frames)]


def _model(status: Status) -> str:
    if status.model_state == "loading":
        return f"{spinner()} loading {status.model}"
    if status.model_state == "failed":
        return f"{status.model}: not loaded"
    return status.model


def _adapter(status: Status) -> str:
    """The active adapter, and what answered in its place."""
    shown = f"adapter {short_name(status.adapter)}" if status.adapter else "no adapter"
    route = status.route
    if route is not None:
        return f"{shown}, {route.domain}: {short_name(route.adapter)}"
    return f"{shown}, base answered" if status.adapter and status.outside else shown


def _joined(parts: list[tuple[int, str]]) -> str:
    return " " + (" │ " if unicode_output() else " | ").join(text for _, text in parts)
