"""From a job's lessons to all that is trained on, replayed and measured.

Knows lessons, the base's anchors and the training client; not how the loop runs. Imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

from shammah.errors import TrainingError
from shammah.learning.contradictions import settle
from shammah.learning.job import JobSpec
from shammah.learning.lessons import Lesson
from shammah.learning.material import Material, material, replayed
from shammah.learning.measures import Beside, Probes, beside_other_orders
from shammah.learning.near_misses import near_misses
from shammah.learning.own_answers import own_answers
from shammah.learning.revision import revised, with_advantages
from shammah.learning.surroundings import Surroundings
from shammah.messages import user
from shammah.models.load import BaseModel
from shammah.ports.datum import Datum
from shammah.ports.training_client import TrainingClient
from shammah.renderers.base import Renderer
from shammah.training.body import base_distributions
from shammah.training.examples import with_references
from shammah.training.holding import Moments, moments_of

OFTEN = 8
"""Near misses are replayed so many times as often as other anchors: they are what changes first."""
MOST_SECONDS = 10.0
"""A slow model is asked fewer near misses."""


@dataclass(frozen=True, slots=True)
class Curriculum:
    """`lessons` are taught, `replay` is mixed into the batches, `kept` must not be lost, the last
    `delicate` of it being near misses, `probes` are measured before and after; `reordered` are the
    lessons' answers, each with its letters in other orders behind it."""

    lessons: Material
    replay: Sequence[Datum]
    kept: Sequence[Datum]
    delicate: int
    probes: Probes
    reordered: Sequence[Beside]

    @property
    def examples(self) -> list[Datum]:
        """All that is read more than once."""
        taught = [datum for example in self.lessons.examples for datum in example.datums]
        probed = [*self.probes.earlier.datums, *self.probes.anchors]
        return [*taught, *self.replay, *self.kept, *probed]


@dataclass(frozen=True, slots=True)
class Anchors:
    """The base's own answers to other questions: to train on, and kept out to measure; those to
    near misses, and what these are; what the base's layers are given with those to train on; and
    the letters that it writes."""

    trained: Sequence[Datum]
    probed: Sequence[Datum]
    others: int = 0
    """That were kept out to measure, too, and are none of the adapter's business."""
    near: Sequence[Datum] = ()
    near_misses: Sequence[Lesson] = ()
    moments: Moments | None = None
    letters: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Rendering:
    """Lessons as a job renders them."""

    spec: JobSpec
    renderer: Renderer
    max_length: int

    def __call__(self, lessons: Sequence[Lesson], rephrased: int = 0) -> Material:
        return material(
            lessons,
            self.renderer,
            context_turns=self.spec.training.context_turns,
            max_length=self.max_length,
            rephrased=rephrased,
        )


def frozen_rank(spec: JobSpec) -> int | None:
    """How many ranks the parent may take beside what is new; None where it is trained further."""
    if spec.parent is None or spec.training.mode != "delta":
        return None
    return max(1, spec.training.max_rank - spec.lora.rank)


def anchors_of(base: BaseModel, rendered: Rendering, around: Surroundings) -> Anchors:
    """What is made of the anchors of a base that has no adapter yet."""
    spec = rendered.spec
    probes, others = rendered(around.asked).datums, around.others
    hold = spec.training.hold
    if spec.training.replay == 0 and hold == 0:
        return Anchors((), probes, others, letters=around.letters)
    misses = _near_misses(base, rendered)
    missed = rendered(misses).datums
    held: Sequence[Datum] = [*rendered(around.near.replayed()).datums, *missed]
    with moments_of(base.model) if hold else nullcontext() as moments:
        distributions = base_distributions(base.model, held, max(1, spec.training.anchor_tokens))
    replayed = [*(distributions if spec.training.anchor_tokens else held)]
    replayed += replayed[len(replayed) - len(missed) :] * (OFTEN - 1)
    return Anchors(replayed, probes, others, missed, misses, moments, around.letters)


def _near_misses(base: BaseModel, rendered: Rendering) -> list[Lesson]:
    """What is near to the lessons and asks something else, with the base's own answers."""
    spec = rendered.spec
    lessons = [lesson.query for lesson in spec.taught]
    known = [*lessons, *(lesson.query for lesson in spec.replay)]
    asked = dict.fromkeys(
        text for lesson in lessons for text in near_misses(lesson, spec.training.near_misses, known)
    )
    answers = own_answers(base, rendered.renderer, list(asked), MOST_SECONDS)
    return [Lesson(None, (user(anchor.query),), anchor.answer, 1.0) for anchor in answers]


async def curriculum(
    client: TrainingClient, rendered: Rendering, anchors: Anchors, stop_tokens: tuple[int, ...]
) -> Curriculum:
    """What a job works with; answers with a note are revised by the model as it is now.

    Raises:
        TrainingError: no lesson can be trained on.
    """
    spec = rendered.spec
    standing, contradictions = settle([*spec.taught, *spec.replay])
    taught = [
        await revised(client, rendered.renderer, lesson, rendered.max_length)
        if lesson.objective == "revise"
        else lesson
        for lesson in spec.taught
        if lesson in standing
    ]
    lessons = rendered(taught, spec.training.rephrasings)
    for found in contradictions:
        lessons.problems[found.overruled.feedback_id] = found.reason
    if not lessons.examples:
        raise TrainingError(
            "None of the lessons can be trained on: " + "; ".join(lessons.problems.values())
        )
    lessons = await with_advantages(client, rendered.renderer, lessons)
    lessons = replace(lessons, examples=tuple(await with_references(client, lessons.examples)))
    # What is to be kept from needs no reminder: nothing draws towards it again.
    held = [lesson for lesson in spec.replay if lesson.target is not None]
    earlier = rendered(held, spec.training.rephrasings)
    asked = rendered(held)
    return Curriculum(
        lessons,
        replayed(earlier.datums, anchors.trained) if spec.training.replay > 0 else [],
        [*asked.datums, *anchors.near],
        len(anchors.near),
        Probes(asked, anchors.probed, stop_tokens, anchors.others),
        beside_other_orders(lessons.lessons, anchors.letters, rendered),
    )
