"""What the next training job would do, without doing it.

Looks at the same lessons, settings and library as a job does; loads no model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from shammah.adapters.library import AdapterLibrary
from shammah.feedback.buffer import LessonBuffer
from shammah.learning.contradictions import settle
from shammah.learning.lessons import lessons_from
from shammah.learning.material import REPLAYED, REPLAYED_NEAR, kept_out, questions
from shammah.learning.preparation import Line
from shammah.settings import Settings
from shammah.training.batches import LessonBatches
from shammah.training.schedule import most_steps


@dataclass(frozen=True, slots=True)
class PlannedLesson:
    """One lesson of the buffer. `target` is the answer to give, or in words what to keep from;
    `examples` are the ways in which its question will be learned;
    with 0 of them it will be left out, and `problem` says why."""

    feedback_id: int | None
    question: str
    objective: str
    target: str
    weight: float
    examples: int
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What would be trained, on what, and for how long.

    `waiting` rated answers teach nothing yet. `seconds` goes by the last adapter of the base
    model; None where there is none. `training_bytes` is for the worker process; None where the
    model is not on this disk.
    """

    model: str
    domain: str | None
    lessons: tuple[PlannedLesson, ...]
    waiting: int
    parent: str | None
    earlier: int
    anchors: int
    replay_share: float
    examples: int
    steps_at_most: int
    seconds: float | None
    training_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan(settings: Settings, feedback: LessonBuffer, library: AdapterLibrary) -> TrainingPlan:
    """The job that `train now` would queue.

    Raises:
        ModelError: the base model's folder is damaged.
        StorageError: the database cannot be read.
    """
    from shammah.models.anchors import read_anchors, unrelated_anchors
    from shammah.models.find import find_model
    from shammah.models.fingerprint import fingerprint
    from shammah.models.load import estimate_memory

    training = settings.training
    buffered = lessons_from(feedback.buffer())
    path = find_model(settings.model.name).path
    mark = fingerprint(path) if path is not None else ""
    domain = training.domain or None
    line = Line.of(domain if settings.adapters.routing == "domain" else None, library, mark)
    known = line.replay(buffered, feedback)
    fresh = training.mode == "fresh"
    earlier = known if training.replay > 0 and not fresh else ()
    if fresh and buffered:
        buffered = (*known, *buffered)
    problems = {
        found.overruled.feedback_id: found.reason for found in settle([*buffered, *earlier])[1]
    }
    lessons = []
    for lesson in buffered:
        problem = problems.get(lesson.feedback_id)
        asked = questions(lesson, training.context_turns, training.rephrasings)
        lessons.append(
            PlannedLesson(
                lesson.feedback_id,
                lesson.query,
                lesson.objective,
                lesson.aim,
                lesson.weight,
                0 if problem else len(asked),
                problem,
            )
        )
    parent = line.newest([]) if not fresh else None
    anchors = 0
    if path is not None and training.replay > 0:
        held = unrelated_anchors(read_anchors(path), [item.query for item in buffered])
        most = REPLAYED if settings.adapters.scope == "all" else REPLAYED_NEAR
        anchors = min(most, len(kept_out(held)[0]))
    weights = [item.weight / item.examples for item in lessons for _ in range(item.examples)]
    steps = _steps(weights, len(earlier) + anchors, settings) if weights else 0
    memory = estimate_memory(settings.model) if path is not None else None
    return TrainingPlan(
        model=settings.model.name,
        domain=domain,
        lessons=tuple(lessons),
        waiting=feedback.state().waiting,
        parent=parent.name if parent else None,
        earlier=len(earlier),
        anchors=anchors,
        replay_share=training.replay if earlier or anchors else 0.0,
        examples=len(weights),
        steps_at_most=steps,
        seconds=_seconds(len([item for item in lessons if item.examples]), mark, library),
        training_bytes=memory.training_bytes if memory else None,
    )


def _steps(weights: list[float], replay: int, settings: Settings) -> int:
    training = settings.training
    batches = LessonBatches(
        weights,
        replay=replay,
        batch_size=training.batch_size,
        replay_share=training.replay,
        seed=training.seed,
    )
    return most_steps(batches.per_epoch, training)


def _seconds(lessons: int, fingerprint: str, library: AdapterLibrary) -> float | None:
    """By the newest adapter that was trained on this base: as long for each lesson."""
    for adapter in library.list():
        known = adapter.metadata
        if known is None or known.base_fingerprint != fingerprint:
            continue
        seconds, examples = known.metrics.get("seconds"), known.metrics.get("examples")
        if seconds and examples:
            return seconds / examples * lessons
    return None
