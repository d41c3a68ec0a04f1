"""100,000 rows through the evaluation runner with a completer that costs nothing: killed twice,
resumed, each row there once, memory flat.

    python scripts/bench/evaluation.py [--rows 100000] [--json evaluation.json] [--quick]

The rows are made up and so are the answers; what is measured is the runner, its file and its
figures. The program that runs is `tests/evaluation_stub.py`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from table import Row, add_arguments, report

from shammah.evaluation.run_folder import rows_of

PROGRAM = Path(__file__).parents[2] / "tests" / "evaluation_stub.py"
KILLED_AT = (0.25, 0.7)
"""Shares of the rows after which the run is killed."""
ROW_BYTES = 250


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--rows", type=int, default=100_000, metavar="N")
    options = parser.parse_args()
    count = min(options.rows, 5_000) if options.quick else options.rows
    with tempfile.TemporaryDirectory() as folder:
        rows = [measured(Path(folder) / "run", count)]
    figures = {
        "rows there other than once": rows[0]["wrong"],
        "memory grown, MB": rows[0]["grown_mb"],
    }
    targets = dict(zip(figures, ("0", "under 20"), strict=True))
    report("Evaluation runner", rows, figures, targets=targets, json_file=options.json)


def measured(folder: Path, count: int) -> Row:
    """Run, kill, resume; how long all took together and by how much memory grew."""
    began = time.perf_counter()
    file = folder / "rows.jsonl"
    for share in KILLED_AT:
        process = start(folder, count)
        while process.poll() is None and not (
            file.exists() and file.stat().st_size > share * count * ROW_BYTES
        ):
            time.sleep(0.01)
        process.kill()
        process.wait()
    resumed = time.perf_counter()
    said, _ = start(folder, count).communicate()
    ended = time.perf_counter()
    told = json.loads(said)
    times = Counter(row.index for row in rows_of(folder))
    return {
        "rows": count,
        "wrong": sum(times[number] != 1 for number in range(count)) + len(times) - count,
        "resumed": told["resumed"],
        "seconds": round(ended - began, 1),
        "last_part_seconds": round(ended - resumed, 1),
        "grown_mb": told["grown_mb"],
        "file_mb": round(file.stat().st_size / 1e6, 1),
    }


def start(folder: Path, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(folder), str(count)], stdout=subprocess.PIPE, text=True
    )


if __name__ == "__main__":
    main()
