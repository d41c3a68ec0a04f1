"""What it costs to watch a training run: steps with every local logger and a telemetry handler on
all events, and steps without, in turns within one run of the supervised loop.

    python scripts/bench/overhead.py [--model 0.5b] [--steps 16] [--rows 2] [--json FILE] [--quick]

A step with them ends when all loggers have written what it told them, so that none of their work is
counted to the next one. Beside the wall clock the processor's time of all threads is given, which
others at the same machine change less, and what the watching itself took, measured directly: of two
steps of seconds each the difference says less than that. `WATCHING` is where further ones belong.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from shapes import SHARED, qwen_half_billion
from table import Row, add_arguments, report

from shammah.datasets import open_dataset
from shammah.models.load import load_base_model
from shammah.renderers.registry import renderer_for
from shammah.settings import LoraSettings, ModelSettings, TrainingSettings
from shammah.tracking import telemetry
from shammah.tracking.loggers.base import RunIdentity
from shammah.tracking.loggers.opening import open_loggers
from shammah.training.datums import datum
from shammah.training.examples import supervised
from shammah.training.local_client import LocalTrainingClient
from shammah.training.supervised import train_supervised

OnStep: TypeAlias = Callable[[Mapping[str, Any]], None]
"""Told of a step that is watched; returns when all that follows from it is done."""

EVENTS = ("training.step", "training.progress", "training.epoch", "training.eval")
FIGURES = ("epoch", "loss", "learning_rate", "grad_norm", "learned", "tokens_per_second")
FIRST = 2
"""Steps that are not counted: the first ones also fill caches."""


@contextmanager
def loggers(folder: Path, client: LocalTrainingClient) -> Iterator[OnStep]:
    """The run's own files, the store of all runs, TensorBoard."""
    run = RunIdentity("job-1", "key", folder, folder)
    opened = open_loggers(["tensorboard"], run, tell=print)

    def on_step(progress: Mapping[str, Any]) -> None:
        figures = {name: progress[name] for name in FIGURES if progress[name] is not None}
        opened.log_metrics(figures, progress["step"])
        opened.sync()

    on_step(dict.fromkeys(FIGURES, 0.0) | {"step": 0})  # their clients are opened by now
    try:
        yield on_step
    finally:
        opened.close()


Watching: TypeAlias = Callable[[Path, LocalTrainingClient], AbstractContextManager[OnStep]]
WATCHING: Mapping[str, Watching] = {"loggers": loggers}
"""By name what is opened once for the run and told of each watched step."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--model", default="0.5b", help="a model, or `0.5b` of random weights")
    parser.add_argument("--steps", type=int, default=16, metavar="N")
    parser.add_argument("--rows", type=int, default=2, metavar="N", help="GSM8K rows a step (2)")
    parser.add_argument("--only", nargs="*", choices=list(WATCHING), default=list(WATCHING))
    options = parser.parse_args()
    name = "embedded" if options.quick else options.model
    steps = min(options.steps, 8) if options.quick else options.steps
    base = load_base_model(ModelSettings(name=str(qwen_half_billion()) if name == "0.5b" else name))
    settings = TrainingSettings(
        learning_rate=1e-4, epochs=1, batch_size=options.rows, replay=0, hold=0,
        stop_when_learned=False, max_steps=FIRST + steps,
    )  # fmt: skip
    renderer = renderer_for(base.tokenizer, base.stop_tokens, base.renderer)
    # One row again and again: steps of other lengths could not be compared.
    (row,) = open_dataset(SHARED / "gsm8k" / "train.jsonl").take(1).examples("gsm8k")
    example = supervised(datum(renderer.supervised(row.messages)))
    examples = [example] * ((FIRST + steps) * options.rows)
    client = LocalTrainingClient(base, LoraSettings(), settings)
    walls: dict[bool, list[float]] = {True: [], False: []}
    works: dict[bool, list[float]] = {True: [], False: []}
    own: list[tuple[float, float]] = []
    heard = 0

    def hear(name: str, measurements: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        nonlocal heard
        heard += 1

    with tempfile.TemporaryDirectory() as folder, ExitStack() as open_ones:
        told = [
            open_ones.enter_context(WATCHING[each](Path(folder), client)) for each in options.only
        ]
        since = [time.perf_counter(), time.process_time()]

        def on_event(event: dict[str, Any]) -> None:
            if event["event"] != "progress":
                return
            watched = event["step"] % 2 == 0
            if watched:
                began = time.perf_counter(), time.process_time()
                for each in told:
                    each(event)
                own.append((time.perf_counter() - began[0], time.process_time() - began[1]))
            if event["step"] > FIRST:
                walls[watched].append(time.perf_counter() - since[0])
                works[watched].append(time.process_time() - since[1])
            # The handlers hear of the next step, if that is one that is watched.
            if watched:
                telemetry.detach("bench")
            else:
                telemetry.attach_many("bench", EVENTS, hear)
            since[:] = time.perf_counter(), time.process_time()

        asyncio.run(
            train_supervised(
                client, examples, [1.0] * len(examples), [], settings, on_event=on_event
            )
        )
        telemetry.detach("bench")
    client.close()
    assert heard >= len(walls[True]), "the handler was not told"
    table: list[Row] = [
        {
            "steps": "watched" if watched else "not watched",
            "counted": len(walls[watched]),
            "seconds": round(median(walls[watched]), 4),
            "cpu_seconds": round(median(works[watched]), 4),
        }
        for watched in (False, True)
    ]
    table.append(
        {
            "steps": "the watching alone",
            "counted": len(own),
            "seconds": round(median(each[0] for each in own), 5),
            "cpu_seconds": round(median(each[1] for each in own), 5),
        }
    )
    share = "watching alone, share of a step's processor time"
    report(
        f"Training {base.name}, {options.rows} rows a step; {', '.join(options.only)}, telemetry",
        table,
        {
            share: median(each[1] for each in own) / median(works[False]),
            "processor time, watched vs not": median(works[True]) / median(works[False]),
            "wall clock, watched vs not": median(walls[True]) / median(walls[False]),
        },
        targets={share: "below 0.03"},
        json_file=options.json,
    )


if __name__ == "__main__":
    main()
