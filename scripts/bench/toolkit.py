"""Training methods beside TRL's: tokens a second on the same rows, model and adapter.

The model and adapter are those of `train.py`: random weights in the shape of Qwen2.5-0.5B, LoRA on
q_proj and v_proj, rank 16, bf16. Here the whole loop runs (`shammah.training.loops`), with what it
does between steps. Preference training is that of `dpo.py`, drawing groups of samples that of
`sampling_groups.py`, where more is said of how the two are made alike. Each program runs in a
process of its own, one after the other; only real tokens are counted, never padding, and the first
step is not timed. TRL needs `pip install trl datasets`; without it its rows and the ratios are left
out.

    python scripts/bench/toolkit.py [--rows 24] [--quick] [--json FILE] [--only RATIO ...]
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dpo
import sampling_groups
import shapes
import table
import train


@dataclass(frozen=True, slots=True)
class Work:
    """What a program did in the time that counts."""

    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two programs, by name, and how many times as fast the first should be."""

    ours: str
    theirs: str
    least: float


def sft(rows: int) -> Work:
    """Supervised fine-tuning by this project's loop."""
    from shammah.models.load import load_base_model
    from shammah.settings import LoraSettings, ModelSettings, TrainingSettings
    from shammah.training.datums import from_tokens
    from shammah.training.local_client import LocalTrainingClient
    from shammah.training.loops.engine import Callbacks, run_loop
    from shammah.training.loops.settings import LoopSettings
    from shammah.training.loops.supervised import Supervised

    examples = train._examples(rows)
    base = load_base_model(ModelSettings(name=str(shapes.qwen_half_billion()), dtype="bf16"))
    lora = LoraSettings(
        rank=train.RANK, alpha=train.ALPHA, target_modules=train.TARGETS, layers=1.0
    )
    client = LocalTrainingClient(base, lora, TrainingSettings())
    method = Supervised(
        [
            from_tokens(ids, [0.0] * prompt + [1.0] * (len(ids) - prompt), len(ids) - prompt)
            for ids, prompt in [*examples[: train.BATCH], *examples]
        ],
        batch_size=train.BATCH,
    )
    first: dict[str, Any] = {}
    result = asyncio.run(
        run_loop(
            client,
            method,
            LoopSettings(learning_rate=train.LEARNING_RATE),
            callbacks=Callbacks(on_step_end=[lambda step: first.update(first or step)]),
        )
    )
    return Work(
        result.tokens - first["tokens"],
        result.seconds - first["tokens"] / first["tokens_per_second"],
    )


def sft_trl(rows: int) -> Work:
    """TRL's SFTTrainer with its defaults."""
    examples = train._examples(rows)
    return Work(sum(len(ids) for ids, _ in examples), train.trl_seconds(examples))


def preference(seconds: Callable[[list[dpo.Triple]], dpo.Seconds], rows: int) -> Work:
    """Direct preference optimisation, on half as many pairs as there are rows."""
    triples = dpo.triples_of(max(2 * dpo.PAIRS, rows // 2))
    return Work(dpo.tokens_in(triples), seconds(triples)[0])


def sampling(seconds: Callable[[list[list[int]], int, int], float], rows: int) -> Work:
    """Groups of eight samples, of a prompt for each six rows."""
    prompts, group = sampling_groups.questions(max(2, rows // 6)), 8
    length = 64 if rows > 2 * train.BATCH else 16
    return Work(len(prompts) * group * length, seconds(prompts, group, length))


PROGRAMS: dict[str, Callable[[int], Work]] = {
    "sft": sft,
    "sft_trl": sft_trl,
    "dpo": partial(preference, dpo.shammah_seconds),
    "dpo_trl": partial(preference, dpo.trl_seconds),
    "sampling": partial(sampling, sampling_groups.shammah_seconds),
    "sampling_trl": partial(sampling, sampling_groups.trl_seconds),
}
COMPARISONS: dict[str, Comparison] = {
    "sft_vs_trl": Comparison("sft", "sft_trl", 3.0),
    "dpo_vs_trl": Comparison("dpo", "dpo_trl", 2.5),
    "sampling_vs_trl": Comparison("sampling", "sampling_trl", 2.0),
}
"""By the name of the ratio; another method is a pair of programs and a line here."""

MEMORY_OF = "sft_vs_trl"
"""Whose peaks `memory_vs_trl` compares."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    table.add_arguments(parser)
    parser.add_argument("--rows", type=int, default=24, help="rows of data (default 24)")
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    parser.add_argument("--only", nargs="*", choices=list(COMPARISONS), help="some ratios only")
    parser.add_argument("--one", choices=list(PROGRAMS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    rows = min(given.rows, 2 * train.BATCH) if given.quick else given.rows
    if given.one:
        print(json.dumps(_measure(given.one, rows, given.threads)))
        return
    theirs_there = importlib.util.find_spec("trl") is not None
    if not theirs_there:
        print("TRL is not installed: its rows are left out (pip install trl datasets).")
    chosen = {name: COMPARISONS[name] for name in given.only or COMPARISONS}
    shapes.qwen_half_billion()
    found: dict[str, dict[str, Any]] = {}
    for comparison in chosen.values():
        for name in (comparison.ours, comparison.theirs)[: 2 if theirs_there else 1]:
            if name not in found:
                found[name] = train.in_own_process(__file__, name, rows, given.threads)
                print(f"  {name}: {found[name]['tokens/s']:.0f} tokens/s", flush=True)
    ratios: dict[str, float] = {}
    targets: dict[str, str] = {}
    for ratio, comparison in chosen.items():
        if comparison.theirs in found:
            ours, theirs = found[comparison.ours], found[comparison.theirs]
            ratios[ratio] = ours["tokens/s"] / theirs["tokens/s"]
            targets[ratio] = f"at least {comparison.least:g}"
            if ratio == MEMORY_OF:
                ratios["memory_vs_trl"] = ours["peak MiB"] / theirs["peak MiB"]
                targets["memory_vs_trl"] = "at most 0.8"
    lines = [{"program": name, **result} for name, result in found.items()]
    table.report("Training methods", lines, ratios, targets=targets, json_file=given.json)


def _measure(name: str, rows: int, threads: int) -> dict[str, Any]:
    import torch

    if threads:
        torch.set_num_threads(threads)
    work = PROGRAMS[name](rows)
    return {
        "tokens/s": work.tokens / work.seconds,
        "seconds": work.seconds,
        "tokens": work.tokens,
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


if __name__ == "__main__":
    # What TRL and others print must not get between this program and its one line of JSON.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
