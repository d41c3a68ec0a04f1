"""How far a training run is, on stderr: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from shammah.cli.output import coloured, tell
from shammah.repl.text import duration, harmless
from shammah.tracking.telemetry import attach_many, detach

HANDLER = "training progress"
EVENTS = ("stage.start", "training.start", "training.step", "training.eval")
LINE_SECONDS = 10.0
SHOWN = ("nll_per_token", "accuracy", "reward", "reverse_kl", "loss")
"""Figures of evaluations that are shown, where there are such."""


class TrainingProgress:
    """Shows the stages, steps and evaluations of a run while inside.

    Args:
        quiet: show nothing but notes.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._due = time.monotonic() + LINE_SECONDS
        self._figures = ""
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if not quiet and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[about]}"),
                console=Console(stderr=True, no_color=not coloured(sys.stderr) or None),
                transient=True,
            )

    def __enter__(self) -> TrainingProgress:
        attach_many(HANDLER, EVENTS, self._take)
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("starting", total=None, about="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        detach(HANDLER)
        if self._bar is not None:
            self._bar.stop()

    def note(self, text: str) -> None:
        """A line beside the bar."""
        if self._bar is not None:
            self._bar.console.print(harmless(text), markup=False, highlight=False)
        else:
            tell(text)

    def _take(
        self, name: str, measured: Mapping[str, int | float], about: Mapping[str, Any]
    ) -> None:
        if self._quiet:
            return
        if name == "stage.start":
            self._show(str(about["stage"]), None, None, "")
        elif name == "training.start":
            self._show("train", measured["step"], measured["steps"], "the first evaluation")
        elif name == "training.eval":
            self._figures = ", ".join(
                f"{key} {measured[key]:.3g}" for key in SHOWN if key in measured
            )
        else:
            parts = [
                f"step {measured['step']:,} of {measured['steps']:,}",
                f"loss {measured['loss']:.4f}",
            ]
            if "reward" in measured:
                parts.append(f"reward {measured['reward']:.3f}")
            if self._figures:
                parts.append(f"evaluated: {self._figures}")
            parts += [
                f"{measured['tokens_per_second']:,.0f} tokens/s",
                f"{duration(measured['seconds_left'])} left",
            ]
            self._show("train", measured["step"], measured["steps"], " · ".join(parts))

    def _show(self, what: str, done: float | None, total: float | None, about: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task, description=what, completed=done or 0, total=total, about=about
            )
        elif about and time.monotonic() > self._due:
            self._due = time.monotonic() + LINE_SECONDS
            tell(f"{what}: {about}")
