"""The loop that all training methods run on: steps, evaluations, checkpoints, and when to end.

A method gathers the gradients of a step and evaluates; everything else is here, once. Written
against `TrainingClient` alone: the same loop runs on the local client and on a remote service.
"""

from __future__ import annotations

import inspect
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from shammah.errors import DivergenceError, TrainingError, UsageError
from shammah.ports.training_client import AdamParams, TrainingClient
from shammah.tracking.telemetry import emit
from shammah.training.best import BestCheckpoint
from shammah.training.checkpoint import (
    begin_checkpoint,
    finish_checkpoint,
    latest_checkpoint,
    read_loop,
)
from shammah.training.loops.settings import LoopSettings
from shammah.training.schedule import learning_rate

BEST_FOLDER = "best"
REMEMBERED = 20
"""Losses that an explosion is measured by."""


@dataclass(frozen=True, slots=True)
class StepFigures:
    """What a method found in one step: `loss` is the mean over its window, in units of its loss,
    `measures` whatever else it wants to be logged."""

    loss: float
    tokens: int
    measures: Mapping[str, float] = field(default_factory=dict)


class Method(Protocol):
    """What is learned. Its steps depend on nothing but its material, its seed and its state."""

    @property
    def name(self) -> str:
        """`supervised`, `preference`, ...; runs are called so."""
        ...

    @property
    def steps_per_epoch(self) -> int: ...

    def mark(self) -> str:
        """Tells its material and settings apart from others: a checkpoint of others is refused."""
        ...

    async def step(self, client: TrainingClient, number: int) -> StepFigures:
        """Gather the gradients of optimiser step `number`, counted from 0; the loop steps.

        Raises:
            DivergenceError: the loss is not finite.
        """
        ...

    async def evaluate(self, client: TrainingClient) -> Mapping[str, float]:
        """Figures of the adapter as it is; none where there is nothing to evaluate on."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where its data and random numbers stand, as plain JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        ...


Callback = Callable[[dict[str, Any]], Awaitable[None] | None]


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Called with plain dictionaries, one after the other, and awaited where they are async."""

    on_step_end: Sequence[Callback] = ()
    on_epoch_end: Sequence[Callback] = ()
    on_checkpoint: Sequence[Callback] = ()
    on_eval: Sequence[Callback] = ()


@dataclass(frozen=True, slots=True)
class LoopResult:
    """How a run ended: `figures` are those of the last evaluation, `before` those of the first;
    `losses` one for each step since the run began or went on. `ended` is why."""

    steps: int
    epochs: int
    seconds: float
    tokens: int
    losses: tuple[float, ...]
    before: Mapping[str, float]
    figures: Mapping[str, float]
    best_step: int | None
    ended: str

    @property
    def stopped(self) -> bool:
        """Whether it was asked to stop, and can be gone on with."""
        return self.ended == "stopped"


async def run_loop(
    client: TrainingClient,
    method: Method,
    settings: LoopSettings,
    *,
    folder: Path | None = None,
    callbacks: Callbacks | None = None,
    should_stop: Callable[[], bool] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> LoopResult:
    """Train until the epochs or steps are used up, or nothing gets better.

    Args:
        folder: for checkpoints and the best adapter; a run goes on from the checkpoint in it.
        should_stop: asked before each step; a checkpoint is written before returning.
        clock: seconds.

    Raises:
        TrainingError: the checkpoint is of another method, material or settings.
        UsageError: the settings ask for a figure that evaluations do not have.
        DivergenceError: a loss or gradient is not finite, or the loss exploded. The client is left
            with the last checkpoint, or with the state after the last good step.
    """
    if folder is None and (settings.checkpoint_every or settings.restore_best):
        raise UsageError("Checkpoints need a folder.")
    if (settings.patience or settings.restore_best) and not settings.best_metric:
        raise UsageError(
            "Nothing says what better is.", hint="Name a figure of evaluations as best_metric."
        )
    run = _Run(
        client, method, settings, folder, callbacks or Callbacks(),
        should_stop or (lambda: False), clock,
    )  # fmt: skip
    return await run.train()


@dataclass(slots=True)
class _Run:
    client: TrainingClient
    method: Method
    settings: LoopSettings
    folder: Path | None
    callbacks: Callbacks
    should_stop: Callable[[], bool]
    clock: Callable[[], float]
    # What a checkpoint holds beside the client's and the method's state:
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    before: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    target: float | None = None
    """The best figure so far, for patience."""
    worse: int = 0
    """Evaluations since then."""

    _best: BestCheckpoint | None = None
    _losses: list[float] = field(default_factory=list)
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    _began: float = 0.0
    _saved_step: int = -1
    _evaluated_step: int = -1

    @property
    def steps(self) -> int:
        """Optimiser steps at most."""
        total = self.method.steps_per_epoch * self.settings.epochs
        return min(total, self.settings.max_steps) if self.settings.max_steps else total

    async def train(self) -> LoopResult:
        if self.steps <= 0:
            raise TrainingError("There is nothing to train on.")
        if self.settings.best_metric and self.folder is not None:
            self._best = BestCheckpoint(
                self.folder / BEST_FOLDER, self.settings.best_metric, lower=self.settings.best_lower
            )
        await self._resume()
        self._began = self.clock() - self.seconds
        emit("training.start", {"steps": self.steps, "step": self.step}, {"loop": self.method.name})
        try:
            ended = await self._to_the_end()
        except BaseException as error:
            why = {"kind": type(error).__name__, "message": str(error)}
            emit("training.failed", {"step": self.step}, why)
            raise
        if ended == "stopped":
            await self._save()
        else:
            await self._close()
        result = self._result(ended)
        emit(
            "training.complete",
            {"steps": result.steps, "seconds": result.seconds, "tokens": result.tokens},
            {"loop": self.method.name, "ended": ended},
        )
        return result

    async def _to_the_end(self) -> str:
        if self.step == 0 and not self.before:
            self.before = await self._evaluate()
        while self.step < self.steps:
            if self.should_stop():
                return "stopped"
            try:
                await self._one()
            except DivergenceError as error:
                raise await self._diverged(error) from error
            settings = self.settings
            if self.step % self.method.steps_per_epoch == 0:
                epoch = {"epoch": self.step // self.method.steps_per_epoch, "step": self.step}
                emit("training.epoch", epoch)
                await self._call(self.callbacks.on_epoch_end, epoch)
            if settings.evaluate_every and self.step % settings.evaluate_every == 0:
                await self._evaluate()
                if settings.patience and self.worse >= settings.patience:
                    return "nothing gets better"
            if settings.checkpoint_every and self.step % settings.checkpoint_every == 0:
                await self._save()
        return "done"

    async def _one(self) -> None:
        """One optimiser step."""
        found = await self.method.step(self.client, self.step)
        self._check(found.loss)
        rate = learning_rate(self.step, self.steps, self.settings)
        stepped = await self.client.optim_step(
            AdamParams(
                learning_rate=rate,
                beta1=self.settings.beta1,
                beta2=self.settings.beta2,
                eps=self.settings.eps,
                weight_decay=self.settings.weight_decay,
                max_grad_norm=self.settings.max_grad_norm,
            )
        )
        self.step, self.tokens = self.step + 1, self.tokens + found.tokens
        self.seconds = self.clock() - self._began
        self._losses.append(found.loss)
        figures = {
            "step": self.step,
            "steps": self.steps,
            "epoch": (self.step - 1) // self.method.steps_per_epoch + 1,
            "loss": found.loss,
            "learning_rate": rate,
            "grad_norm": stepped.grad_norm,
            "tokens_per_second": self.tokens / max(self.seconds, 1e-9),
            "seconds_left": (self.steps - self.step) * self.seconds / self.step,
            **found.measures,
        }
        emit("training.step", figures)
        await self._call(self.callbacks.on_step_end, figures)

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise DivergenceError(f"The loss is {loss}.", hint="Lower learning_rate.")
        usual = sum(self._recent) / len(self._recent) if self._recent else 0.0
        full = len(self._recent) == REMEMBERED
        if self.settings.explosion and full and loss > self.settings.explosion * usual > 0:
            raise DivergenceError(
                f"The loss is {loss:.3g}, and was {usual:.3g} in the last {REMEMBERED} steps.",
                hint="Lower learning_rate, or raise explosion.",
            )
        self._recent.append(loss)

    async def _evaluate(self) -> dict[str, float]:
        found = dict(await self.method.evaluate(self.client))
        self._evaluated_step = self.step
        if not found:
            return found
        self.figures = found
        emit("training.eval", {"step": self.step, **found})
        await self._call(self.callbacks.on_eval, {"step": self.step, **found})
        metric = self.settings.best_metric
        if metric:
            if metric not in found:
                raise UsageError(
                    f"The evaluation has no figure {metric!r} to choose by.",
                    hint=f"It has {', '.join(sorted(found))}.",
                )
            self._compare(found[metric])
            if self._best is not None:
                await self._best.offer(self.client, found)
        return found

    def _compare(self, value: float) -> None:
        gain = math.inf
        if self.target is not None:
            gain = self.target - value if self.settings.best_lower else value - self.target
        if math.isfinite(value) and gain > self.settings.min_delta:
            self.target, self.worse = value, 0
        else:
            self.worse += 1

    async def _close(self) -> None:
        """The last evaluation and checkpoint."""
        if self._evaluated_step != self.step:
            await self._evaluate()
        await self._save()

    async def _save(self) -> None:
        if self.folder is None or self._saved_step == self.step:
            return
        began = time.perf_counter()
        target = begin_checkpoint(self.folder, self.step)
        await self.client.save_state(target)
        finish_checkpoint(
            target,
            {
                "step": self.step,
                "tokens": self.tokens,
                "seconds": self.seconds,
                "before": self.before,
                "figures": self.figures,
                "target": self.target,
                "worse": self.worse,
                "recent": list(self._recent),
                "method": self.method.state_dict(),
                "mark": self._mark(),
            },
        )
        self._saved_step = self.step
        figures = {"step": self.step, "seconds": time.perf_counter() - began}
        emit("training.checkpoint", figures)
        await self._call(self.callbacks.on_checkpoint, {**figures, "folder": str(target)})

    async def _resume(self) -> None:
        found = latest_checkpoint(self.folder) if self.folder else None
        if found is None:
            return
        loop = read_loop(found)
        if loop.get("mark") != self._mark():
            raise TrainingError(
                f"The checkpoint {found} is of another method, material or settings.",
                hint="Name another folder, or delete that one to start afresh.",
            )
        self.step, self.tokens, self.seconds = loop["step"], loop["tokens"], loop["seconds"]
        self.before, self.figures = dict(loop["before"]), dict(loop["figures"])
        self.target, self.worse = loop["target"], loop["worse"]
        self._recent.extend(loop["recent"])
        self.method.load_state_dict(loop["method"])
        self._saved_step = self.step
        await self.client.load_state(found)

    def _mark(self) -> str:
        # How long a run is may be changed where it goes on, if the schedule does not depend on it.
        fixed = self.settings.model_dump(exclude={"checkpoint_every", "keep_last"})
        return repr((self.method.name, self.method.mark(), sorted(fixed.items())))

    async def _diverged(self, error: DivergenceError) -> DivergenceError:
        """Go back to the last checkpoint, if there is one, and say so."""
        kept = self.step
        found = latest_checkpoint(self.folder) if self.folder else None
        if found is not None:
            await self.client.load_state(found)
            kept = int(read_loop(found)["step"])
        return DivergenceError(
            f"Training diverged at step {self.step + 1}: {error.message} "
            f"The adapter is as it was after step {kept}.",
            hint=error.hint,
        )

    def _result(self, ended: str) -> LoopResult:
        return LoopResult(
            steps=self.step,
            epochs=-(-self.step // self.method.steps_per_epoch),
            seconds=self.seconds,
            tokens=self.tokens,
            losses=tuple(self._losses),
            before=self.before,
            figures=self.figures,
            best_step=self._best.kept.step if self._best and self._best.kept else None,
            ended=ended,
        )

    async def _call(self, callbacks: Sequence[Callback], about: dict[str, Any]) -> None:
        for callback in callbacks:
            waited = callback(about)
            if inspect.isawaitable(waited):
                await waited
