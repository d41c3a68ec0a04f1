"""What it takes to look at runs of which two million values were recorded.

python scripts/bench/runs.py [--json FILE] [--quick] [--values N]
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from table import Row, add_arguments, report

from shammah.backends.sqlite_metrics import SqliteMetrics

METRICS = ("epoch", "loss", "learning_rate", "grad_norm", "learned", "tokens_per_second")
TARGETS = {"show_seconds": "below 1, the start of the program included"}
BATCH = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_arguments(parser)
    parser.add_argument("--values", type=int, help="default: 2,000,000, with --quick 200,000")
    options = parser.parse_args()
    values = options.values or (200_000 if options.quick else 2_000_000)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        recording, one = record(home / "runs.db", values)
        rows: list[Row] = [
            {"what": f"record {values} values, in batches", "seconds": recording},
            {"what": "record the 6 values of one step by themselves, mean", "seconds": one},
        ]
        found: dict[str, float] = {}
        for name, command in {
            "list": ["list"],
            "show": ["show", "job-1"],
            "show_json": ["show", "job-1", "--json"],
            "plot": ["plot", "job-1"],
            "compare": ["compare", "job-1", "job-2"],
        }.items():
            found[name] = spoken(home, command)
            rows.append({"what": f"shammah runs {' '.join(command)}", "seconds": found[name]})
        rows.append({"what": "shammah --version", "seconds": spoken(home, [])})
        megabytes = (home / "runs.db").stat().st_size / 1e6
    rows.append({"what": "size of the file, MB", "seconds": megabytes})
    report(
        "Runs with a long history",
        rows,
        {"show_seconds": found["show"], "plot_seconds": found["plot"]},
        targets=TARGETS,
        json_file=options.json,
    )


def record(path: Path, values: int) -> tuple[float, float]:
    """Two runs of six metrics; seconds for all, and for one step that is recorded by itself."""
    store = SqliteMetrics(path)
    steps = values // len(METRICS) // 2
    began = time.perf_counter()
    for run in ("job-1", "job-2"):
        store.begin(run, {"name": run})
        for start in range(0, steps, BATCH):
            store.record_all(
                (run, step, float(step), dict.fromkeys(METRICS, math.exp(-step / steps)))
                for step in range(start, min(steps, start + BATCH))
            )
        store.end(run)
    whole = time.perf_counter() - began
    began = time.perf_counter()
    for step in range(300):
        store.record(dict.fromkeys(METRICS, 0.5), step=steps + step, run="job-2")
    one = (time.perf_counter() - began) / 300
    store.close()
    return whole, one


def spoken(home: Path, command: list[str]) -> float:
    """Seconds of a command from start to end, the best of three."""
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "SHAMMAH_HOME": str(home), "PYTHONPATH": root}
    whole = ["runs", *command] if command else ["--version"]
    times = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "shammah", *whole],
            check=True,
            stdout=subprocess.DEVNULL,
            env=environment,
        )
        times.append(time.perf_counter() - began)
    return min(times)


if __name__ == "__main__":
    main()
