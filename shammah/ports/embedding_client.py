"""Texts as vectors: near each other where they mean the same.

Knows no model and no tensor library but numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shammah.errors import EmbeddingError


class EmbeddingClient(Protocol):
    """Something that embeds texts.

    Vectors have unit norm, so that a dot product is a cosine: 1 for the same meaning, about 0 for
    texts that have nothing to do with each other. Those of two clients cannot be compared.
    """

    @property
    def name(self) -> str:
        """What the vectors depend on, in a line: two clients of one name give the same vectors."""
        ...

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One vector for each text, in their order: float32 [n, d], [0, d] for no texts.

        May be awaited several times at once, and beside whatever else the model behind it does.

        Raises:
            EmbeddingError: the backend fails, or gave something that is no direction.
        """
        ...


def unit_rows(vectors: NDArray[np.floating], *, backend: str) -> NDArray[np.float32]:
    """The vectors [n, d] as the port gives them.

    Raises:
        EmbeddingError: one is zero or not finite.
    """
    rows = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    if rows.ndim != 2 or not np.isfinite(norms).all() or not (norms > 0).all():
        raise EmbeddingError("it gave a vector without a direction.", backend=backend)
    return np.asarray(rows / norms, dtype=np.float32)
