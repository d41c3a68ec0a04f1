"""Folders that hold a state of training, of which the last whole one can always be found.

A checkpoint is written into a folder of its own; a small file that names it is replaced only after
it is complete, and older ones are removed only after that. Knows nothing about what is in them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from shammah.errors import TrainingError
from shammah.files import private_folder, write_atomic

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


def finish_checkpoint(target: Path, loop: dict[str, Any]) -> None:
    """Make a folder that the client has written its state into the latest checkpoint.

    Args:
        target: from `begin_checkpoint`.
        loop: JSON values that the loop goes on from.

    Raises:
        StorageError: the disk is full or the folder cannot be written; the latest stays.
    """
    write_atomic(target / LOOP, json.dumps(loop))
    write_atomic(target.parent / LATEST, json.dumps({"name": target.name}))
    for other in target.parent.glob("step_*"):
        if other != target:
            shutil.rmtree(other, ignore_errors=True)


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
