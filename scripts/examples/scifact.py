"""SciFact with a composite loss: evaluate, fine-tune, evaluate, and decide by targets.

    python scripts/examples/scifact.py
    python scripts/examples/scifact.py --data scifact/ --rows 100

The answer to a claim is its label and the graph behind it: which documents, and whether they
support or refute. The recipe's own workflow stands between two evaluations; what comes after
depends on the second one. Without `--data` it writes claims about invented studies in the form of
SciFact. Needs the extra `eval`.
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
    Context,
    Paths,
    SupervisedFineTuning,
    Workflow,
    conditional,
    describe,
    evaluate,
    local_completer,
    report,
    scorer,
    stage,
    validate_quality,
    workflow,
)

LOSS = "0.55 cross_entropy, 0.1 topological, 0.15 chirality, 0.2 citation_validity"
SCORERS = ("label:SUPPORT,CONTRADICT,NOT_ENOUGH_INFO", "claim_format", "citation_validity")
TARGETS: dict[str, float | str] = {
    "schema_compliance": 0.75,
    "citation_accuracy": 0.5,
    "error_rate": "<= 0.01",
}
SHOWN = (*(each.partition(":")[0] for each in SCORERS), "citation_validity.accurate", "error_rate")


class CheckedFineTuning(SupervisedFineTuning):
    """Fine-tuning whose adapter answers in the chat only where it meets its targets."""

    def workflow(self) -> Workflow:
        """The recipe's stages, and what is done before and after them."""
        decide = conditional(meets_targets, then=[take_it], otherwise=[leave_it])
        return workflow("checked", look_before, super().workflow(), look_after, decide)


async def scored(context: Context, adapter: Path | None) -> dict[str, float]:
    """Figures of a model's answers to what the recipe holds out."""
    recipe, material = context.config, context.backends["material"]
    async with local_completer(recipe.model_settings(), adapter=adapter, max_tokens=120) as model:
        scorers = [scorer(each) for each in SCORERS]
        return report(await evaluate(material.held_out, model, scorers)).figures()


@stage(gives=("before",))
async def look_before(context: Context) -> None:
    """Score the base model."""
    context.state["before"] = await scored(context, None)


@stage(needs=("adapter",), gives=("after", "verdict"))
async def look_after(context: Context) -> None:
    """Score the adapter, and hold it against the targets."""
    context.state["after"] = await scored(context, context.artifacts["adapter"])
    context.state["verdict"] = validate_quality(context.state["after"], TARGETS).summary


def meets_targets(context: Context) -> bool:
    return validate_quality(context.state["after"], TARGETS).passed


@stage(needs=("adapter", "trained"))
def take_it(context: Context) -> None:
    """Answer with it in the chat."""
    fingerprint = context.state["trained"]["base_fingerprint"]
    context.backends["library"].activate(fingerprint, context.state["adapter"])


@stage(needs=("adapter",))
def leave_it(context: Context) -> None:
    """Keep it in the library, for whoever wants to look at it."""


async def fine_tune(folder: Path, rows: int, epochs: int, paths: Paths) -> None:
    recipe = CheckedFineTuning(
        data=str(folder / "claims_train.jsonl"),
        held_out=str(folder / "claims_dev.jsonl"),
        limit=rows,
        format="scifact",
        format_options={"answer": "claims"},
        scope="all",  # a new task, not a few questions
        loss=LOSS,
        epochs=epochs,
        hooks=("norm", "health"),
    )
    print(describe(recipe.workflow()), "\n")
    result = await recipe.run(paths=paths)

    state = result.context.state
    print(f"{state['data']['examples']} claims learned, {state['data']['held_out']} held out")
    for name in SHOWN:
        print(f"{name:<28}{state['before'][name]:6.3f} -> {state['after'][name]:.3f}")
    print("\nparts of the loss, on what was held out")
    for name in ("cross_entropy", "topological", "chirality", "citation_validity"):
        before, after = (result.metrics[f"{when}/{name}"] for when in ("before", "after"))
        print(f"{name:<28}{before:6.3f} -> {after:.3f}")
    metrics = paths.runs / result.context.metadata.run_id / "metrics.jsonl"
    log = [json.loads(line) for line in metrics.read_text().splitlines()]
    norms = [line["gradients/norm"] for line in log if "gradients/norm" in line]
    print(f"{'norm of the gradients':<28}{norms[0]:6.3f} -> {norms[-1]:.3f}")
    print(f"\n{state['verdict']}; done: {result.stages[-1][0]}")


THINGS = ("Garlic", "Green tea", "Copper", "Walking", "Honey", "Ginger", "Iron", "Yoga")
EFFECTS = ("blood pressure", "headache", "sleep", "memory", "appetite", "pulse")


def write_studies(folder: Path) -> None:
    """Abstracts of studies that nobody made, and claims that they support, contradict, or neither:
    those are about something else."""
    random = Random(0)
    claims, abstracts = [], []
    pairs = [(thing, effect) for thing in THINGS for effect in EFFECTS]
    random.shuffle(pairs)
    for number, (thing, effect) in enumerate(pairs):
        document = 100 + number
        verb, opposite = random.sample(["increases", "reduces"], 2)
        found = f"{thing} {verb} {effect}."
        abstract = [f"We studied {random.randint(20, 90)} adults.", found]
        abstracts.append({"doc_id": document, "title": f"{thing} and {effect}",
                          "abstract": abstract})  # fmt: skip
        label = ("SUPPORT", "CONTRADICT", "NOT_ENOUGH_INFO")[number % 3]
        claim = found.replace(verb, opposite) if label == "CONTRADICT" else found
        if label == "NOT_ENOUGH_INFO":
            claim = claim.replace(effect, "the risk of falling")
        told = {} if label == "NOT_ENOUGH_INFO" else {
            str(document): [{"sentences": [1], "label": label}]
        }  # fmt: skip
        claims.append({"id": number, "claim": claim, "evidence": told,
                       "cited_doc_ids": [document]})  # fmt: skip
    for name, lines in (
        ("corpus", abstracts), ("claims_train", claims[:36]), ("claims_dev", claims[36:])
    ):  # fmt: skip
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="a folder with SciFact's files")
    parser.add_argument("--rows", type=int, default=36, help="claims to learn, and to evaluate on")
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--home", type=Path, help="a data folder to keep")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        if given.data is None:
            write_studies(Path(folder))
        home = given.home or Path(folder, "home")
        data = given.data or Path(folder)
        asyncio.run(fine_tune(data, given.rows, given.epochs, Paths(home, home)))


if __name__ == "__main__":
    main()
