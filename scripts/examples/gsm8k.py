"""Fine-tune on GSM8K: one recipe, run, and what it changed.

    python scripts/examples/gsm8k.py
    python scripts/examples/gsm8k.py --data gsm8k/train.jsonl --rows 200 --epochs 2

Without `--data` it writes word problems of one step in the form of GSM8K. `--home` keeps the
adapter, for `/adapters load` in the chat.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random

from shammah import (
    Paths,
    SupervisedFineTuning,
    evaluate,
    local_completer,
    open_dataset,
    report,
    scorer,
)

SCORERS = (r"regex:#### -?[\d,.]+\s*$", "numeric")
"""Whether the answer ends as GSM8K's do, and whether its number is right."""

PROBLEMS = (
    ("{name} has {a} {things} and buys {b} more. How many {things} has {name} now?", "+"),
    ("There were {a} {things} on the table, and {name} took {b}. How many are left?", "-"),
)


async def fine_tune(data: Path, rows: int, epochs: int, paths: Paths) -> None:
    held_out = max(1, rows // 5)
    recipe = SupervisedFineTuning(
        data=str(data), format="gsm8k", scope="all", limit=rows, held_out=held_out, epochs=epochs
    )
    result = await recipe.run(paths=paths)

    steps = result.context.state["trained"]["steps"]
    print(f"{rows - held_out} problems learned in {steps} steps, {held_out} held out")
    before, after = (result.metrics[f"{when}/nll_per_token"] for when in ("before", "after"))
    print(f"surprise a token   {before:6.3f} -> {after:.3f}  (nats, on what was held out)")

    # That was of the known answers. Now it answers by itself, problems that it has not seen.
    unseen = list(open_dataset(data).skip(rows).take(held_out).examples("gsm8k"))
    if not unseen:
        raise SystemExit(f"{data} has no problems behind the first {rows}.")
    found = []
    for adapter in (None, result.artifacts["adapter"]):
        async with local_completer(adapter=adapter, max_tokens=160) as model:
            answers = await evaluate(unseen, model, [scorer(each) for each in SCORERS])
            found.append(report(answers).figures())
            example = (await model.complete(unseen[0].prompt)).text
    for name, text in (("regex", "ends with ####"), ("numeric", "number is right")):
        print(
            f"{text:<18} {found[0][name]:6.3f} -> {found[1][name]:.3f}  (of {len(unseen)} unseen)"
        )
    print(f"\n{unseen[0].prompt[-1].text}\n{example}")


def write_problems(path: Path) -> None:
    """Problems of one step in GSM8K's form, no two with the same numbers."""
    random = Random(0)
    kinds = [(*each, a, b) for each in PROBLEMS for a in range(10, 100) for b in range(1, 10)]
    random.shuffle(kinds)
    with path.open("w") as file:
        for question, sign, a, b in kinds:
            name, things = random.choice(["Ada", "Ben"]), random.choice(["apples", "books"])
            result = a + b if sign == "+" else a - b
            answer = f"{a} {sign} {b} = <<{a}{sign}{b}={result}>>{result} {things}.\n#### {result}"
            asked = question.format(name=name, things=things, a=a, b=b)
            file.write(json.dumps({"question": asked, "answer": answer}) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="a file of GSM8K")
    parser.add_argument("--rows", type=int, default=80, help="problems, a fifth of them held out")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--home", type=Path, help="a data folder to keep")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        data = given.data or Path(folder, "problems.jsonl")
        if given.data is None:
            write_problems(data)
        home = given.home or Path(folder, "home")
        asyncio.run(fine_tune(data, given.rows, given.epochs, Paths(home, home)))


if __name__ == "__main__":
    main()
