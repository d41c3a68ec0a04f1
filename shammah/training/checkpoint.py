"""Folders that hold a state of training, of which the last whole one can always be found.

A checkpoint is written into a folder of its own; a small file that names it is replaced only after
it is complete, and older ones are removed only after that. `CheckpointWriter` does so beside
training, in a thread. Knows nothing about what is in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shammah.errors import TrainingError
from shammah.files import private_folder, write_atomic
from shammah.ports.training_client import StateCopy

LATEST = "latest.json"
LOOP = "loop.json"


def begin_checkpoint(folder: Path, step: int) -> Path:
    """An empty folder for the state after a step; nothing refers to it yet.

    Raises:
        StorageError: the folder cannot be written.
    """
    name = f"step_{step:06d}"
    latest = latest_checkpoint(folder)
    if latest is not None and latest.name == name:
        name += "_again"
    target = private_folder(folder) / name
    shutil.rmtree(target, ignore_errors=True)
    return private_folder(target)


def finish_checkpoint(target: Path, loop: Mapping[str, Any], *, keep: int = 1) -> None:
    """Make a folder that the client has written its state into the latest checkpoint.

    Args:
        target: from `begin_checkpoint`.
        loop: JSON values that the loop goes on from.
        keep: how many checkpoints stay, with this one. Those of later steps never do: they are
            what was gone back from.

    Raises:
        StorageError: the disk is full or the folder cannot be written; the latest stays.
    """
    write_atomic(target / LOOP, json.dumps(loop))
    write_atomic(target.parent / LATEST, json.dumps({"name": target.name}))
    earlier = sorted(
        (other for other in _whole(target.parent) if _step(other) < _step(target)), key=_step
    )
    kept = {target, *earlier[len(earlier) - (keep - 1) :]}
    for other in target.parent.glob("step_*"):
        if other not in kept:
            shutil.rmtree(other, ignore_errors=True)


def _whole(folder: Path) -> list[Path]:
    return [found for found in folder.glob("step_*") if (found / LOOP).is_file()]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("_")[1])


def latest_checkpoint(folder: Path) -> Path | None:
    """The folder of the last whole checkpoint, or None if there is none.

    Raises:
        TrainingError: the file that names it is broken.
    """
    try:
        text = (folder / LATEST).read_text()
    except FileNotFoundError:
        return None
    try:
        name = Path(str(json.loads(text)["name"])).name
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{folder / LATEST} is broken.", hint="Delete the folder to start afresh."
        ) from error
    found = folder / name
    return found if (found / LOOP).is_file() else None


def read_loop(checkpoint: Path) -> dict[str, Any]:
    """What `finish_checkpoint` was given as `loop`.

    Raises:
        TrainingError: it cannot be read.
    """
    try:
        loop: dict[str, Any] = json.loads((checkpoint / LOOP).read_text())
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"The checkpoint {checkpoint} cannot be read.", hint="Start the job afresh."
        ) from error
    return loop


def checkpoint_step(folder: Path) -> int:
    """The step that a run with this folder would go on from; 0 if it begins afresh.

    Raises:
        TrainingError: the checkpoint cannot be read.
    """
    found = latest_checkpoint(folder)
    return int(read_loop(found)["step"]) if found else 0


@dataclass(frozen=True, slots=True)
class Written:
    """A checkpoint that is there: `seconds` is what writing it took."""

    folder: Path
    step: int
    seconds: float


class CheckpointWriter:
    """Writes copies of a state while training goes on: one at a time.

    Args:
        keep: how many checkpoints stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep
        self._writing: asyncio.Future[Written] | None = None

    async def begin(self, copy: StateCopy, step: int, loop: Mapping[str, Any]) -> Written | None:
        """Begin to write, once the one before is there; which is returned if it was not yet.

        Raises:
            StorageError: the one before could not be written.
        """
        before = await self.wait()
        running = asyncio.get_running_loop()
        self._writing = running.run_in_executor(None, self._write, copy, step, loop)
        return before

    async def look(self) -> Written | None:
        """What has become complete since the last look, without waiting for it.

        Raises:
            StorageError: it could not be written; the checkpoint before it stays.
        """
        # What the thread has done is told to the event loop by a callback of its own.
        await asyncio.sleep(0)
        return await self.wait() if self._writing is not None and self._writing.done() else None

    async def wait(self) -> Written | None:
        """Wait for the one that is being written, if there is one.

        Raises:
            StorageError: as `look`.
        """
        if self._writing is None:
            return None
        try:
            return await asyncio.shield(self._writing)
        finally:
            if self._writing.done():
                self._writing = None

    async def settle(self) -> None:
        """Wait without an error: there is another one to be told of already."""
        with contextlib.suppress(Exception):
            await self.wait()

    def _write(self, copy: StateCopy, step: int, loop: Mapping[str, Any]) -> Written:
        began = time.perf_counter()
        target = begin_checkpoint(self._folder, step)
        copy.write(target)
        finish_checkpoint(target, loop, keep=self._keep)
        return Written(target, step, time.perf_counter() - began)
