"""Questions as vectors, kept in a folder so that each is made once. Knows texts and vectors."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shammah.errors import ShammahError
from shammah.files import private_folder, write_atomic
from shammah.ports.embedding_client import EmbeddingClient

SUFFIX = ".npy"


class LessonVectors:
    """Vectors of lists of questions.

    Args:
        embedder: what makes them.
        folder: where they are kept, for this purpose alone.
    """

    def __init__(self, embedder: EmbeddingClient, folder: Path) -> None:
        self.embedder = embedder
        self._folder = folder

    async def of(self, questions: Sequence[str]) -> NDArray[np.float32]:
        """One unit vector for each question: float32 [n, d].

        Raises:
            EmbeddingError: they cannot be embedded.
        """
        file = self._file(questions)
        kept = await asyncio.to_thread(_read, file, len(questions))
        if kept is not None:
            return kept
        vectors = await self.embedder.embed(questions)
        # They can always be made again: a full disk is no reason not to answer.
        with suppress(ShammahError):
            await asyncio.to_thread(_write, file, vectors)
        return vectors

    async def keep(self, wanted: Iterable[Sequence[str]]) -> None:
        """Remove this embedder's vectors of all other lists."""
        files = {self._file(questions) for questions in wanted}
        await asyncio.to_thread(self._sweep, files)

    def _file(self, questions: Sequence[str]) -> Path:
        """Named by the embedder and what was embedded, so that it never holds anything else."""
        asked = "\0".join(questions)
        return self._folder / f"{_digest(self.embedder.name)}-{_digest(asked)}{SUFFIX}"

    def _sweep(self, wanted: set[Path]) -> None:
        for file in self._folder.glob(f"{_digest(self.embedder.name)}-*{SUFFIX}"):
            if file not in wanted:
                with suppress(OSError):
                    file.unlink()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _read(file: Path, count: int) -> NDArray[np.float32] | None:
    try:
        vectors = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    sound = vectors.dtype == np.float32 and vectors.ndim == 2 and len(vectors) == count
    return vectors if sound and np.isfinite(vectors).all() else None


def _write(file: Path, vectors: NDArray[np.float32]) -> None:
    private_folder(file.parent)

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            np.save(stream, vectors, allow_pickle=False)

    write_atomic(file, fill)
