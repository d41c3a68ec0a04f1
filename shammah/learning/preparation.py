"""From a claimed job to a specification that a worker can begin, or go on with.

Settles what cannot be known when a job is queued: which lessons still stand, which adapter
training starts from, which earlier lessons are replayed. Knows no processes.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from shammah.adapters.library import Adapter, AdapterLibrary
from shammah.errors import AdapterError
from shammah.feedback.buffer import LessonBuffer
from shammah.files import write_atomic
from shammah.learning.contradictions import settle
from shammah.learning.job import (
    BEFORE,
    CHECKPOINT,
    PARENT,
    RESULT,
    WEIGHTS,
    JobSpec,
    ParentSpec,
    Round,
)
from shammah.learning.lessons import Lesson, lessons_from
from shammah.learning.queue import Job, JobQueue
from shammah.settings import ModelSettings


def prepare(
    job: Job, queue: JobQueue, feedback: LessonBuffer, library: AdapterLibrary
) -> JobSpec | None:
    """Write the job's final `job.json`; None if none of its lessons stands any more.

    A job that has been worked on and whose lessons and starting point are still the same keeps its
    checkpoint; otherwise it begins anew.

    Raises:
        ModelError: the base model is not there.
        StorageError: the disk is full or the folder cannot be written.
        TrainingError: the job folder is damaged.
    """
    spec = JobSpec.read(job.folder)
    lessons = queue.lessons(job.id)
    if not lessons:
        return None
    fingerprint = _fingerprint(spec.model)
    notes: list[str] = []
    parent = _parent(spec, library, fingerprint, notes)
    if (
        spec.prepared
        and _same(spec.lessons, lessons)
        and spec.fingerprint == fingerprint
        and (spec.parent.name if spec.parent else None) == (parent.name if parent else None)
    ):
        return spec
    clear(job.folder)
    earlier = replay_lessons(lessons, feedback)
    replays = spec.training.replay > 0 and spec.training.mode != "fresh"
    (job.folder / RESULT).unlink(missing_ok=True)
    if parent is not None:
        write_atomic(job.folder / PARENT, parent.path.read_bytes())
    spec = spec.model_copy(
        update={
            "fingerprint": fingerprint,
            "lessons": lessons,
            "standing": earlier if spec.training.mode == "fresh" else (),
            "replay": earlier if replays else (),
            "parent": _parent_spec(parent),
            "prepared": True,
            "notes": tuple(notes),
        }
    )
    spec.write(job.folder)
    return spec


def clear(folder: Path) -> None:
    """Remove what only a job that goes on needs; the record of what happened stays."""
    shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
    for name in (PARENT, WEIGHTS, BEFORE):
        (folder / name).unlink(missing_ok=True)


def _fingerprint(model: ModelSettings) -> str:
    from shammah.models.fingerprint import fingerprint
    from shammah.models.load import locate
    from shammah.models.source import check_folder

    # The worker has no network: a model that is not here yet is fetched now.
    path = locate(model.name)
    check_folder(path)
    return fingerprint(path)


def _parent(
    spec: JobSpec, library: AdapterLibrary, fingerprint: str, notes: list[str]
) -> Adapter | None:
    if spec.training.mode == "fresh":
        return None
    name = library.active(fingerprint)
    if name is None:
        return None
    try:
        adapter = library.get(name)
        adapter.require_metadata()
    except AdapterError as error:
        notes.append(f"Training starts from the base model: {error.message}")
        return None
    return adapter


def _parent_spec(parent: Adapter | None) -> ParentSpec | None:
    if parent is None:
        return None
    about = parent.require_metadata()
    return ParentSpec(
        name=parent.name,
        scaling=about.lora.scaling,
        rounds=tuple(Round(rank=part.rank, lessons=part.lessons) for part in about.parts),
    )


def replay_lessons(lessons: tuple[Lesson, ...], feedback: LessonBuffer) -> tuple[Lesson, ...]:
    """Earlier lessons, without those that a new one repeats or overrules."""
    prompts = {(lesson.messages, lesson.target) for lesson in lessons}
    standing, _ = settle([*lessons_from(feedback.lessons_trained()), *lessons])
    new = {lesson.feedback_id for lesson in lessons}
    return tuple(
        lesson
        for lesson in standing
        if lesson.feedback_id not in new and (lesson.messages, lesson.target) not in prompts
    )


def _same(first: tuple[Lesson, ...], second: tuple[Lesson, ...]) -> bool:
    return {lesson.feedback_id: lesson for lesson in first} == {
        lesson.feedback_id: lesson for lesson in second
    }
