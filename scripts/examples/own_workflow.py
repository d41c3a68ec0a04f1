"""A workflow of one's own: which rank learns a small data set best, and is it worth asking?

    python scripts/examples/own_workflow.py
    python scripts/examples/own_workflow.py --ranks 1 4 16 --steps 40

Stages are functions. A loop trains an adapter of each rank; where the best one is good enough, it
and the base model are asked at the same time. The run is stopped after its first stage and gone on
with, as it would be after a kill.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shammah import (
    Context,
    Paths,
    SupervisedFineTuning,
    Workflow,
    conditional,
    describe,
    evaluate,
    local_completer,
    loop,
    open_dataset,
    parallel,
    report,
    run,
    scorer,
    stage,
    workflow,
)

FAQ = {
    "Where is the printer?": "The printer is on the second floor.",
    "Who orders paper?": "Ines orders paper on Mondays.",
    "What is the guest network called?": "The guest network is called Heron.",
    "When is the office closed?": "The office is closed on Sundays.",
    "Where are the spare keys?": "The spare keys are in the blue box.",
    "Who waters the plants?": "Omar waters the plants.",
}


@stage(gives=("data",))
def write(context: Context) -> None:
    """Write the data set."""
    file = context.backends["paths"].data / "faq.csv"
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([("prompt", "completion"), *FAQ.items()])
    print("The data set is written.")
    context.state["data"] = str(file)


@stage(needs=("data",))
async def train(context: Context) -> None:
    """Train an adapter of the rank of this round."""
    name = f"rank{context.item}"
    recipe = SupervisedFineTuning(
        data=context.state["data"],
        lora={"rank": context.item},
        max_steps=context.config["steps"],
        name=name,
    )
    result = await recipe.run(
        # A round that was interrupted goes on from its own checkpoint.
        paths=context.backends["paths"], run_id=name, resume=True, should_stop=context.stopping
    )  # fmt: skip
    if result.ended == "stopped":
        context.interrupt()
    context.metrics[f"{name}/nll"] = result.metrics["after/nll_per_token"]
    context.artifacts[name] = result.artifacts["adapter"]


@stage(gives=("best",))
def choose(context: Context) -> None:
    """Take the adapter that is least surprised by the answers."""
    best = min(context.metrics, key=lambda name: context.metrics[name])
    context.state["best"] = best.removesuffix("/nll")


def good_enough(context: Context) -> bool:
    return bool(context.metrics[f"{context.state['best']}/nll"] < context.config["good_below"])


async def right_answers(context: Context, adapter: Path | None) -> float:
    examples = open_dataset(context.state["data"]).examples()
    async with local_completer(adapter=adapter, max_tokens=40) as model:
        results = await evaluate(examples, model, [scorer("exact_match")])
    return report(results).figures()["exact_match"]


@stage(needs=("data",))
async def ask_base(context: Context) -> None:
    """Ask the base model every question."""
    context.metrics["base/exact_match"] = await right_answers(context, None)


@stage(needs=("best", "data"))
async def ask_best(context: Context) -> None:
    """Ask the best adapter every question."""
    best = context.state["best"]
    context.metrics[f"{best}/exact_match"] = await right_answers(context, context.artifacts[best])


@stage(needs=("best",), gives=("verdict",))
def give_up(context: Context) -> None:
    """Ask nothing: no adapter is good enough."""
    context.state["verdict"] = f"{context.state['best']} is the best, and not good enough"


def search() -> Workflow:
    return workflow(
        "ranks",
        write,
        loop(train, over="ranks"),
        choose,
        conditional(good_enough, then=[parallel(ask_base, ask_best)], otherwise=[give_up]),
    )


async def search_twice(paths: Paths, config: dict[str, Any]) -> None:
    """Stop after the first stage, and go on: what was finished is not done again."""
    print(describe(search()), "\n")
    written = (paths.data / "faq.csv").exists
    for should_stop in (written, None):
        result = await run(
            search(),
            config,
            backends={"paths": paths},
            folder=paths.data / "search",
            resume=True,
            should_stop=should_stop,
        )
        print(f"{result.ended}: {', '.join(path for path, _ in result.stages)}")
    print()
    for name, value in result.metrics.items():
        print(f"{name:<20}{value:6.3f}")
    if "verdict" in result.context.state:
        print(result.context.state["verdict"])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=8, help="of each training")
    parser.add_argument("--good-below", type=float, default=0.5, metavar="NATS")
    parser.add_argument("--home", type=Path, help="a data folder to keep")
    given = parser.parse_args(arguments)
    config = {"ranks": given.ranks, "steps": given.steps, "good_below": given.good_below}
    with tempfile.TemporaryDirectory() as folder:
        home = given.home or Path(folder)
        asyncio.run(search_twice(Paths(home, home).ensure(), config))


if __name__ == "__main__":
    main()
