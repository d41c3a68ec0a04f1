"""Rows a second of an evaluation with answers decoded one by one and together, in turns.

    python scripts/bench/batched.py [--model embedded] [--rows 64] [--json FILE] [--quick]

Questions are GSM8K's, answers greedy. Beside the time the processor's is given, which others at the
same machine change less; and how many answers are the same to the character, which in bf16 two
tokens that are about equally likely can keep from being all.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from statistics import median

from shapes import SHARED, qwen_half_billion
from table import Row, add_arguments, report

from shammah.datasets import open_dataset
from shammah.evaluation.numeric import Numeric
from shammah.evaluation.rows import EvaluationRow
from shammah.evaluation.runner import evaluate
from shammah.generation.engine import Engine
from shammah.generation.engine_batch import EngineCompleter
from shammah.models.load import load_base_model
from shammah.ports.llm_client import ChatParams
from shammah.renderers.registry import renderer_for
from shammah.settings import ModelSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--model", default="embedded", help="or `0.5b`, of random weights")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rows", type=int, default=64, metavar="N")
    parser.add_argument("--max-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--batches", default="1,8,16,32", metavar="N,N,...")
    options = parser.parse_args()
    count = min(options.rows, 16) if options.quick else options.rows
    rounds = 1 if options.quick else 3
    name = str(qwen_half_billion()) if options.model == "0.5b" else options.model
    base = load_base_model(ModelSettings(name=name, dtype=options.dtype))
    engine = Engine(base, renderer_for(base.tokenizer, base.stop_tokens, base.renderer))
    sizes = [int(each) for each in options.batches.split(",")]
    walls: dict[int, list[float]] = {size: [] for size in sizes}
    works: dict[int, list[float]] = {size: [] for size in sizes}
    said: dict[int, list[str | None]] = {}
    for _ in range(rounds):
        for size in sizes:
            wall, work, said[size] = measured(engine, size, count, options.max_tokens)
            walls[size].append(wall)
            works[size].append(work)
    engine.close()
    first = sizes[0]
    rows: list[Row] = [
        {
            "together": size,
            "rows_per_s": round(count / median(walls[size]), 2),
            "rows_per_cpu_s": round(count / median(works[size]), 2),
            "answers_as_first": sum(
                one == other for one, other in zip(said[first], said[size], strict=True)
            ),
            "rows": count,
        }
        for size in sizes
    ]
    report(
        f"Evaluation of {base.name} ({base.dtype}), answers of at most {options.max_tokens} tokens",
        rows,
        {
            f"rows a second, {size} together vs {first}": median(walls[first]) / median(walls[size])
            for size in sizes[1:]
        },
        json_file=options.json,
    )


def measured(
    engine: Engine, size: int, count: int, max_tokens: int
) -> tuple[float, float, list[str | None]]:
    """Seconds, seconds of the processor, and the answers."""
    data = open_dataset(SHARED / "gsm8k" / "test.jsonl").take(count).examples("gsm8k")
    params = ChatParams(max_tokens=max_tokens)
    completer = EngineCompleter(engine, engine.prepare_aside(None, None), params, rows=size)
    rows: list[EvaluationRow] = []
    began, work = time.perf_counter(), time.process_time()
    asyncio.run(evaluate(data, completer, [Numeric()], on_row=rows.append))
    wall, work = time.perf_counter() - began, time.process_time() - work
    return wall, work, [row.predicted for row in sorted(rows, key=lambda row: row.index)]


if __name__ == "__main__":
    main()
