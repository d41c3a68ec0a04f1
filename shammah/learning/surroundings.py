"""What lies around a job's lessons, and what the job does where that cannot be told.

Where questions cannot be made into vectors the chat lets the adapter answer every one of them
(`assistant.scope`), so the job trains and judges it as an adapter that does. Knows jobs and the
base's anchors, no training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shammah.errors import ShammahError
from shammah.files import write_atomic
from shammah.generation.embedder import embedder_of
from shammah.learning.job import CHECKPOINT, UNSCOPED, JobSpec
from shammah.learning.lessons import Lesson
from shammah.learning.letter_order import letters_of
from shammah.learning.material import kept_out
from shammah.learning.neighbourhood import Neighbourhood
from shammah.learning.own_answers import anchors_for
from shammah.messages import user
from shammah.models.anchors import unrelated_anchors
from shammah.models.load import BaseModel
from shammah.renderers.base import Renderer
from shammah.training.checkpoint import checkpoint_step


@dataclass(frozen=True, slots=True)
class Surroundings:
    """`near` has the anchors to train on, `asked` are those kept out to measure that the adapter
    will be asked, `others` how many more there are; `letters` are those that the base writes."""

    near: Neighbourhood
    asked: Sequence[Lesson]
    others: int
    letters: frozenset[str]


async def surroundings(
    base: BaseModel, renderer: Renderer, spec: JobSpec, folder: Path, remark: Callable[[str], None]
) -> tuple[JobSpec, Surroundings]:
    """The anchors of a base that has no adapter yet, without those that a lesson asks about; from
    the job folder where none come with the model. And the job, without a scope where questions
    cannot be compared.

    Args:
        remark: told so, once in the life of the job.

    Raises:
        ShammahError: a job that goes on could compare them before, and cannot now.
    """
    found = [
        Lesson(None, (user(anchor.query),), anchor.answer, 1.0)
        for anchor in unrelated_anchors(
            anchors_for(base, renderer, folder), [lesson.query for lesson in spec.taught]
        )
    ]
    trained, probed = kept_out(found)
    letters = letters_of(anchor.answer for anchor in found)
    said = folder / UNSCOPED
    unscoped = spec.model_copy(update={"scope": None})
    tried = [(unscoped, "base")]
    if spec.scope is not None and not said.exists():
        tried.insert(0, (spec, spec.scope.embedding))
    for job, name in tried:
        try:
            near = await Neighbourhood.of(embedder_of(base, renderer, name), job, trained)
            asked = await near.within_scope(probed)
            return job, Surroundings(near, asked, len(probed) - len(asked), letters)
        except ShammahError as error:
            if said.exists():
                continue
            if checkpoint_step(folder / CHECKPOINT):
                raise  # it began with what is missing now
            write_atomic(said, str(error))
            follows = (
                "the adapter is trained and checked as one that answers every question"
                if spec.scope is not None
                else "what is replayed beside them is any of these"
            )
            remark(f"The lessons cannot be compared with other questions, so {follows}: {error}")
    return unscoped, Surroundings(Neighbourhood.unknown(unscoped, trained), probed, 0, letters)
