"""Scores an answer by how near its meaning is to the target's. Knows no model, only vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shammah.errors import UsageError
from shammah.evaluation.scorer import Score, wanted
from shammah.ports.embedding_client import EmbeddingClient


class SemanticSimilarity:
    """The cosine between output and target; negative ones count as 0, an output without a word
    too.

    Args:
        embedder: what gives the vectors.
        threshold: where given, the value is 1 for a cosine of at least this, and else 0.

    Raises:
        UsageError: the threshold is not in [0, 1].
    """

    name = "semantic_similarity"

    def __init__(self, embedder: EmbeddingClient, *, threshold: float | None = None) -> None:
        if threshold is not None and not 0.0 <= threshold <= 1.0:
            raise UsageError(f"The threshold of {self.name} cannot be {threshold}; it is a cosine.")
        self._embedder = embedder
        self._threshold = threshold

    async def score(self, output: str, target: str, metadata: Mapping[str, Any]) -> Score:
        """Raises what a scorer does; EmbeddingError where the texts cannot be embedded."""
        wanted(target, self.name)
        if not output.strip():
            return Score(0.0, {"cosine": None, "embedder": self._embedder.name})
        one, other = await self._embedder.embed([output, target])
        cosine = float(one @ other)
        value = max(0.0, cosine) if self._threshold is None else float(cosine >= self._threshold)
        return Score(min(1.0, value), {"cosine": cosine, "embedder": self._embedder.name})
