"""Which adapter a question belongs to, going by what each was taught.

An adapter may carry a domain ("rust", "sql"). A question is compared with the questions of its
lessons, as vectors. Knows descriptions and vectors; no weights, no model, no settings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shammah.adapters.lesson_vectors import LessonVectors
from shammah.adapters.library import Adapter
from shammah.adapters.metadata import AdapterMetadata
from shammah.ports.embedding_client import EmbeddingClient


@dataclass(frozen=True, slots=True)
class DomainAdapter:
    """An adapter that answers for a domain, and the questions that it was taught."""

    name: str
    domain: str
    questions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Route:
    """Where a question may go. `similarity` is the cosine with what the adapter was taught."""

    adapter: str
    domain: str
    similarity: float


def domain_adapters(
    adapters: Sequence[Adapter], fingerprint: str, *, failed: bool = False
) -> list[DomainAdapter]:
    """The adapters of a base model that questions can be routed to, in the order given.

    One that was trained on from another of its domain holds the lessons of that one too, and
    stands in its place. Left out are broken ones, those without lessons, and, without `failed`,
    those that failed the checks after their training.

    Args:
        adapters: the library's list.
        fingerprint: of the base model.
    """
    known: dict[str, AdapterMetadata] = {
        adapter.name: adapter.metadata
        for adapter in adapters
        if adapter.metadata is not None
        and adapter.problem is None
        and adapter.metadata.domain is not None
        and adapter.metadata.base_fingerprint == fingerprint
        and (failed or not adapter.metadata.failures)
    }
    lines = {name: _line(about, known) for name, about in known.items()}
    followed = {ancestor.name for line in lines.values() for ancestor in line[1:]}
    found = []
    for name, about in known.items():
        asked = dict.fromkeys(lesson.query for item in lines[name] for lesson in item.lessons)
        if name not in followed and asked and about.domain is not None:
            found.append(DomainAdapter(name, about.domain, tuple(asked)))
    return found


def nearness(question: NDArray[np.float32], lessons: NDArray[np.float32]) -> float:
    """How much a question [d] is like lessons [n, d], as a cosine: with the nearest of them, or
    with their middle where that is nearer (a question of the subject that none of them asks)."""
    similar = lessons @ question
    middle = lessons.sum(axis=0)
    return float(max(similar.max(), similar.sum() / max(float(np.linalg.norm(middle)), 1e-6)))


class DomainRouter:
    """Finds the adapters that a question may belong to.

    Args:
        embedder: what makes vectors of texts.
        folder: where the vectors of lessons are kept, so that they are made once.
    """

    def __init__(self, embedder: EmbeddingClient, folder: Path) -> None:
        self._vectors = LessonVectors(embedder, folder)
        self._known: list[tuple[DomainAdapter, NDArray[np.float32]]] = []
        self._learning = asyncio.Lock()

    async def learn(self, adapters: Sequence[DomainAdapter]) -> None:
        """Know these adapters from now on, and no others.

        Raises:
            EmbeddingError: their lessons cannot be embedded.
        """
        async with self._learning:
            self._known = [
                (adapter, await self._vectors.of(adapter.questions)) for adapter in adapters
            ]
            await self._vectors.keep(adapter.questions for adapter in adapters)

    async def candidates(self, question: str, threshold: float) -> list[Route]:
        """The adapters whose lessons are at least that similar to a question, the best first; of
        equals the one that came first.

        Raises:
            EmbeddingError: the question cannot be embedded.
        """
        known = self._known
        if not known or not question.strip():
            return []
        (vector,) = await self._vectors.embedder.embed([question])
        routes = [
            Route(adapter.name, adapter.domain, nearness(vector, lessons))
            for adapter, lessons in known
        ]
        near = [route for route in routes if route.similarity >= threshold]
        return sorted(near, key=lambda route: route.similarity, reverse=True)


def _line(about: AdapterMetadata, known: dict[str, AdapterMetadata]) -> list[AdapterMetadata]:
    """An adapter and those of its domain that it was trained on from, the newest first."""
    line = [about]
    while (parent := known.get(line[-1].parent or "")) is not None:
        if parent.domain != about.domain or parent in line:
            break
        line.append(parent)
    return line
