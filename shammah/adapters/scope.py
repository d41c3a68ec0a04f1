"""What an adapter answers: the questions that are near to what it was taught.

A small change of the weights that teaches ten answers also changes others that nobody asked to
change. So an adapter need not answer everything: a question that is near to none of its lessons, or
nearer to another question that the model knows, goes to the model as it was. SERAC (Mitchell et al.
2022, arXiv 2206.06520) calls this the scope of an edit. Knows descriptions and vectors; no weights,
no model, no settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shammah.adapters.metadata import AdapterMetadata
from shammah.ports.embedding_client import EmbeddingClient


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


@dataclass(frozen=True, slots=True)
class Nearness:
    """How near a question is to the nearest wording of a lesson, and to the nearest of the other
    questions that the model is known to be asked; as cosines."""

    lesson: float
    other: float = -1.0

    def within(self, threshold: float) -> bool:
        """Whether an adapter with these lessons is asked: a lesson is near, and nothing else is
        nearer."""
        return self.lesson >= max(threshold, self.other)


def nearness(
    questions: NDArray[np.float32], lessons: NDArray[np.float32], others: NDArray[np.float32]
) -> list[Nearness]:
    """That of each question.

    Args:
        questions, lessons, others: unit vectors, float32 [n, d]; at least one lesson.
    """
    taught = (questions @ lessons.T).max(axis=1)
    rival = (questions @ others.T).max(axis=1, initial=-1.0)
    return [Nearness(float(a), float(b)) for a, b in zip(taught, rival, strict=True)]


class Scope:
    """The questions that one adapter answers.

    Args:
        embedder: what makes vectors of questions.
        lessons: vectors of all wordings of what it was taught, float32 [n, d].
        others: of questions that are none of its business.
    """

    def __init__(
        self,
        embedder: EmbeddingClient,
        lessons: NDArray[np.float32],
        others: NDArray[np.float32],
    ) -> None:
        self._embedder = embedder
        self._lessons = lessons
        self._others = others

    async def nearness(self, question: str) -> Nearness | None:
        """Where a question stands; None where there is nothing to compare.

        Raises:
            EmbeddingError: the question cannot be embedded.
        """
        if not question.strip():
            return None
        vectors = await self._embedder.embed([question])
        return nearness(vectors, self._lessons, self._others)[0]
