"""How near a model's anchors are to what a job teaches, and what follows from that.

Where the chat asks the adapter only what is near to its lessons (`adapters.scope`), anchors that
are far from them are nothing that it could change. Knows vectors, and jobs' lessons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shammah.adapters.scope import near_to
from shammah.learning.job import JobSpec, ScopeSpec
from shammah.learning.lessons import Lesson
from shammah.learning.material import REPLAYED, REPLAYED_NEAR
from shammah.learning.neighbours import chosen
from shammah.learning.rephrasing import rephrasings
from shammah.ports.embedding_client import EmbeddingClient


@dataclass(frozen=True, slots=True)
class Nearness:
    """Compares questions with those of a job: `taught` are the vectors of its lessons, `known`
    those of all wordings that the adapter will have in its scope; float32 [n, d], of unit norm."""

    embedder: EmbeddingClient
    scope: ScopeSpec | None
    seed: int
    taught: NDArray[np.float32]
    known: NDArray[np.float32]

    @classmethod
    async def to_lessons(cls, embedder: EmbeddingClient, spec: JobSpec) -> Nearness:
        """
        Raises:
            EmbeddingError: the lessons cannot be embedded.
        """
        taught = await embedder.embed([lesson.query for lesson in spec.taught])
        known = taught
        if spec.scope is not None:
            questions = [lesson.query for lesson in (*spec.taught, *spec.replay)]
            known = await embedder.embed(near_to(questions, rephrasings))
        return cls(embedder, spec.scope, spec.training.seed, taught, known)

    async def within_scope(self, anchors: Sequence[Lesson]) -> list[Lesson]:
        """Those that the adapter would be asked."""
        if self.scope is None or not anchors:
            return list(anchors)
        nearest = (await self._vectors(anchors) @ self.known.T).max(axis=1)
        near = (nearest >= self.scope.threshold).tolist()
        return [anchor for anchor, asked in zip(anchors, near, strict=True) if asked]

    async def replayed(self, anchors: Sequence[Lesson]) -> list[Lesson]:
        """Those that are trained on beside the lessons: the nearest, and others if the adapter will
        be asked others."""
        vectors = await self._vectors(anchors)
        if self.scope is None:
            indices = chosen(vectors, self.taught, REPLAYED, self.seed)
        else:
            indices = chosen(vectors, self.taught, REPLAYED_NEAR, self.seed, near_share=1.0)
        return [anchors[index] for index in indices]

    async def _vectors(self, anchors: Sequence[Lesson]) -> NDArray[np.float32]:
        return await self.embedder.embed([anchor.query for anchor in anchors])
