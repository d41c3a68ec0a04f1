"""Passes over a divided model, which all of its processes have to make together.

Each has its own examples, packs of its own number, and troubles of its own; yet a layer is put
together only by all. So before each pass they tell each other whether they make one, and after it
whether anybody goes back through it: one that has no more examples makes a pass that counts for
nothing. Knows nothing of losses.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from shammah.errors import TrainingError
from shammah.training.processes import Processes

_PASS, _END, _FAILED = "pass", "end", "failed"


class ElsewhereError(TrainingError):
    """Raised in a process that was right, when another one failed."""


class Lockstep:
    """Keeps the passes of processes in step, between `begin` and `finish`.

    Args:
        processes: those that divide the model; for others nothing here does anything.
    """

    def __init__(self, processes: Processes, *, divided: bool) -> None:
        self._processes = processes
        self._divided = divided
        self._open = False

    def begin(self) -> None:
        """From now on every pass is agreed on."""
        self._open = self._divided

    def forward(self) -> None:
        """Before a pass.

        Raises:
            ElsewhereError: another process failed, and makes none any more.
        """
        if self._open:
            self._tell(_PASS)

    def backward(self, value: torch.Tensor | None, outcome: torch.Tensor) -> None:
        """Go back through the pass that was just made.

        Args:
            value: to take the gradients of; None where this process needs none.
            outcome: something that came out of the pass, with gradients.

        Raises:
            ElsewhereError: another process failed.
        """
        if not self._open:
            if value is not None:
                value.backward()  # type: ignore[no-untyped-call]
        elif _PASS in self._tell(_PASS if value is not None else _END):
            (outcome.sum() * 0.0 if value is None else value).backward()  # type: ignore[no-untyped-call]

    def finish(self, idle: Callable[[], torch.Tensor], *, gradients: bool) -> None:
        """Make passes that count for nothing until the last process has made its own.

        Args:
            idle: makes one, and gives what came out of it.
            gradients: whether passes are gone back through.

        Raises:
            ElsewhereError: another process failed.
        """
        while self._open and _PASS in self._tell(_END):
            outcome = idle()
            if gradients:
                self.backward(None, outcome)
        self._open = False

    def fail(self) -> None:
        """Say that this process makes no more passes; the others stop at the next one."""
        if self._open:
            self._open = False
            self._processes.gathered(_FAILED)

    def _tell(self, what: str) -> list[str]:
        told = self._processes.gathered(what)
        if _FAILED in told:
            self._open = False
            raise ElsewhereError("Another process failed.")
        return told
