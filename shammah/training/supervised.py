"""The supervised loop: teach lessons until they are answered as taught.

Written against the `TrainingClient` protocol alone. Knows examples and weights; what a lesson is,
which process this is and who listens to its events is others' business.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shammah.errors import DivergenceError, TrainingError
from shammah.ports.datum import Datum
from shammah.ports.training_client import TrainingClient
from shammah.settings import TrainingSettings
from shammah.tracking.telemetry import emit
from shammah.tracking.trace import timed
from shammah.training import losses
from shammah.training.batches import Batch, LessonBatches
from shammah.training.checkpoint import Written
from shammah.training.datums import reweighted
from shammah.training.examples import Example, material, parts
from shammah.training.packing import pack_groups
from shammah.training.running import Checkpoints, LossWatch, Pace, failure_told, optimised
from shammah.training.schedule import most_steps
from shammah.training.standing import Standing

GROUP_TOKENS = 1024
"""How many tokens are computed between two looks at `should_stop`."""

STEP = ("step", "loss", "learning_rate", "grad_norm", "tokens_per_second")
PROGRESS = ("epoch", "epochs", "step", "steps", "batch", "batches", "learned", "seconds_left")

OnEvent = Callable[[dict[str, Any]], None]
Evaluate = Callable[[], Awaitable[Mapping[str, float]]]


@dataclass(frozen=True, slots=True)
class SupervisedResult:
    """How a run ended.

    `learned[i]` is whether greedy decoding gives lesson i as taught; `final_loss` is the weighted
    mean over the lessons, in nats per token, with the final weights. `epochs` counts those begun.
    Where `stopped` is true the run was asked to stop: it can be resumed, and `learned` and
    `final_loss` are as last seen. `seconds` and `tokens` include what came before a resume.
    """

    steps: int
    epochs: int
    final_loss: float
    learned: list[bool]
    seconds: float
    tokens: int
    stopped: bool = False


async def train_supervised(
    client: TrainingClient,
    lessons: Sequence[Example],
    lesson_weights: Sequence[float],
    replay: Sequence[Datum],
    settings: TrainingSettings,
    *,
    kept: Sequence[Datum] = (),
    delicate: int = 0,
    seed: int | None = None,
    on_event: OnEvent | None = None,
    should_stop: Callable[[], bool] | None = None,
    checkpoint: Path | None = None,
    evaluate: Evaluate | None = None,
    evaluate_every: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> SupervisedResult:
    """Train until every lesson is learned and what was right before is right again, neither has
    come nearer for `settings.patience` steps, or the epochs or steps are used up.

    Args:
        lessons: what to teach; only the relative weights of their tokens are used. The terms of
            one are in the same step, whatever their losses.
        lesson_weights: how much each lesson weighs against the others (`batches` says how).
        replay: what was taught earlier and is to stay; `settings.replay` of each batch.
        kept: what is not learned but must not be lost: those of them that greedy decoding gives
            before the first step have to be given after the last one.
        delicate: so many of the last of these are easily lost: they are given a few steps to come
            back once all is learned; for the others it goes on for twice `settings.patience`.
        seed: of the order of lessons; default `settings.seed`.
        on_event: called with plain dictionaries. `event` is `progress` after each optimiser step
            (epoch, epochs, step, steps, batch, batches, loss, learning_rate, grad_norm, learned,
            tokens_per_second, seconds_left) or `checkpoint` (step).
        should_stop: asked every thousand tokens or so; a checkpoint is written before returning.
        checkpoint: folder for checkpoints; a run goes on from the one that is in it.
        evaluate: looks at the client as it is and says figures by name, which `on_event` and
            telemetry are told (`evaluation`: step, figures). `best.BestCheckpoint` can be asked to
            keep the best within it.
        evaluate_every: steps after each of which, and at the end, it is called; 0 never.
        clock: seconds.

    Raises:
        TrainingError: there are no lessons or no learning rate, or the checkpoint is of other ones.
        EmptyLessonError: a lesson has no token to learn.
        DivergenceError: a loss or gradient stopped being finite. The client is left with the last
            state that was good: the last checkpoint, or that after the last finite step.
    """
    if settings.learning_rate <= 0:
        raise TrainingError("A learning rate of 0 is one that is still to be chosen.")
    if not lessons or len(lessons) != len(lesson_weights):
        raise TrainingError(f"{len(lessons)} lessons with {len(lesson_weights)} weights.")
    run = _Run(
        client=client,
        standing=Standing(
            list(lessons),
            [float(weight) for weight in lesson_weights],
            list(kept),
            delicate,
            settings.patience if settings.stop_when_learned else 0,
        ),
        replay=[reweighted(lesson, 1.0) for lesson in replay],
        settings=settings,
        batches=LessonBatches(
            lesson_weights,
            replay=len(replay),
            batch_size=settings.batch_size,
            replay_share=settings.replay,
            seed=settings.seed if seed is None else seed,
        ),
        on_event=on_event or (lambda event: None),
        should_stop=should_stop or (lambda: False),
        checkpoint=checkpoint,
        evaluate=evaluate if evaluate_every > 0 else None,
        evaluate_every=evaluate_every,
        pace=Pace(clock),
    )
    return await run.train()


class _Stopped(Exception):
    """Raised inside the loop when it was asked to stop."""


@dataclass(slots=True)
class _Run:
    client: TrainingClient
    standing: Standing
    replay: list[Datum]
    settings: TrainingSettings
    batches: LessonBatches
    on_event: OnEvent
    should_stop: Callable[[], bool]
    checkpoint: Path | None
    evaluate: Evaluate | None
    evaluate_every: int
    pace: Pace
    # What a checkpoint holds beside these and the random numbers:
    epoch: int = 0
    window: int = 0
    """Windows of the epoch that are done."""

    _material: str = field(init=False)
    _checkpoints: Checkpoints = field(init=False)
    _watch: LossWatch = field(default_factory=LossWatch)
    _epoch_random: dict[str, Any] = field(default_factory=dict)
    _confirmed: bool = False
    _evaluated_step: int = -1

    def __post_init__(self) -> None:
        self._checkpoints = Checkpoints(self.client, self.checkpoint, on_written=self._written)
        standing, away = self.standing, {"nice", "timeout_minutes", "threads", "hooks"}
        shaped = sorted(self.settings.model_dump(exclude=away).items())
        others = [*self.replay, *standing.kept]
        self._material = material(standing.lessons, standing.weights, others, shaped)

    @property
    def step(self) -> int:
        return self.pace.step

    @property
    def steps(self) -> int:
        """Optimiser steps at most."""
        return most_steps(self.batches.per_epoch, self.settings)

    async def train(self) -> SupervisedResult:
        await self._resume()
        self.pace.begin()
        started = {"steps": self.steps, "epochs": self.settings.epochs, "step": self.step}
        emit("training.start", {**started, "lessons": len(self.standing.lessons)})
        with failure_told(lambda: self.step):
            result = await self._to_its_end()
        emit(
            "training.complete",
            {
                "steps": result.steps,
                "epochs": result.epochs,
                "loss": result.final_loss,
                "tokens": result.tokens,
                "seconds": result.seconds,
                "learned": sum(result.learned),
            },
            {"stopped": result.stopped},
        )
        return result

    async def _to_its_end(self) -> SupervisedResult:
        try:
            await self.standing.begin(self.client)
            await self._epochs()
            if not self._confirmed:
                await self._confirm()
            await self._evaluate()
        except _Stopped:
            await self._checkpoints.save(self.step, self._loop)
            return self._result(stopped=True)
        except DivergenceError as error:
            raise await self._checkpoints.gone_back(error, self.step) from error
        return self._result(stopped=False)

    async def _epochs(self) -> None:
        while self.epoch < self.settings.epochs and self.step < self.steps:
            self._epoch_random = self.batches.state_dict()
            with timed("data", epoch=self.epoch + 1):
                batches = self.batches.epoch(self.epoch)
            size = self.settings.accumulation
            windows = [batches[start : start + size] for start in range(0, len(batches), size)]
            for number, window in enumerate(windows):
                if number < self.window:
                    continue
                if self.step >= self.steps:
                    return
                with timed("step", step=self.step + 1):
                    await self._window(window, number, len(batches))
                if self.evaluate_every and self.step % self.evaluate_every == 0:
                    await self._evaluate()
                standing = self.standing
                if self.settings.stop_when_learned and standing.due(self.step):
                    await self._confirm()
                    if standing.all_learned and not standing.lost:
                        return
                standing.note_progress(self.step)
                if await standing.ends(self.client, self.step):
                    return
                if self.step % self.settings.checkpoint_every == 0:
                    await self._checkpoints.save(self.step, self._loop)
            self.epoch, self.window = self.epoch + 1, 0
            emit("training.epoch", {"epoch": self.epoch, "step": self.step})

    async def _window(self, window: Sequence[Batch], number: int, batches: int) -> None:
        """One optimiser step over the gradients of some batches."""
        loss = weight = 0.0
        tokens = 0
        for batch in window:
            with timed("data"):
                by_loss = parts(self.standing.lessons, batch.lessons)
                replayed = [(self.replay[index], None) for index in batch.replay]
                if replayed:
                    by_loss.setdefault("cross_entropy", []).extend(replayed)
            for loss_fn, told in by_loss.items():
                members = losses.get(loss_fn).members
                lengths = [len(datum.model_input) for datum, _ in told]
                budget = self.settings.micro_batch_tokens or GROUP_TOKENS
                for group in pack_groups(lengths, budget, members):
                    if self.should_stop():
                        raise _Stopped
                    output = await self.client.forward_backward(
                        [told[index][0] for index in group], loss_fn
                    )
                    loss, weight = loss + output.loss, weight + output.weight
                    tokens += output.tokens
                    for index, right in zip(group, output.greedy, strict=True):
                        if (judged := told[index][1]) is not None:
                            self.standing.see(judged, right)
        self._watch.check(loss)
        stepped = await optimised(self.client, self.settings, self.step, self.steps)
        self.pace.count(tokens)
        self.window, self._confirmed = number + 1, False
        self.standing.loss = loss / weight
        progress = {
            "epoch": self.epoch + 1,
            "epochs": self.settings.epochs,
            "step": self.step,
            "steps": self.steps,
            "batch": min((number + 1) * self.settings.accumulation, batches),
            "batches": batches,
            "loss": self.standing.loss,
            **stepped,
            "learned": sum(self.standing.learned),
            **self.pace.figures(self.steps),
        }
        emit("training.step", {name: progress[name] for name in STEP if progress[name] is not None})
        emit("training.progress", {name: progress[name] for name in PROGRESS})
        self.on_event({"event": "progress", **progress})

    async def _confirm(self) -> None:
        """Look at every lesson, and at what is kept, with the weights as they are."""
        if self.should_stop():
            raise _Stopped
        with timed("look", step=self.step):
            await self.standing.look(self.client, self.step)
        self._confirmed = True
        self.pace.look()
        seen = {"loss": self.standing.loss, "learned": sum(self.standing.learned)}
        emit("training.eval", {"step": self.step, **seen})

    async def _evaluate(self) -> None:
        if self.evaluate is None or self._evaluated_step == self.step:
            return
        figures = dict(await self.evaluate())
        self._evaluated_step = self.step
        self.pace.look()
        emit("training.eval", {"step": self.step, **figures})
        self.on_event({"event": "evaluation", "step": self.step, "figures": figures})

    def _result(self, *, stopped: bool) -> SupervisedResult:
        return SupervisedResult(
            steps=self.step,
            epochs=min(self.epoch + (self.window > 0), self.settings.epochs),
            final_loss=self.standing.loss,
            learned=list(self.standing.learned),
            seconds=self.pace.seconds,
            tokens=self.pace.tokens,
            stopped=stopped,
        )

    async def _written(self, written: Written) -> None:
        self.on_event({"event": "checkpoint", "step": written.step})

    def _loop(self) -> dict[str, Any]:
        return {
            **self.pace.state_dict(),
            **self.standing.state_dict(),
            "epoch": self.epoch,
            "window": self.window,
            "random": self._epoch_random or self.batches.state_dict(),
            "material": self._material,
        }

    async def _resume(self) -> None:
        loop = await self._checkpoints.resume(
            "material",
            self._material,
            refused="other lessons or settings",
            hint="Start the job afresh.",
        )
        if loop:
            self.batches.load_state_dict(loop["random"])
            self.epoch, self.window = loop["epoch"], loop["window"]
            self.pace.load_state_dict(loop)
            self.standing.load_state_dict(loop)
