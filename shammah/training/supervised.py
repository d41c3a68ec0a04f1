"""The supervised loop: teach lessons until they are answered as taught.

Written against the `TrainingClient` protocol alone. Knows examples and weights; what a lesson is,
which process this is and who listens to its events is others' business.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shammah.errors import DivergenceError, TrainingError
from shammah.ports.datum import Datum
from shammah.ports.training_client import AdamParams, TrainingClient
from shammah.settings import TrainingSettings
from shammah.tracking.telemetry import emit
from shammah.tracking.trace import timed
from shammah.training import losses
from shammah.training.batches import Batch, LessonBatches
from shammah.training.checkpoint import (
    begin_checkpoint,
    finish_checkpoint,
    latest_checkpoint,
    read_loop,
)
from shammah.training.datums import reweighted
from shammah.training.examples import Example
from shammah.training.packing import pack_groups
from shammah.training.schedule import learning_rate, most_steps

GROUP_TOKENS = 1024
"""How many tokens are computed between two looks at `should_stop`."""

LOOK_EVERY = 3
"""Steps between two looks at what was lost, once all is learned."""

RECOVERY = 12
"""Steps without anything more right that it goes on for, once all is learned, where something is
lost that is easily lost."""

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


def checkpoint_step(checkpoint: Path) -> int:
    """The step that a run with this checkpoint folder would go on from; 0 if it begins afresh.

    Raises:
        TrainingError: the checkpoint cannot be read.
    """
    found = latest_checkpoint(checkpoint)
    return int(read_loop(found)["step"]) if found else 0


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
        lessons=list(lessons),
        weights=[float(weight) for weight in lesson_weights],
        replay=[reweighted(lesson, 1.0) for lesson in replay],
        kept=list(kept),
        delicate=delicate,
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
        clock=clock,
    )
    return await run.train()


class _Stopped(Exception):
    """Raised inside the loop when it was asked to stop."""


@dataclass(slots=True)
class _Run:
    client: TrainingClient
    lessons: list[Example]
    weights: list[float]
    replay: list[Datum]
    kept: list[Datum]
    delicate: int
    settings: TrainingSettings
    batches: LessonBatches
    on_event: OnEvent
    should_stop: Callable[[], bool]
    checkpoint: Path | None
    evaluate: Evaluate | None
    evaluate_every: int
    clock: Callable[[], float]
    # What a checkpoint holds beside the client's state and the random numbers:
    step: int = 0
    epoch: int = 0
    window: int = 0
    """Windows of the epoch that are done."""
    tokens: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    learned: list[bool] = field(default_factory=list)
    right_before: list[bool] = field(default_factory=list)
    """Of what is kept."""
    lost: int = 0
    """Of these, at the last look."""
    dear: int = 0
    """Of those lost, the ones that are not delicate."""
    looked_step: int = 0
    most_learned: int = 0
    progress_step: int = 0
    """The step after which more was right than ever before."""

    _began: float = 0.0
    _epoch_random: dict[str, Any] = field(default_factory=dict)
    _confirmed: bool = False
    _saved_step: int = -1
    _evaluated_step: int = -1

    async def train(self) -> SupervisedResult:
        self.learned = [False] * len(self.lessons)
        await self._resume()
        self._began = self.clock() - self.seconds
        started = {"steps": self.steps, "epochs": self.settings.epochs, "step": self.step}
        emit("training.start", {**started, "lessons": len(self.lessons)})
        try:
            result = await self._to_its_end()
        except BaseException as error:
            why = {"kind": type(error).__name__, "message": str(error)}
            emit("training.failed", {"step": self.step}, why)
            raise
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
            if self.kept and not self.right_before:
                self.right_before = list((await self.client.forward(self.kept)).greedy)
            await self._epochs()
            if not self._confirmed:
                await self._confirm()
            await self._evaluate()
        except _Stopped:
            await self._save()
            return self._result(stopped=True)
        except DivergenceError as error:
            raise await self._diverged(error) from error
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
                if self.settings.stop_when_learned and all(self.learned) and self._due():
                    await self._confirm()
                    if all(self.learned) and not self.lost:
                        return
                self._note_progress()
                if self._stuck() and not await self._recovers():
                    return
                if self.step % self.settings.checkpoint_every == 0:
                    await self._save()
            self.epoch, self.window = self.epoch + 1, 0
            emit("training.epoch", {"epoch": self.epoch, "step": self.step})

    async def _window(self, window: Sequence[Batch], number: int, batches: int) -> None:
        """One optimiser step over the gradients of some batches."""
        loss = weight = 0.0
        tokens = 0
        for batch in window:
            with timed("data"):
                by_loss = self._parts(batch)
            for loss_fn, parts in by_loss.items():
                members = losses.get(loss_fn).members
                lengths = [len(datum.model_input) for datum, _ in parts]
                budget = self.settings.micro_batch_tokens or GROUP_TOKENS
                for group in pack_groups(lengths, budget, members):
                    if self.should_stop():
                        raise _Stopped
                    output = await self.client.forward_backward(
                        [parts[index][0] for index in group], loss_fn
                    )
                    loss, weight = loss + output.loss, weight + output.weight
                    tokens += output.tokens
                    for index, right in zip(group, output.greedy, strict=True):
                        if (judged := parts[index][1]) is not None:
                            self.learned[judged] = self.lessons[judged].learned(right)
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
        self.step, self.window, self._confirmed = self.step + 1, number + 1, False
        self.loss, self.tokens = loss / weight, self.tokens + tokens
        self.seconds = self.clock() - self._began
        progress = {
            "epoch": self.epoch + 1,
            "epochs": self.settings.epochs,
            "step": self.step,
            "steps": self.steps,
            "batch": min((number + 1) * self.settings.accumulation, batches),
            "batches": batches,
            "loss": self.loss,
            "learning_rate": rate,
            "grad_norm": stepped.grad_norm,
            "learned": sum(self.learned),
            "tokens_per_second": self.tokens / max(self.seconds, 1e-9),
            "seconds_left": (self.steps - self.step) * self.seconds / self.step,
        }
        emit("training.step", {name: progress[name] for name in STEP if progress[name] is not None})
        emit("training.progress", {name: progress[name] for name in PROGRESS})
        self.on_event({"event": "progress", **progress})

    def _parts(self, batch: Batch) -> dict[str, list[tuple[Datum, int | None]]]:
        """The datums of a batch by the loss that takes them, and which lesson each tells about."""
        parts: dict[str, list[tuple[Datum, int | None]]] = {}
        for index, share in batch.lessons:
            for number, term in enumerate(self.lessons[index].terms):
                datums = term.weighing(share)
                told = [index if number == 0 else None, *[None] * (len(datums) - 1)]
                parts.setdefault(term.loss, []).extend(zip(datums, told, strict=True))
        replayed = [(self.replay[index], None) for index in batch.replay]
        parts.setdefault("cross_entropy", []).extend(replayed)
        return {loss_fn: part for loss_fn, part in parts.items() if part}

    def _due(self) -> bool:
        """Whether it is time to look at everything again: at once, or a while after a look that
        found something lost."""
        return not self.lost or self.step - self.looked_step >= LOOK_EVERY

    def _note_progress(self) -> None:
        """What is lost is looked at only while all is learned; before that it counts as lost."""
        kept = sum(self.right_before) - self.lost if all(self.learned) else 0
        if sum(self.learned) + kept > self.most_learned:
            self.most_learned, self.progress_step = sum(self.learned) + kept, self.step

    def _stuck(self) -> bool:
        """Whether going on would only wear out what is there: nothing new is learned any more, and
        what was lost does not come back."""
        patience = self.settings.patience
        if all(self.learned):
            patience = 2 * patience if self.dear else min(patience, RECOVERY)
        return self.settings.stop_when_learned and 0 < patience <= self.step - self.progress_step

    async def _recovers(self) -> bool:
        """Whether to go on, although nothing new is learned, because an earlier lesson is lost that
        may come back: for as long again at most."""
        if all(self.learned) or self.step - self.progress_step >= 2 * self.settings.patience:
            return False
        if self.step - self.looked_step >= LOOK_EVERY:
            await self._look_at_kept()
        return self.dear > 0

    @property
    def steps(self) -> int:
        """Optimiser steps at most."""
        return most_steps(self.batches.per_epoch, self.settings)

    async def _confirm(self) -> None:
        """Look at every lesson, and at what is kept, with the weights as they are."""
        if self.should_stop():
            raise _Stopped
        with timed("look", step=self.step):
            await self._look()

    async def _look(self) -> None:
        shares = np.asarray(self.weights) / np.mean(self.weights)
        loss = weight = 0.0
        by_loss: dict[str, list[int]] = {}
        for index, lesson in enumerate(self.lessons):
            by_loss.setdefault(lesson.terms[0].loss, []).append(index)
        for loss_fn, indices in by_loss.items():
            terms = [self.lessons[index].terms[0] for index in indices]
            output = await self.client.forward(
                [
                    datum
                    for index, term in zip(indices, terms, strict=True)
                    for datum in term.weighing(float(shares[index]))
                ],
                loss_fn,
            )
            # Other losses are on another scale; they tell of the loss where there is nothing else.
            if loss_fn == "cross_entropy" or "cross_entropy" not in by_loss:
                loss, weight = loss + output.loss, weight + output.weight
            firsts = np.cumsum([0, *(len(term.datums) for term in terms[:-1])])
            for index, first in zip(indices, firsts.tolist(), strict=True):
                self.learned[index] = self.lessons[index].learned(output.greedy[first])
        await self._look_at_kept()
        self.loss, self._confirmed = loss / weight, True
        self.seconds = self.clock() - self._began
        learned = sum(self.learned)
        emit("training.eval", {"step": self.step, "loss": self.loss, "learned": learned})

    async def _evaluate(self) -> None:
        if self.evaluate is None or self._evaluated_step == self.step:
            return
        figures = dict(await self.evaluate())
        self._evaluated_step = self.step
        self.seconds = self.clock() - self._began
        emit("training.eval", {"step": self.step, **figures})
        self.on_event({"event": "evaluation", "step": self.step, "figures": figures})

    async def _look_at_kept(self) -> None:
        if any(self.right_before):
            found = (await self.client.forward(self.kept)).greedy
            pairs = zip(self.right_before, found, strict=True)
            gone = [before and not now for before, now in pairs]
            self.lost, self.dear = sum(gone), sum(gone[: len(gone) - self.delicate])
            self.looked_step = self.step

    def _result(self, *, stopped: bool) -> SupervisedResult:
        return SupervisedResult(
            steps=self.step,
            epochs=min(self.epoch + (self.window > 0), self.settings.epochs),
            final_loss=self.loss,
            learned=list(self.learned),
            seconds=self.seconds,
            tokens=self.tokens,
            stopped=stopped,
        )

    async def _save(self) -> None:
        if self.checkpoint is None or self._saved_step == self.step:
            return
        began = time.perf_counter()
        with timed("checkpoint", step=self.step):
            target = begin_checkpoint(self.checkpoint, self.step)
            await self.client.save_state(target)
            finish_checkpoint(target, self._loop())
        self._saved_step = self.step
        seconds = time.perf_counter() - began
        emit("training.checkpoint", {"step": self.step, "seconds": seconds})
        self.on_event({"event": "checkpoint", "step": self.step})

    def _loop(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "epoch": self.epoch,
            "window": self.window,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "loss": self.loss,
            "learned": self.learned,
            "right_before": self.right_before,
            "lost": self.lost,
            "dear": self.dear,
            "looked_step": self.looked_step,
            "most_learned": self.most_learned,
            "progress_step": self.progress_step,
            "random": self._epoch_random or self.batches.state_dict(),
            "material": self._material(),
        }

    async def _resume(self) -> None:
        found = latest_checkpoint(self.checkpoint) if self.checkpoint else None
        if found is None:
            return
        loop = read_loop(found)
        if loop.get("material") != self._material():
            raise TrainingError(
                f"The checkpoint {found} is of other lessons or settings.",
                hint="Start the job afresh.",
            )
        self.batches.load_state_dict(loop["random"])
        self.step, self.epoch, self.window = loop["step"], loop["epoch"], loop["window"]
        self.tokens, self.seconds = loop["tokens"], loop["seconds"]
        self.loss, self.learned = loop["loss"], list(loop["learned"])
        self.right_before = list(loop["right_before"])
        self.lost, self.dear = loop["lost"], loop["dear"]
        self.looked_step = loop["looked_step"]
        self.most_learned, self.progress_step = loop["most_learned"], loop["progress_step"]
        self._saved_step = self.step
        await self.client.load_state(found)

    def _material(self) -> str:
        """Tells lessons, weights and what shapes the steps apart from others."""
        mark = hashlib.sha256()
        learned = [datum for lesson in self.lessons for datum in lesson.datums]
        for datum in [*learned, *self.replay, *self.kept]:
            mark.update(np.asarray(datum.model_input.tokens, dtype=np.int64).tobytes())
            mark.update(datum.loss_fn_inputs["target_tokens"].data.tobytes())
        kinds = [[term.loss for term in lesson.terms] for lesson in self.lessons]
        mark.update(repr((self.weights, kinds)).encode())
        relevant = self.settings.model_dump(exclude={"nice", "timeout_minutes", "threads", "hooks"})
        mark.update(repr(sorted(relevant.items())).encode())
        return mark.hexdigest()

    async def _diverged(self, error: DivergenceError) -> DivergenceError:
        """Go back to the last checkpoint, if there is one, and say so."""
        kept = self.step
        found = latest_checkpoint(self.checkpoint) if self.checkpoint else None
        if found is not None:
            await self.client.load_state(found)
            kept = int(read_loop(found)["step"])
        return DivergenceError(
            f"Training diverged at step {self.step + 1}: {error.message} "
            f"The adapter is as it was after step {kept}.",
            hint=error.hint,
        )
