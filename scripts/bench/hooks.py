"""What looking at gradients costs: the time of optimiser steps with hooks, beside steps without.

On the embedded model, and on a model of the width of Qwen2.5-0.5B with few layers and few words. A
step is the gradients of a batch and the optimiser's step.

python scripts/bench/hooks.py [--json FILE] [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from table import Row, add_arguments, report

from shammah.models.load import load_base_model
from shammah.ports.datum import Datum
from shammah.ports.training_client import AdamParams
from shammah.settings import LoraSettings, ModelSettings, TrainingSettings
from shammah.tracking.telemetry import attached
from shammah.training.datums import from_tokens
from shammah.training.hooks import Hook, look, make_hooks
from shammah.training.local_client import LocalTrainingClient

SETS: dict[str, list[str]] = {
    "norm": ["norm"],
    "distribution": ["distribution"],
    "flow": ["flow"],
    "health": ["health"],
    "all four": ["norm", "distribution", "flow", "health"],
}


def wide(folder: Path, layers: int) -> Path:
    """A random model with the width of Qwen2.5-0.5B."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
    import tiny_models

    return tiny_models.build(
        "qwen2",
        folder,
        dtype="bfloat16",
        hidden_size=896,
        num_hidden_layers=layers,
        num_attention_heads=14,
        num_key_value_heads=2,
        intermediate_size=4864,
    )


def batch(vocabulary: int, rows: int, length: int) -> list[Datum]:
    random = np.random.default_rng(0)
    return [
        from_tokens(
            random.integers(3, vocabulary, length).tolist(),
            [0.0] * (length // 2) + [1.0] * (length - length // 2),
        )
        for _ in range(rows)
    ]


async def measured(
    client: LocalTrainingClient, datums: list[Datum], rounds: int
) -> tuple[float, dict[str, float]]:
    """Milliseconds of a step without hooks, and for each set of hooks what they add: a median over
    rounds in which all take turns, as other processes disturb."""
    hooks: dict[str, list[Hook]] = {name: make_hooks(specs) for name, specs in SETS.items()}
    whole: list[float] = []
    added: dict[str, list[float]] = {name: [] for name in hooks}
    params = AdamParams(learning_rate=1e-4, max_grad_norm=1.0)
    for number in range(rounds * len(hooks) + 2):
        name = list(hooks)[number % len(hooks)]
        client._hooks = []
        began = time.perf_counter()
        await client.forward_backward(datums)
        before = time.perf_counter()
        # The same gradients are looked at aside, so that only the hooks differ.
        look(hooks[name], client._gradients(1.0))
        after = time.perf_counter()
        await client.optim_step(params)
        if number >= 2:
            added[name].append((after - before) * 1e3)
            whole.append((time.perf_counter() - after + before - began) * 1e3)
    return statistics.median(whole), {
        name: statistics.median(times) for name, times in added.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_arguments(parser)
    options = parser.parse_args()
    rounds = 5 if options.quick else 20
    rows: list[Row] = []
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        everywhere = LoraSettings(target_modules="all-linear", layers=1.0)
        broad = str(wide(Path(folder) / "wide", 4))
        for title, name, lora, size in (
            ("embedded, mlp", "embedded", LoraSettings(layers=1.0), (16, 40)),
            ("embedded, all-linear", "embedded", everywhere, (16, 40)),
            ("0.5B wide, mlp", broad, LoraSettings(layers=1.0), (4, 64)),
            ("0.5B wide, all-linear", broad, everywhere, (4, 64)),
        ):
            base = load_base_model(ModelSettings(name=name, device="cpu"))
            client = LocalTrainingClient(base, lora, TrainingSettings())
            vocabulary = base.model.get_input_embeddings().weight.shape[0]
            with attached("bench", ["training.gradients"], lambda *event: None):
                step, added = asyncio.run(measured(client, batch(vocabulary, *size), rounds))
            for hook, milliseconds in added.items():
                share = milliseconds / step
                worst = max(worst, share)
                rows.append(
                    {
                        "model": title,
                        "hooks": hook,
                        "step, ms": step,
                        "hooks, ms": milliseconds,
                        "share": f"{share:.2%}",
                    }
                )
            client.close()
    report(
        "Gradient hooks beside an optimiser step",
        rows,
        {"hooks_share_of_step": worst},
        targets={"hooks_share_of_step": "below 0.03"},
        json_file=options.json,
    )


if __name__ == "__main__":
    main()
