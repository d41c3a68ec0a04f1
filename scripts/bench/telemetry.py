"""What an event costs, beside a call of an empty function; what a trace costs, and logging a step.

python scripts/bench/telemetry.py [--json FILE] [--quick]
"""

from __future__ import annotations

import argparse
import tempfile
import time
import timeit
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from table import Row, add_arguments, report

from shammah.tracking.loggers.base import RunIdentity
from shammah.tracking.loggers.opening import open_loggers
from shammah.tracking.telemetry import attached, emit
from shammah.tracking.trace import timed, tracing

TARGETS = {
    "microseconds_without_handler": "below 2",
    "emit_vs_empty_call": "a dictionary look-up more",
}


def empty(name: str, measurements: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """What a call costs at the least."""


def with_figures(call: Callable[..., object]) -> Callable[[], None]:
    """A call as the training loop makes it: with the figures of a step in a new dictionary."""

    def one() -> None:
        call(
            "training.step",
            {"step": 3, "loss": 0.5, "learning_rate": 1e-4, "tokens_per_second": 900.0},
            {"run": "job-1"},
        )

    return one


def microseconds(call: Callable[[], object], number: int) -> float:
    """The best of five repetitions, for one call."""
    return min(timeit.repeat(call, number=number, repeat=5)) / number * 1e6


def logged(steps: int) -> tuple[float, float]:
    """Microseconds that the training loop waits for its loggers in a step, and that all their
    threads compute for it."""
    figures = dict.fromkeys(
        ("epoch", "loss", "learning_rate", "grad_norm", "learned", "tokens_per_second"), 0.5
    )
    waited = 0.0
    with tempfile.TemporaryDirectory() as folder:
        run = RunIdentity("job-1", "key", Path(folder), Path(folder))
        loggers = open_loggers(["tensorboard"], run, tell=print)
        loggers.log_metrics(figures, 0)
        loggers.sync()
        began = time.process_time()
        for step in range(1, steps + 1):
            before = time.perf_counter()
            loggers.log_metrics(figures, step)
            waited += time.perf_counter() - before
        loggers.sync()
        worked = time.process_time() - began
        loggers.close()
    return waited / steps * 1e6, worked / steps * 1e6


def step_timed() -> None:
    """What the training loop times in a step of one pack."""
    with timed("step", step=3):
        with timed("data"), timed("data"):
            pass
        with timed("forward", tokens=512):
            pass
        with timed("backward"):
            pass
        with timed("optimiser"):
            pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_arguments(parser)
    options = parser.parse_args()
    number = 20_000 if options.quick else 200_000
    call = microseconds(with_figures(empty), number)
    nobody = microseconds(with_figures(emit), number)
    with attached("bench", ["training.step"], empty):
        one = microseconds(with_figures(emit), number)
    rows: list[Row] = [
        {"what": "call of an empty function", "microseconds": call},
        {"what": "emit, nobody listens", "microseconds": nobody},
        {"what": "emit, one handler", "microseconds": one},
    ]
    off = microseconds(step_timed, number)
    with tempfile.TemporaryDirectory() as folder, tracing(Path(folder) / "trace.json"):
        on = microseconds(step_timed, number // 20)
    rows.append({"what": "the six slices of a step, no trace", "microseconds": off})
    rows.append({"what": "the six slices of a step, written", "microseconds": on})
    waited, worked = logged(50 if options.quick else 500)
    rows.append({"what": "log a step (files, store, TensorBoard), waited", "microseconds": waited})
    rows.append({"what": "the same, processor time in all threads", "microseconds": worked})
    report(
        "Telemetry, figures of a step in each call",
        rows,
        {
            "emit_vs_empty_call": nobody / call,
            "emit_to_one_vs_empty_call": one / call,
            "microseconds_without_handler": nobody,
            "microseconds_of_a_step_without_trace": off,
            "microseconds_of_a_step_with_trace": on,
            "milliseconds_to_log_a_step": worked / 1000,
        },
        targets=TARGETS,
        json_file=options.json,
    )


if __name__ == "__main__":
    main()
