"""What makes vectors of questions, as `adapters.embedding` says."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from shammah.errors import EmbeddingError

if TYPE_CHECKING:
    from shammah.models.load import BaseModel
    from shammah.ports.embedding_client import EmbeddingClient
    from shammah.renderers.base import Renderer

log = logging.getLogger("shammah")


class Embedders:
    """The embedder that was asked for last: one for all who ask, as it may be a model of its own
    and has a thread."""

    def __init__(self, base: BaseModel, renderer: Renderer) -> None:
        self._base = base
        self._renderer = renderer
        self._found: tuple[str, EmbeddingClient] | None = None
        self._making = asyncio.Lock()

    async def get(self, embedding: str) -> EmbeddingClient:
        """`embedder_of`, made on a thread where it is not there yet."""
        async with self._making:
            if self._found is None or self._found[0] != embedding:
                self._found = None
                made = await asyncio.to_thread(embedder_of, self._base, self._renderer, embedding)
                self._found = (embedding, made)
            return self._found[1]


def embedder_of(base: BaseModel, renderer: Renderer, embedding: str) -> EmbeddingClient:
    """The base model's own hidden states for `base`, or the sentence encoder of that name.

    Raises:
        EmbeddingError: the base model cannot be read in this way.
        ModelError: there is no such encoder, or it cannot be used.
    """
    if embedding != "base":
        from shammah.models.sentence_encoder import SentenceEncoder

        return SentenceEncoder(embedding, device=base.device, threads=base.threads)
    from shammah.generation.embedding import HiddenStateEmbedder

    try:
        return HiddenStateEmbedder(base, renderer)
    except Exception as error:
        log.exception("no embeddings from %s", base.name)
        raise EmbeddingError(
            f"{type(error).__name__}: {error}",
            backend=f"hidden states of {base.name}",
            hint="Set adapters.embedding to a sentence encoder.",
        ) from error
