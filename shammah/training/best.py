"""The best adapter of a run, by one figure of its evaluations.

    best.json                        the figure, the step, all figures, and what the adapter is
    best_000120.safetensors          its weights, PEFT key names
    *_best_000120.safetensors        what a client writes beside them, such as a head
    best_000120/                     the whole state, if wanted: training can go back to it

The weights are written under a name of their own, and then the file that names them is replaced: a
process that dies in between leaves the best one before. A run that goes on compares with what it
kept. Knows an adapter and its figures, not how they came about; imports no tensor library.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from shammah.adapters.header import check_file
from shammah.adapters.metadata import AdapterMetadata, LoraConfigRecord
from shammah.adapters.validate import sha256_of
from shammah.errors import TrainingError, UsageError
from shammah.files import private_folder, write_atomic
from shammah.ports.training_client import TrainingClient

BEST = "best.json"


class BestRecord(BaseModel):
    """What was best. `value` is `figures[metric]`, `step` the steps of the run before it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    lower: bool
    value: float
    step: int
    figures: dict[str, float]
    file: str
    state: str = ""
    """The folder beside it with the whole state; empty where only weights were kept."""
    adapter: AdapterMetadata


class BestCheckpoint:
    """Keeps the best adapter in a folder.

    Args:
        folder: where it is kept; goes on from what is there.
        metric: the figure that decides, such as `nll_per_token`.
        lower: whether less of it is better.
        whole: keep the whole state beside the weights, for `restore`.

    Raises:
        UsageError: what is there was chosen by another figure.
        TrainingError: what is there cannot be read.
    """

    def __init__(self, folder: Path, metric: str, *, lower: bool, whole: bool = False) -> None:
        self.folder = private_folder(folder)
        self.metric = metric
        self.lower = lower
        self.whole = whole
        self.kept = best_in(folder)
        """The best so far."""
        if self.kept is not None and (self.kept.metric, self.kept.lower) != (metric, lower):
            raise UsageError(
                f"The best checkpoint in {folder} was chosen by {self.kept.metric}.",
                hint="Go on with that figure, or name another folder.",
            )

    async def offer(
        self, client: TrainingClient, figures: Mapping[str, float], *, step: int | None = None
    ) -> bool:
        """Keep the client's adapter if its figure is better than that of the one kept; of equals
        the earlier stays, and one that is no number is never better.

        Args:
            step: of the run; default the optimiser steps that the client has made.

        Raises:
            UsageError: the figure is not among those given.
            StorageError: the folder cannot be written; the one kept stays.
        """
        if self.metric not in figures:
            raise UsageError(
                f"The evaluation has no figure {self.metric!r} to choose by.",
                hint=f"It has {', '.join(sorted(figures))}.",
            )
        value = float(figures[self.metric])
        if not math.isfinite(value) or not self._better(value):
            return False
        info = await client.info()
        step = info.step if step is None else step
        weights = self.folder / f"best_{step:06d}.safetensors"
        if self.kept is not None and weights.name == self.kept.file:
            weights = weights.with_stem(f"{weights.stem}_again")
        state = weights.with_suffix("")
        await client.save_weights(weights)
        if self.whole:
            shutil.rmtree(state, ignore_errors=True)
            await client.save_state(state)
        header = check_file(weights)
        record = BestRecord(
            metric=self.metric,
            lower=self.lower,
            value=value,
            step=step,
            figures={name: each for name, each in figures.items() if math.isfinite(each)},
            file=weights.name,
            state=state.name if self.whole else "",
            adapter=AdapterMetadata(
                name=weights.stem,
                created_at=datetime.now().astimezone(),
                base_model=info.model,
                base_fingerprint=info.fingerprint,
                lora=LoraConfigRecord(
                    rank=info.rank,
                    alpha=info.alpha,
                    dropout=0.0,
                    target_modules=list(info.target_modules),
                    rslora=info.rslora,
                ),
                sha256=sha256_of(weights),
                tensors=len(header.tensors),
                parameters=header.parameters,
            ),
        )
        write_atomic(self.folder / BEST, record.model_dump_json(indent=1) + "\n")
        self.kept = record
        for other in self.folder.glob("*best_*"):
            if other.is_dir() and (other != state or not self.whole):
                shutil.rmtree(other, ignore_errors=True)
            elif other.suffix == ".safetensors" and not other.name.endswith(weights.name):
                other.unlink(missing_ok=True)
        return True

    async def restore(self, client: TrainingClient) -> BestRecord | None:
        """Bring the client back to the best state; what that is, or None where none was kept.

        Raises:
            TrainingError: only its weights were kept, or the state cannot be read.
        """
        if self.kept is None:
            return None
        if not self.kept.state:
            raise TrainingError(
                f"{self.folder / BEST} keeps weights alone, and training cannot go back to those.",
                hint="Delete the folder to choose the best anew.",
            )
        await client.load_state(self.folder / self.kept.state)
        return self.kept

    def _better(self, value: float) -> bool:
        if self.kept is None:
            return True
        return value < self.kept.value if self.lower else value > self.kept.value


def best_in(folder: Path) -> BestRecord | None:
    """What is kept in a folder, or None.

    Raises:
        TrainingError: it cannot be read.
    """
    try:
        record = BestRecord.model_validate_json((folder / BEST).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise TrainingError(
            f"{folder / BEST} cannot be read.", hint="Delete it to choose the best anew."
        ) from error
    if Path(record.file).name != record.file or not (folder / record.file).is_file():
        raise TrainingError(
            f"{folder / BEST} names {record.file}, which is not beside it.",
            hint="Delete it to choose the best anew.",
        )
    return record
