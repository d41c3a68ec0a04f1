"""Inside the worker: one job from its specification to its adapter.

Knows models, renderers and the training loop; of the supervisor it knows only the function that it
tells events to. Imports torch.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import torch

from shammah.errors import TrainingError
from shammah.files import write_atomic
from shammah.learning.clock import RunningClock
from shammah.learning.contradictions import settle
from shammah.learning.gate import GateReport, judge
from shammah.learning.job import (
    BEFORE,
    CHECKPOINT,
    METRICS,
    RESULT,
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
    Start,
    append_line,
    event_line,
)
from shammah.learning.lessons import Lesson
from shammah.learning.material import Material, kept_out, material, replayed
from shammah.learning.measures import Probes, gibberish, surprises
from shammah.messages import user
from shammah.models.anchors import read_anchors, unrelated_anchors
from shammah.models.load import BaseModel, load_base_model
from shammah.ports.training_client import Datum
from shammah.renderers.registry import renderer_for
from shammah.training.body import base_distributions
from shammah.training.local_client import LocalTrainingClient
from shammah.training.supervised import SupervisedResult, checkpoint_step, train_supervised


class StopSignal(Protocol):
    """How the worker is told to end."""

    stop: bool
    """It should end at the next step, with a checkpoint."""
    setting_up: bool
    """Until there is something worth a checkpoint, it may be interrupted anywhere."""


def run_job(
    folder: Path, *, threads: int, signals: StopSignal, tell: Callable[[Event], None]
) -> Failed | None:
    """Train the job in a folder and write `adapter.safetensors` and `result.json` into it.

    Returns:
        None when done, or why it was interrupted (with a checkpoint to go on from).

    Raises:
        ShammahError: the job, the model or the lessons cannot be used, or the loss diverged.
    """
    began = time.monotonic()
    spec = JobSpec.read(folder)
    base = load_base_model(spec.model)
    if spec.fingerprint is not None and base.fingerprint != spec.fingerprint:
        raise TrainingError(
            f"The base model {spec.model.name} is not the one this job was made for.",
            hint="It was changed or replaced since; start a new job.",
        )
    renderer = renderer_for(base.tokenizer, base.stop_tokens)
    max_length = min(spec.training.max_length, base.context_length)

    def rendered(lessons: Sequence[Lesson], rephrased: int = 0) -> Material:
        return material(
            lessons,
            renderer,
            context_turns=spec.training.context_turns,
            max_length=max_length,
            rephrased=rephrased,
        )

    torch.set_num_threads(threads or base.threads)
    standing, contradictions = settle([*spec.lessons, *spec.replay])
    lessons = rendered(
        [lesson for lesson in spec.lessons if lesson in standing], spec.training.rephrasings
    )
    for found in contradictions:
        lessons.problems[found.overruled.feedback_id] = found.reason
    if not lessons.datums:
        raise TrainingError(
            "None of the lessons can be trained on: " + "; ".join(lessons.problems.values())
        )
    anchors = [
        Lesson(None, (user(anchor.query),), anchor.answer, 1.0)
        for anchor in unrelated_anchors(
            read_anchors(base.path), [lesson.query for lesson in spec.lessons]
        )
    ]
    earlier = rendered(spec.replay, spec.training.rephrasings)
    trained, probed = kept_out(anchors)
    probes = Probes(earlier, rendered(probed).datums, base.stop_tokens)
    replay: list[Datum] = []
    if spec.training.replay > 0:
        held: Sequence[Datum] = rendered(trained).datums
        if spec.training.anchor_tokens:
            held = base_distributions(base.model, held, spec.training.anchor_tokens)
        replay = replayed(earlier.datums, held)
    parent = folder / spec.parent.weights if spec.parent else None
    client = LocalTrainingClient(
        base,
        spec.lora,
        spec.training,
        parent,
        parent_scaling=spec.parent.scaling if spec.parent else None,
    )
    noise = rendered(gibberish(lessons.lessons))
    work = _Work(folder, spec, base, client, lessons, replay, probes, noise, signals, tell)
    tell(work.start(time.monotonic() - began))
    signals.setting_up = False
    return asyncio.run(work.train())


@dataclass(frozen=True, slots=True)
class _Work:
    """One job with everything it needs loaded."""

    folder: Path
    spec: JobSpec
    base: BaseModel
    client: LocalTrainingClient
    lessons: Material
    replay: Sequence[Datum]
    probes: Probes
    gibberish: Material
    """The same questions with random letters for answers, to compare with."""
    signals: StopSignal
    tell: Callable[[Event], None]

    def start(self, seconds: float) -> Start:
        return Start(
            model=self.base.name,
            fingerprint=self.base.fingerprint,
            device=self.base.device,
            dtype=str(self.base.dtype).removeprefix("torch."),
            lessons=len(self.lessons.lessons),
            replay=len(self.spec.replay),
            parent=self.spec.parent.name if self.spec.parent else None,
            resumed_step=checkpoint_step(self.folder / CHECKPOINT),
            threads=torch.get_num_threads(),
            load_seconds=seconds,
        )

    async def train(self) -> Failed | None:
        before = await self.before()
        result = await train_supervised(
            self.client,
            self.lessons.datums,
            self.lessons.weights,
            self.replay,
            self.spec.training,
            on_event=self.on_event,
            should_stop=lambda: self.signals.stop,
            checkpoint=self.folder / CHECKPOINT,
            clock=RunningClock(),
        )
        if result.stopped:
            return Failed(kind="interrupted", message="It was told to end.", step=result.steps)
        await self.client.save_weights(self.folder / WEIGHTS)
        learned = self.lessons.learned(result.learned)
        report = judge(
            self.lessons.lessons,
            learned,
            before.surprises,
            before.gibberish,
            before.figures,
            await self.probes.figures(self.client),
        )
        complete = self.complete(result, report)
        write_atomic(self.folder / RESULT, event_line(complete))
        self.tell(complete)
        return None

    async def before(self) -> Before:
        """How what training starts from behaves; measured once, as a job that goes on has changed
        it already."""
        kept = self.folder / BEFORE
        if checkpoint_step(self.folder / CHECKPOINT) and kept.exists():
            return Before.model_validate_json(kept.read_bytes())
        before = Before(
            figures=await self.probes.figures(self.client),
            surprises=tuple(await surprises(self.client, self.lessons)),
            gibberish=fmean(await surprises(self.client, self.gibberish)),
        )
        write_atomic(kept, before.model_dump_json())
        return before

    def on_event(self, values: dict[str, Any]) -> None:
        """Tell what the loop reports; the figures of its steps are kept in `metrics.jsonl`."""
        if values["event"] == "checkpoint":
            self.tell(Checkpoint(**values))
            return
        progress = Progress(**values)
        append_line(self.folder / METRICS, event_line(progress))
        self.tell(progress)

    def complete(self, result: SupervisedResult, report: GateReport) -> Complete:
        weights = self.folder / WEIGHTS
        parameters = self.client.lora.named_parameters()
        with weights.open("rb") as stream:
            checksum = hashlib.file_digest(stream, "sha256").hexdigest()
        outcomes = [
            LessonOutcome(feedback_id=lesson.feedback_id, learned=learned)
            for lesson, learned in zip(
                self.lessons.lessons, self.lessons.learned(result.learned), strict=True
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
