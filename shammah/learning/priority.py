"""The chat has priority: a sign, seen by every process on the data folder, that an answer streams.

Knows nothing of workers.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from shammah.signs import sign, signs


def streaming_folder(data: Path) -> Path:
    """Where the signs are."""
    return data / "streaming"


def streaming(data: Path) -> AbstractContextManager[None]:
    """While inside, training on this data folder stands still, whichever process runs it.

    Never fails: where the sign cannot be written, the answer only shares the processor.
    """
    return sign(streaming_folder(data))


def somebody_streams(data: Path) -> bool:
    """Whether any process on this data folder is streaming an answer. Costs some 10 microseconds
    where there is none."""
    return any(True for _ in signs(streaming_folder(data)))
