"""Data: rows/s and peak memory while streaming files, beside `datasets`' own streaming.

    python scripts/bench/data.py [--json FILE] [--megabytes 10 100 1000] [--repeat N]

Each pass is a process of its own, so that its peak is its own; passes of the two take turns. What a
process holds before the first row (Python, imports) is counted in its peak and shown apart.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from table import Row, add_arguments, report

MB = 10**6
SIZES = (10, 100, 1000)
TARGETS = {"rows_per_second_vs_datasets": "at least 1", "peak_memory_vs_datasets": "at most 1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_arguments(parser)
    parser.add_argument("--megabytes", type=int, nargs="+", metavar="N", help=f"default: {SIZES}")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="passes of each (3)")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--pass", nargs=2, dest="one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one_pass(*options.one)
        return
    rows: list[Row] = []
    ratios: dict[str, float] = {}
    for part in options.parts:
        more_rows, more_ratios = PARTS[part](options)
        rows += more_rows
        ratios |= more_ratios
    targets = {
        name: words for name in ratios for key, words in TARGETS.items() if name.startswith(key)
    }
    report("Data", rows, ratios, targets=targets, json_file=options.json)


# --- streaming


def streaming(options: argparse.Namespace) -> tuple[list[Row], dict[str, float]]:
    """Every row of a JSONL file as a dictionary, once."""
    rows: list[Row] = []
    ratios: dict[str, float] = {}
    sizes = options.megabytes or (SIZES[:1] if options.quick else SIZES)
    with tempfile.TemporaryDirectory() as place:
        for megabytes in sizes:
            path = Path(place) / "rows.jsonl"
            written = write_rows(path, megabytes * MB)
            found: dict[str, list[dict[str, float]]] = {name: [] for name in READERS}
            for _, name in itertools.product(range(options.repeat), READERS):
                found[name].append(in_a_process(name, path))
                assert found[name][-1]["rows"] == written
            for name, passes in found.items():
                rows.append(
                    {
                        "what": f"streaming {megabytes} MB, {name}",
                        "rows": written,
                        "rows/s": median(passes, "rows_per_second"),
                        "first row s": median(passes, "first"),
                        "whole s": median(passes, "whole"),
                        "CPU s": median(passes, "cpu"),
                        "before MB": median(passes, "before") / MB,
                        "peak MB": median(passes, "peak") / MB,
                        "grown MB": (median(passes, "peak") - median(passes, "before")) / MB,
                    }
                )
            ours, theirs = found["shammah"], found["datasets"]
            for figure, key in (("rows_per_second", "rows_per_second"), ("peak_memory", "peak")):
                ratios[f"{figure}_vs_datasets_{megabytes}_MB"] = median(ours, key) / median(
                    theirs, key
                )
            path.unlink()
    return rows, ratios


def write_rows(path: Path, size: int) -> int:
    """Write rows of a chat's kind (id, question, answer, tags; about 900 bytes); their number."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9)))
             for _ in range(2000)]  # fmt: skip
    texts = [" ".join(draw.choices(words, k=draw.randint(15, 110))) for _ in range(500)]
    texts[::10] = [text.replace("a", "ä") + ' "quoted"\n' for text in texts[::10]]
    written = 0
    with path.open("w", encoding="utf-8") as stream:
        for number in itertools.count(1):
            written += stream.write(
                json.dumps(
                    {
                        "id": number,
                        "question": draw.choice(texts),
                        "answer": draw.choice(texts),
                        "tags": draw.choices(words, k=3),
                    },
                    ensure_ascii=False,
                )
                + "\n"
            )
            if written >= size:
                return number
    raise AssertionError


def in_a_process(reader: str, path: Path) -> dict[str, float]:
    """What `one_pass` says, from a process of its own, with an empty cache and no network."""
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [sys.executable, __file__, "--pass", reader, str(path)],
            env={**os.environ, "HF_HOME": cache, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"{reader} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def one_pass(reader: str, path: str) -> None:
    """Go through a file once and print what it took. The rate is over all rows after the first, so
    that it has nothing of opening in it (nor of the first block, which `datasets` parses before it
    gives a row); `first`, `whole` and `cpu` (all threads) are seconds from opening
    on, imports aside."""
    opened = READERS[reader]()
    before = peak()
    cpu = time.process_time()
    started = time.perf_counter()
    rows = iter(opened(path))
    next(rows)
    first = time.perf_counter()
    count = 1 + sum(1 for _ in rows)
    took = time.perf_counter() - first
    print(
        json.dumps(
            {
                "rows": count,
                "rows_per_second": (count - 1) / took,
                "first": first - started,
                "cpu": time.process_time() - cpu,
                "whole": first - started + took,
                "before": before,
                "peak": peak(),
            }
        )
    )


def shammah_reader() -> Callable[[str], Iterable[Any]]:
    from shammah.datasets import open_dataset

    return open_dataset


def datasets_reader() -> Callable[[str], Iterable[Any]]:
    import datasets

    datasets.disable_progress_bars()

    def rows(path: str) -> Iterator[Any]:
        return iter(datasets.load_dataset("json", data_files=path, split="train", streaming=True))

    return rows


READERS: Mapping[str, Callable[[], Callable[[str], Iterable[Any]]]] = {
    "shammah": shammah_reader,
    "datasets": datasets_reader,
}


def peak() -> int:
    """The most memory that this process has held so far, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def median(passes: Sequence[Mapping[str, float]], key: str) -> float:
    return statistics.median(each[key] for each in passes)


PARTS: Mapping[str, Callable[[argparse.Namespace], tuple[list[Row], dict[str, float]]]] = {
    "streaming": streaming,
}
"""What is measured, by name; each gives rows for the table and ratios."""


if __name__ == "__main__":
    main()
