"""Runs of a few steps, in each of the processes that a launcher starts: one undisturbed, and one
that is stopped and gone on with.

python several_processes.py MODEL FOLDER

Writes what each found to FOLDER/process_N.json. Imported, it gives the run to a single process.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from shammah.errors import TrainingError
from shammah.models.load import load_base_model
from shammah.ports.datum import Datum, TensorData
from shammah.settings import LoraSettings, ModelSettings, TrainingSettings
from shammah.training.datums import from_tokens
from shammah.training.local_client import LocalTrainingClient
from shammah.training.loops.engine import LoopResult, run_loop
from shammah.training.loops.settings import LoopSettings
from shammah.training.loops.supervised import Supervised
from shammah.training.parallel import ParallelTrainingClient
from shammah.training.processes import Processes

SETTINGS = LoopSettings(
    learning_rate=1e-2, epochs=3, evaluate_every=4, checkpoint_every=3,
    best_metric="nll_per_token", restore_best=True,
)  # fmt: skip


def material() -> list[Datum]:
    """Ten examples of unequal weight: in windows of three, the shares of two are unequal too."""
    random = np.random.default_rng(0)
    rows = [random.integers(0, 250, 12 + 2 * number).tolist() for number in range(10)]
    return [
        from_tokens(row, [0.0] * 6 + [1.0] * (len(row) - 6), float(len(row) - 6)) for row in rows
    ]


def run(client: LocalTrainingClient, folder: Path, stop: int = 0) -> LoopResult:
    asked = iter(range(1000))
    leads = getattr(client, "leads", True)
    method = Supervised(material(), held_out=material()[:3], batch_size=3)
    return asyncio.run(
        run_loop(
            client, method, SETTINGS, folder=folder,
            # Only one of them wishes.
            should_stop=lambda: bool(stop) and next(asked) == stop and leads,
        )
    )  # fmt: skip


def made_of(model: Path, **processes: Any) -> LocalTrainingClient:
    base = load_base_model(ModelSettings(name=str(model), device="cpu", dtype="fp32"))
    kind = ParallelTrainingClient if processes else LocalTrainingClient
    return kind(base, LoraSettings(rank=4), TrainingSettings(), **processes)


def failure(client: LocalTrainingClient) -> list[str]:
    """What is raised where the share of one process alone is wrong."""
    good = material()[0]
    weights = TensorData(np.zeros_like(good.loss_fn_inputs["weights"].data))
    bad = Datum(good.model_input, {**good.loss_fn_inputs, "weights": weights})
    try:
        asyncio.run(client.forward_backward([good, bad]))
    except TrainingError as error:
        return [type(error).__name__, error.message]
    return []


def checksum(client: LocalTrainingClient) -> str:
    mark = hashlib.sha256()
    for parameter in client.lora.named_parameters().values():
        mark.update(parameter.detach().numpy().tobytes())
    return mark.hexdigest()


def main() -> None:
    model, folder = Path(sys.argv[1]), Path(sys.argv[2])
    processes = Processes()
    told: dict[str, Any] = {"count": processes.count}
    for name, where, stop in (("whole", "whole", 0), ("first", "parts", 5), ("rest", "parts", 0)):
        client = made_of(model, processes=processes)
        result = run(client, folder / where, stop)
        told[name] = {
            "losses": result.losses,
            "figures": dict(result.figures),
            "ended": result.ended,
            "weights": checksum(client),
        }
    client = made_of(model, processes=processes)
    told["failure"] = failure(client)
    (folder / f"process_{processes.number}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
