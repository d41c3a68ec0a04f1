"""Where a run of a recipe lies, and which process of it this is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shammah.paths import Paths
from shammah.recipes.manifest import Manifest

WEIGHTS = "adapter.safetensors"


@dataclass(frozen=True, slots=True)
class RunPlace:
    """`folder` holds

        manifest.json        what is needed to make it again
        journal.jsonl        which stages are finished, with what they left
        checkpoints/         of training; `best/` in it
        adapter.safetensors  the result
        metrics.jsonl        every step

    Of several processes that train together one `leads`: it alone writes.
    """

    paths: Paths
    folder: Path
    manifest: Manifest
    leads: bool = True
    begun: bool = False
    """Whether it was begun before, and is gone on with."""

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS
