"""What is needed to make a run again: `manifest.json` in its folder.

run_id, recipe, workflow, started_at
config         everything the recipe was configured with, and the settings of the loop as chosen
versions       of this program, Python and what computes; the machine
seeds          of the order and of drawing
model, data    fingerprint and digest, counts
first_samples  the first examples as the model was given them
first_batch    what the first step was computed from: tokens, targets and weights
checkpoints    each that was written, with its step
"""

from __future__ import annotations

import json
import platform
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shammah.errors import InputError, StorageError
from shammah.files import write_atomic
from shammah.learning.record import versions
from shammah.ports.datum import Datum

MANIFEST = "manifest.json"


class Manifest:
    """That of one run. Each change is on disk when a method returns.

    Args:
        folder: of the run; None writes nothing, for processes that do not lead.
    """

    def __init__(self, folder: Path | None) -> None:
        self._file = None if folder is None else folder / MANIFEST
        # Checkpoints are told of while stages write.
        self._lock = threading.Lock()
        self._parts: dict[str, Any] = {}
        if self._file is not None and self._file.exists():
            self._parts = read(self._file.parent)

    @property
    def parts(self) -> Mapping[str, Any]:
        """All of it so far."""
        return self._parts

    def update(self, **parts: Any) -> None:
        """Set parts of it.

        Raises:
            StorageError: it cannot be written.
        """
        with self._lock:
            self._parts.update(parts)
            self._write()

    def checkpoint(self, step: int, folder: str) -> None:
        """Note one that was written."""
        with self._lock:
            known: list[dict[str, Any]] = self._parts.setdefault("checkpoints", [])
            known.append({"step": step, "folder": folder})
            self._write()

    def first_batch(self, datums: Sequence[Datum]) -> None:
        """Note the first batch; later ones are passed over."""
        if "first_batch" not in self._parts:
            self.update(first_batch=[_written(datum) for datum in datums])

    def _write(self) -> None:
        if self._file is not None:
            write_atomic(self._file, json.dumps(self._parts, indent=1, ensure_ascii=False))


def machine() -> dict[str, Any]:
    """The versions of what computes, and where."""
    return {**versions(), "platform": platform.platform()}


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a run's folder.

    Raises:
        InputError: there is none, or it is damaged.
        StorageError: it cannot be read.
    """
    try:
        found = json.loads((folder / MANIFEST).read_text("utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"There is no run {folder.name}.", hint="`shammah runs` lists those there are."
        ) from error
    except OSError as error:
        raise StorageError(f"{folder / MANIFEST} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{folder / MANIFEST} is damaged: {error}.") from error
    if not isinstance(found, dict):
        raise InputError(f"{folder / MANIFEST} is damaged: it holds no object.")
    return found


def _written(datum: Datum) -> dict[str, Any]:
    inputs = {
        name: tensor.data.tolist()
        for name, tensor in datum.loss_fn_inputs.items()
        # Distributions and the like are many numbers a token; they follow from the rest.
        if tensor.data.ndim == 1
    }
    return {"tokens": list(datum.model_input.tokens), **inputs}
