"""The loop that all training methods run on: steps, evaluations, checkpoints, and when to end.

A method gathers the gradients of a step and evaluates; everything else is here, once. Written
against `TrainingClient` alone: the same loop runs on the local client and on a remote service. With
a client that copies its state (`StateCopies`) checkpoints are written beside training, and what
diverges goes back to the last state whose loss was still good. Of several processes that train one
adapter (`Ranked`) one writes.
"""

from __future__ import annotations

import copy
import inspect
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shammah.errors import DivergenceError, TrainingError, UsageError
from shammah.ports.training_client import Ranked, StateCopies, TrainingClient, leads
from shammah.tracking.telemetry import emit
from shammah.training.best import BestCheckpoint
from shammah.training.checkpoint import Written
from shammah.training.loops.method import Callback, Callbacks, LoopResult, Method, StepFigures
from shammah.training.loops.settings import LoopSettings
from shammah.training.running import (
    Checkpoints,
    Good,
    LossWatch,
    Pace,
    failure_told,
    optimised,
)

__all__ = ["Callback", "Callbacks", "LoopResult", "Method", "StepFigures", "run_loop"]

BEST_FOLDER = "best"


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
        StorageError: a checkpoint cannot be written; the one before it stays.
        DivergenceError: a loss or gradient is not finite, or the loss exploded. The client is left
            with the last state whose loss was good, which is the last checkpoint then; or with the
            last checkpoint, where the client cannot copy its state.
    """
    if folder is None and (settings.checkpoint_every or settings.restore_best):
        raise UsageError("Checkpoints need a folder.")
    if (settings.patience or settings.restore_best) and not settings.best_metric:
        raise UsageError(
            "Nothing says what better is.", hint="Name a figure of evaluations as best_metric."
        )
    run = _Run(
        client, method, settings, folder, callbacks or Callbacks(),
        should_stop or (lambda: False), Pace(clock),
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
    pace: Pace
    # What a checkpoint holds beside the client's, the method's and that:
    skipped: int = 0
    """Of the steps, those without gradients."""
    before: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    target: float | None = None
    """The best figure so far, for patience."""
    worse: int = 0
    """Evaluations since then."""
    evaluated_step: int = -1

    _best: BestCheckpoint | None = None
    _checkpoints: Checkpoints = field(init=False)
    _watch: LossWatch = field(init=False)
    _losses: list[float] = field(default_factory=list)
    _good: Good | None = None

    def __post_init__(self) -> None:
        self._watch = LossWatch(self.settings.explosion)
        self._checkpoints = Checkpoints(
            self.client,
            self.folder,
            keep=self.settings.keep_last,
            beside=True,
            on_written=self._written,
        )

    @property
    def step(self) -> int:
        return self.pace.step

    @property
    def steps(self) -> int:
        """Optimiser steps at most."""
        total = self.method.steps_per_epoch * self.settings.epochs
        return min(total, self.settings.max_steps) if self.settings.max_steps else total

    @property
    def leads(self) -> bool:
        """Whether this process writes."""
        return leads(self.client)

    async def train(self) -> LoopResult:
        if self.steps <= 0:
            raise TrainingError("There is nothing to train on.")
        if self.folder is not None and self.leads and self.settings.best_metric:
            self._best = self._best_checkpoint(self.folder)
        await self._resume()
        self.pace.begin()
        emit("training.start", {"steps": self.steps, "step": self.step}, {"loop": self.method.name})
        with failure_told(lambda: self.step):
            ended = await self._guarded()
        result = self._result(ended)
        emit(
            "training.complete",
            {"steps": result.steps, "seconds": result.seconds, "tokens": result.tokens},
            {"loop": self.method.name, "ended": ended},
        )
        return result

    async def _guarded(self) -> str:
        """All of it; no file is being written when it ends, however it ends."""
        try:
            try:
                ended = await self._to_the_end()
                if ended != "stopped" and self.evaluated_step != self.step:
                    await self._evaluate()
            except DivergenceError as error:
                raise await self._checkpoints.gone_back(error, self.step, self._good) from error
            await self._save()
            await self._checkpoints.wait()
            if ended != "stopped" and self.settings.restore_best:
                await self._restore_best()
        except BaseException:
            await self._checkpoints.settle()
            raise
        await self._agree(False)
        return ended

    async def _to_the_end(self) -> str:
        settings = self.settings
        if self.step == 0 and self.evaluated_step < 0:
            self.before = await self._evaluate()
        while self.step < self.steps:
            if settings.patience and self.worse >= settings.patience:
                return "nothing gets better"
            if await self._agree(self.should_stop()):
                return "stopped"
            await self._one()
            if self.step % self.method.steps_per_epoch == 0:
                epoch = {"epoch": self.step // self.method.steps_per_epoch, "step": self.step}
                emit("training.epoch", epoch)
                await self._call(self.callbacks.on_epoch_end, epoch)
            if settings.evaluate_every and self.step % settings.evaluate_every == 0:
                await self._evaluate()
            if settings.checkpoint_every and self.step % settings.checkpoint_every == 0:
                await self._save()
            else:
                await self._checkpoints.look()
        return "done"

    async def _one(self) -> None:
        """One optimiser step."""
        # A step moves on what the method knows, and a checkpoint is of the state before it.
        before = self._loop()
        found = await self.method.step(self.client, self.step)
        # A loss without gradients tells neither whether the state is good nor what a loss is like.
        if not found.skip:
            self._watch.check(found.loss)
            if isinstance(self.client, StateCopies):
                self._good = await self.client.copy_state(), before
            self._watch.recent.append(found.loss)
        stepped = await optimised(
            self.client,
            self.settings,
            self.step,
            self.steps,
            skip=found.skip,
            power=self.settings.power,
            final_share=self.settings.final_share,
        )
        self.pace.count(found.tokens)
        self.skipped += found.skip
        self._losses.append(found.loss)
        figures = {
            "step": self.step,
            "steps": self.steps,
            "epoch": (self.step - 1) // self.method.steps_per_epoch + 1,
            "loss": found.loss,
            **stepped,
            "skipped": self.skipped,
            "tokens": self.pace.tokens,
            **self.pace.figures(self.steps),
            **found.measures,
        }
        emit("training.step", figures)
        await self._call(self.callbacks.on_step_end, figures)

    async def _evaluate(self) -> dict[str, float]:
        found = dict(await self.method.evaluate(self.client))
        self.evaluated_step = self.step
        if not found:
            if self.settings.best_metric:
                raise UsageError(
                    f"Nothing is evaluated, and {self.settings.best_metric} is to be the best.",
                    hint="Hold something out.",
                )
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
                await self._best.offer(self.client, found, step=self.step)
        return found

    def _compare(self, value: float) -> None:
        gain = math.inf
        if self.target is not None:
            gain = self.target - value if self.settings.best_lower else value - self.target
        if math.isfinite(value) and gain > self.settings.min_delta:
            self.target, self.worse = value, 0
        else:
            self.worse += 1

    def _best_checkpoint(self, folder: Path) -> BestCheckpoint:
        settings = self.settings
        return BestCheckpoint(
            folder / BEST_FOLDER,
            settings.best_metric,
            lower=settings.best_lower,
            whole=settings.restore_best,
        )

    async def _restore_best(self) -> None:
        await self._agree(False)  # others write it
        if self.folder is not None:
            self._best = self._best or self._best_checkpoint(self.folder)
            record = await self._best.restore(self.client)
            self.figures = dict(record.figures) if record is not None else self.figures

    def _loop(self) -> dict[str, Any]:
        return {
            **self.pace.state_dict(),
            "skipped": self.skipped,
            "before": self.before,
            "figures": self.figures,
            "target": self.target,
            "worse": self.worse,
            "evaluated_step": self.evaluated_step,
            "recent": list(self._watch.recent),
            "method": copy.deepcopy(self.method.state_dict()),
            "mark": self._mark,
        }

    async def _save(self) -> None:
        await self._checkpoints.save(self.step, self._loop)

    async def _written(self, written: Written) -> None:
        about = {"step": written.step, "seconds": written.seconds, "folder": str(written.folder)}
        await self._call(self.callbacks.on_checkpoint, about)

    async def _resume(self) -> None:
        loop = await self._checkpoints.resume(
            "mark",
            self._mark,
            refused="another method, material or settings",
            hint="Name another folder, or delete that one to start afresh.",
        )
        if not loop:
            return
        self.pace.load_state_dict(loop)
        self.skipped = loop.get("skipped", 0)
        self.before, self.figures = dict(loop["before"]), dict(loop["figures"])
        self.target, self.worse = loop["target"], loop["worse"]
        self.evaluated_step = loop["evaluated_step"]
        self._watch.recent.extend(loop["recent"])
        self.method.load_state_dict(loop["method"])

    @property
    def _mark(self) -> str:
        # What only says when to look, to write or to end may be changed where a run goes on; how
        # long it is too, where no learning rate depends on it.
        settings = self.settings
        free = {"checkpoint_every", "keep_last", "patience", "min_delta", "explosion"}
        if settings.schedule == "constant" and not settings.warmup_steps:
            free |= {"epochs", "max_steps"}
        fixed = settings.model_dump(exclude=free)
        return repr((self.method.name, self.method.mark(), sorted(fixed.items())))

    def _result(self, ended: str) -> LoopResult:
        return LoopResult(
            steps=self.step,
            epochs=-(-self.step // self.method.steps_per_epoch),
            seconds=self.pace.seconds,
            tokens=self.pace.tokens,
            losses=tuple(self._losses),
            recent=tuple(self._watch.recent),
            before=self.before,
            figures=self.figures,
            best_step=self._best.kept.step if self._best and self._best.kept else None,
            ended=ended,
            skipped=self.skipped,
        )

    async def _agree(self, wish: bool) -> bool:
        return await self.client.agree(wish) if isinstance(self.client, Ranked) else wish

    async def _call(self, callbacks: Sequence[Callback], about: dict[str, Any]) -> None:
        for callback in callbacks:
            waited = callback(about)
            if inspect.isawaitable(waited):
                await waited
