"""What an adapter answers: the questions that are near to what it was taught.

A small change of the weights that teaches ten answers also changes others that nobody asked to
change. So an adapter need not answer everything: a question that is near to none of its lessons
goes to the model as it was. SERAC (Mitchell et al. 2022, arXiv 2206.06520) calls this the scope of
an edit. Knows descriptions and vectors; no weights, no model, no settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from shammah.adapters.lesson_vectors import LessonVectors
from shammah.adapters.metadata import AdapterMetadata

WORDINGS = 8
"""Other wordings of each lesson that a question is compared with."""


def taught_questions(name: str, known: Mapping[str, AdapterMetadata]) -> tuple[str, ...] | None:
    """The questions that an adapter and all it was made from were taught.

    None where nobody can tell: it or one of those it was made from has no lessons, or is missing.

    Args:
        known: descriptions of the adapters of its base model, by name.
    """
    questions: dict[str, None] = {}
    seen, waiting = set[str](), [name]
    while waiting:
        about = known.get(waiting.pop())
        if about is None:
            return None
        if about.name in seen:
            continue
        seen.add(about.name)
        if not about.lessons:
            return None
        questions |= dict.fromkeys(lesson.query for lesson in about.lessons)
        waiting += about.parents
    return tuple(questions)


def near_to(
    questions: Sequence[str], reworded: Callable[[str, int], Sequence[str]]
) -> tuple[str, ...]:
    """What a question is compared with: those that were taught, as they were and in other words.

    Args:
        reworded: up to so many other wordings of a question.
    """
    return tuple(
        dict.fromkeys(text for asked in questions for text in (asked, *reworded(asked, WORDINGS)))
    )


class Scope:
    """The questions that one adapter answers.

    Args:
        vectors: what makes vectors of questions.
        reworded: other wordings of a question, which are near to what was taught, too.
    """

    def __init__(
        self, vectors: LessonVectors, reworded: Callable[[str, int], Sequence[str]]
    ) -> None:
        self._vectors = vectors
        self._reworded = reworded
        self._lessons: NDArray[np.float32] | None = None

    async def learn(self, questions: Sequence[str] | None) -> None:
        """Know these as what was taught from now on; with None every question is near.

        Raises:
            EmbeddingError: they cannot be embedded.
        """
        if questions is None:
            self._lessons = None
            return
        wordings = near_to(questions, self._reworded)
        self._lessons = await self._vectors.of(wordings)
        await self._vectors.keep([wordings])

    async def nearness(self, question: str) -> float | None:
        """The cosine of a question with the nearest wording of a lesson; None where all is near.

        Raises:
            EmbeddingError: the question cannot be embedded.
        """
        lessons = self._lessons
        if lessons is None or not question.strip():
            return None
        (vector,) = await self._vectors.embedder.embed([question])
        return float((lessons @ vector).max())
