"""What an event costs, beside a call of an empty function.

python scripts/bench/telemetry.py [--json FILE] [--quick]
"""

from __future__ import annotations

import argparse
import timeit
from collections.abc import Callable, Mapping
from typing import Any

from table import Row, add_arguments, report

from shammah.tracking.telemetry import attached, emit

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
    report(
        "Telemetry, figures of a step in each call",
        rows,
        {
            "emit_vs_empty_call": nobody / call,
            "emit_to_one_vs_empty_call": one / call,
            "microseconds_without_handler": nobody,
        },
        targets=TARGETS,
        json_file=options.json,
    )


if __name__ == "__main__":
    main()
