"""From a claimed job to a specification that a worker can begin, or go on with.

Settles what cannot be known when a job is queued: which lessons still stand, which adapter
training starts from, which earlier lessons are replayed. Knows no processes.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
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
from shammah.learning.own_answers import lend
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
    line = Line.of(spec.routed_domain, library, fingerprint)
    parent = None if spec.training.mode == "fresh" else line.newest(notes)
    if (
        spec.prepared
        and _same(spec.lessons, lessons)
        and spec.fingerprint == fingerprint
        and (spec.parent.name if spec.parent else None) == (parent.name if parent else None)
    ):
        return spec
    clear(job.folder)
    earlier = line.replay(lessons, feedback)
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
    lend(queue.kept_anchors(fingerprint), job.folder)
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


@dataclass(frozen=True, slots=True)
class Line:
    """The adapters that a job goes on from: those of its domain where questions are routed, else
    the active one with all that was ever learned."""

    library: AdapterLibrary
    active: str | None
    domain: str | None
    members: tuple[Adapter, ...]

    @classmethod
    def of(cls, domain: str | None, library: AdapterLibrary, fingerprint: str) -> Line:
        """The line of a domain (None: that of no domain) on a base model.

        Raises:
            StorageError: the library cannot be read.
        """
        if domain is None:
            return cls(library, library.active(fingerprint), None, ())
        members = tuple(
            adapter
            for adapter in library.list()
            if adapter.problem is None
            and adapter.metadata is not None
            and adapter.metadata.domain == domain
            and adapter.metadata.base_fingerprint == fingerprint
        )
        return cls(library, None, domain, members)

    def newest(self, notes: list[str]) -> Adapter | None:
        """The adapter to train on from; None is the base model. `notes` are added to."""
        if self.domain is not None:
            sound = (one for one in self.members if not one.require_metadata().failures)
            return next(sound, None)
        if self.active is None:
            return None
        try:
            adapter = self.library.get(self.active)
            adapter.require_metadata()
        except AdapterError as error:
            notes.append(f"Training starts from the base model: {error.message}")
            return None
        return adapter

    def replay(self, lessons: tuple[Lesson, ...], feedback: LessonBuffer) -> tuple[Lesson, ...]:
        """The earlier lessons to replay beside new ones."""
        earlier = replay_lessons(lessons, feedback)
        if self.domain is None:
            return earlier
        taught = {
            lesson.feedback_id for one in self.members for lesson in one.require_metadata().lessons
        }
        return tuple(lesson for lesson in earlier if lesson.feedback_id in taught)


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
