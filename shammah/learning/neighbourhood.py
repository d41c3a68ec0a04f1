"""How near a model's anchors are to what a job teaches, and what follows from that.

Where the chat asks the adapter only what is near to its lessons (`adapters.scope`), anchors that
are far from them are nothing that it could change. Knows vectors, and jobs' lessons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shammah.adapters.scope import nearness
from shammah.learning.job import JobSpec, ScopeSpec
from shammah.learning.lessons import Lesson
from shammah.learning.material import REPLAYED, REPLAYED_NEAR
from shammah.learning.neighbours import chosen
from shammah.learning.reach import look_alikes, taught_wordings
from shammah.ports.embedding_client import EmbeddingClient


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """The anchors that a job may train on, beside its lessons, as unit vectors, float32 [n, d].

    `trained` are those of these anchors, `taught` those of its lessons, `wordings` those of all
    that the adapter will be asked, and `others` those of look-alikes. Without an `embedder` nothing
    is near to anything.
    """

    embedder: EmbeddingClient | None
    scope: ScopeSpec | None
    seed: int
    anchors: Sequence[Lesson]
    trained: NDArray[np.float32]
    taught: NDArray[np.float32]
    wordings: NDArray[np.float32]
    others: NDArray[np.float32]

    @classmethod
    async def of(
        cls, embedder: EmbeddingClient, spec: JobSpec, anchors: Sequence[Lesson]
    ) -> Neighbourhood:
        """
        Raises:
            EmbeddingError: lessons or anchors cannot be embedded.
        """
        trained = await embedder.embed([anchor.query for anchor in anchors])
        taught = await embedder.embed([lesson.query for lesson in spec.taught])
        wordings, others = taught, taught[:0]
        if spec.scope is not None:
            questions = [lesson.query for lesson in (*spec.taught, *spec.replay)]
            wordings = await embedder.embed(taught_wordings(questions))
            others = await embedder.embed(look_alikes(questions))
        seed = spec.training.seed
        return cls(embedder, spec.scope, seed, anchors, trained, taught, wordings, others)

    @classmethod
    def unknown(cls, spec: JobSpec, anchors: Sequence[Lesson]) -> Neighbourhood:
        """Where nothing can be compared: any of the anchors is replayed."""
        none = np.zeros((0, 1), np.float32)
        far = np.zeros((len(anchors), 1), np.float32)
        return cls(None, None, spec.training.seed, anchors, far, none, none, none)

    async def within_scope(self, probed: Sequence[Lesson]) -> list[Lesson]:
        """Those of the probed anchors that the adapter would be asked, as if they were no anchors:
        compared with the others alone."""
        if self.scope is None or self.embedder is None or not probed:
            return list(probed)
        others = np.concatenate([self.others, self.trained])
        asked = await self.embedder.embed([anchor.query for anchor in probed])
        pairs = zip(probed, nearness(asked, self.wordings, others), strict=True)
        return [anchor for anchor, near in pairs if near.within(self.scope.threshold)]

    def replayed(self) -> list[Lesson]:
        """Those anchors that are trained on beside the lessons: the nearest, and others if the
        adapter will be asked others."""
        if self.scope is None:
            indices = chosen(self.trained, self.taught, REPLAYED, self.seed)
        else:
            indices = chosen(self.trained, self.taught, REPLAYED_NEAR, self.seed, near_share=1.0)
        return [self.anchors[index] for index in indices]
