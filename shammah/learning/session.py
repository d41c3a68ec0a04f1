"""Inside the worker: one job from its specification to its adapter.

Knows models, renderers and the training loop; of the supervisor it knows only the function that it
tells events to. Imports torch.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from shammah.errors import TrainingError
from shammah.files import write_atomic
from shammah.learning.answers import greedy_answers
from shammah.learning.clock import RunningClock
from shammah.learning.curriculum import (
    Curriculum,
    Rendering,
    anchors_of,
    curriculum,
    frozen_rank,
)
from shammah.learning.gate import GateReport, judge
from shammah.learning.job import (
    BEFORE,
    CHECKPOINT,
    RESULT,
    TRACE,
    WEIGHTS,
    Before,
    Checkpoint,
    Complete,
    Event,
    Failed,
    JobSpec,
    LessonOutcome,
    LoraRecord,
    Progress,
    Remark,
    Start,
    event_line,
)
from shammah.learning.job_story import JobStory
from shammah.learning.material import Material
from shammah.learning.measures import letter_orders
from shammah.learning.record import RunLog, evaluated, run_log
from shammah.learning.surroundings import surroundings
from shammah.models.describe import describe
from shammah.models.load import BaseModel, load_base_model
from shammah.renderers.registry import renderer_for
from shammah.settings import TrainingSettings
from shammah.tracking.story import STORY, StoryWriter
from shammah.tracking.telemetry import span
from shammah.tracking.trace import timed, tracing
from shammah.training.checkpoint import checkpoint_step
from shammah.training.local_client import LocalTrainingClient
from shammah.training.lora import trainable_parameters
from shammah.training.schedule import rate_for_width
from shammah.training.supervised import SupervisedResult, train_supervised


class StopSignal(Protocol):
    """How the worker is told to end."""

    stop: bool
    """It should end at the next step, with a checkpoint."""
    setting_up: bool
    """Until there is something worth a checkpoint, it may be interrupted anywhere."""


def run_job(
    folder: Path,
    *,
    threads: int,
    signals: StopSignal,
    tell: Callable[[Event], None],
    trace: Path | None = None,
) -> Failed | None:
    """Train the job in a folder and write `adapter.safetensors` and `result.json` into it.

    Args:
        trace: a file for where the time goes; else one in the folder if `tracking.trace` says so.

    Returns:
        None when done, or why it was interrupted (with a checkpoint to go on from).

    Raises:
        ShammahError: the job, the model or the lessons cannot be used, the loss diverged, or the
            trace cannot be written.
    """
    spec = JobSpec.read(folder)
    if trace is None and spec.tracking.trace:
        trace = folder / TRACE
    with tracing(trace, spec.run_name), span("workflow", "job", {"job": spec.id}):
        return _run(spec, folder, threads, signals, tell)


def _run(
    given: JobSpec,
    folder: Path,
    threads: int,
    signals: StopSignal,
    tell: Callable[[Event], None],
) -> Failed | None:
    began = time.monotonic()
    with timed("load", model=given.model.name):
        base = load_base_model(given.model)
    if given.fingerprint is not None and base.fingerprint != given.fingerprint:
        raise TrainingError(
            f"The base model {given.model.name} is not the one this job was made for.",
            hint="It was changed or replaced since; start a new job.",
        )
    renderer = renderer_for(base.tokenizer, base.stop_tokens, base.renderer)
    torch.set_num_threads(threads or base.threads)
    # Before the adapter's own parameters are among the model's.
    model = describe(base, trainable_parameters(base.model, given.lora))

    async def work() -> Failed | None:
        def remark(text: str) -> None:
            tell(Remark(text=text))

        with timed("anchors"):
            placed, around = await surroundings(base, renderer, given, folder, remark)
            spec = placed.model_copy(update={"training": _settled(placed, base)})
            rendered = Rendering(spec, renderer, min(spec.training.max_length, base.context_length))
            anchors = anchors_of(base, rendered, around)
        client = LocalTrainingClient(
            base,
            spec.lora,
            spec.training,
            folder / spec.parent.weights if spec.parent else None,
            parent_scaling=spec.parent.scaling if spec.parent else None,
            frozen_rank=frozen_rank(spec),
            moments=anchors.moments,
        )
        loaded = time.monotonic() - began
        with timed("lessons"):
            held = await curriculum(client, rendered, anchors, base.stop_tokens)
            client.remember(held.examples)
        resumed = checkpoint_step(folder / CHECKPOINT)
        story = StoryWriter(folder / STORY)
        told = JobStory(story, spec)
        title = f"{spec.run_name}, from step {resumed}" if resumed else spec.run_name
        with (
            run_log(spec, folder, resumed, remark) as log,
            closing(story),
            story.scope(title),
        ):
            job = _Work(folder, spec, base, client, rendered, held, signals, tell, log, told)
            start = job.start(loaded, resumed)
            log.begin(spec, start, model)
            tell(start)
            if not resumed:
                told.taught(held, anchors.near_misses)
            signals.setting_up = False
            failed = await job.train()
            if failed is not None:
                log.outcome = "interrupted"
            return failed

    return asyncio.run(work())


def _settled(spec: JobSpec, base: BaseModel) -> TrainingSettings:
    """The settings with what they leave to be chosen."""
    given, chosen = spec.training, dict[str, float]()
    if not given.learning_rate:
        width = int(base.model.config.get_text_config(decoder=True).hidden_size)
        chosen["learning_rate"] = rate_for_width(width)
    if given.hold == "auto":
        chosen["hold"] = 1.0 if spec.scope is None else 0.0
    return given.model_copy(update=chosen)


@dataclass(frozen=True, slots=True)
class _Work:
    """One job with everything it needs loaded."""

    folder: Path
    spec: JobSpec
    base: BaseModel
    client: LocalTrainingClient
    rendered: Rendering
    curriculum: Curriculum
    signals: StopSignal
    tell: Callable[[Event], None]
    log: RunLog
    told: JobStory

    @property
    def lessons(self) -> Material:
        return self.curriculum.lessons

    def start(self, seconds: float, resumed: int) -> Start:
        return Start(
            model=self.base.name,
            fingerprint=self.base.fingerprint,
            device=self.base.device,
            dtype=str(self.base.dtype).removeprefix("torch."),
            lessons=len(self.lessons.lessons),
            replay=len(self.spec.replay),
            parent=self.spec.parent.name if self.spec.parent else None,
            resumed_step=resumed,
            threads=torch.get_num_threads(),
            load_seconds=seconds,
        )

    async def train(self) -> Failed | None:
        with span("stage", "before"):
            before = await self.before()
        with span("stage", "train"), self.told.training():
            result = await train_supervised(
                self.client,
                self.lessons.examples,
                self.lessons.weights,
                self.curriculum.replay,
                self.spec.training,
                kept=self.curriculum.kept,
                delicate=self.curriculum.delicate,
                on_event=self.on_event,
                should_stop=lambda: self.signals.stop,
                checkpoint=self.folder / CHECKPOINT,
                clock=RunningClock(),
            )
        if result.stopped:
            return Failed(kind="interrupted", message="It was told to end.", step=result.steps)
        await self.client.save_weights(self.folder / WEIGHTS)
        learned = self.lessons.learned(result.learned)
        with span("stage", "after"):
            after = await self.curriculum.probes.figures(self.client)
            # What is learned is answered as taught.
            answers = await self.answers(
                [
                    lesson.target if right else None
                    for lesson, right in zip(self.lessons.lessons, learned, strict=True)
                ]
            )
            self.told.answers("Answers after", self.lessons.lessons, answers)
        evaluated(result.steps, after)
        report = judge(
            self.lessons.lessons,
            learned,
            before.orders,
            before.figures,
            after,
        )
        self.told.verdict(report)
        complete = self.complete(result, report, before.answers, answers)
        write_atomic(self.folder / RESULT, event_line(complete))
        self.log.complete(self.folder / WEIGHTS, complete, self.spec)
        self.tell(complete)
        return None

    async def before(self) -> Before:
        """How what training starts from behaves; measured once, as a job that goes on has changed
        it already."""
        kept = self.folder / BEFORE
        if checkpoint_step(self.folder / CHECKPOINT) and kept.exists():
            return Before.model_validate_json(kept.read_bytes())
        before = Before(
            figures=await self.curriculum.probes.figures(self.client),
            orders=tuple(await letter_orders(self.client, self.curriculum.reordered)),
            # What was condemned is what was answered.
            answers=tuple(await self.answers([lesson.rejected for lesson in self.lessons.lessons])),
        )
        write_atomic(kept, before.model_dump_json())
        self.told.answers("Answers before", self.lessons.lessons, before.answers)
        evaluated(0, before.figures)
        return before

    async def answers(self, known: Sequence[str | None]) -> list[str | None]:
        """What the lessons' questions are answered with the weights as they are; the `known` ones
        are not asked."""
        return await greedy_answers(
            self.client,
            self.rendered.renderer,
            self.lessons.lessons,
            known,
            context_turns=self.spec.training.context_turns,
            max_length=self.rendered.max_length,
            stopped=lambda: self.signals.stop,
        )

    def on_event(self, values: dict[str, Any]) -> None:
        """Tell what the loop reports, and write down the figures of its steps."""
        if values["event"] == "checkpoint":
            self.tell(Checkpoint(**values))
            return
        progress = Progress(**values)
        self.log.step(progress)
        self.tell(progress)

    def complete(
        self,
        result: SupervisedResult,
        report: GateReport,
        before: Sequence[str | None],
        after: Sequence[str | None],
    ) -> Complete:
        weights = self.folder / WEIGHTS
        parameters = self.client.lora.named_parameters()
        with weights.open("rb") as stream:
            checksum = hashlib.file_digest(stream, "sha256").hexdigest()
        asked = {item.feedback_id for item in self.spec.taught if item.objective == "revise"}
        outcomes = [
            LessonOutcome(
                feedback_id=lesson.feedback_id,
                learned=learned,
                revision=lesson.target if lesson.feedback_id in asked else None,
                before=was,
                after=now,
            )
            for lesson, learned, was, now in zip(
                self.lessons.lessons,
                self.lessons.learned(result.learned),
                # A job that was begun by an older version has none.
                before or [None] * len(self.lessons.lessons),
                after,
                strict=True,
            )
        ]
        outcomes += [
            LessonOutcome(feedback_id=number, learned=False, problem=problem)
            for number, problem in self.lessons.problems.items()
        ]
        lora = self.client.lora
        return Complete(
            sha256=checksum,
            tensors=len(parameters),
            parameters=sum(parameter.numel() for parameter in parameters.values()),
            lora=LoraRecord(
                rank=lora.rank,
                alpha=lora.alpha,
                dropout=lora.dropout,
                target_modules=tuple(lora.target_modules),
                rslora=lora.rslora,
                frozen=lora.frozen.rank if lora.frozen is not None else 0,
            ),
            model=self.base.name,
            fingerprint=self.base.fingerprint,
            outcomes=tuple(outcomes),
            final_loss=result.final_loss,
            examples=len(self.lessons.lessons),
            replayed=len(self.spec.replay),
            steps=result.steps,
            epochs=result.epochs,
            tokens=result.tokens,
            seconds=result.seconds,
            gate=report,
        )
