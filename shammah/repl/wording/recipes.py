"""What is said about runs of recipes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shammah.repl.text import counted, duration, harmless, pairs, styled, table

if TYPE_CHECKING:
    from shammah.recipes.preview import Preview
    from shammah.recipes.recipe import Recipe
    from shammah.recipes.workflows.running import Result

SAMPLE = 600
"""Characters of the first sample that are shown."""


NOTHING_BETTER = "how it was before the first step: nothing got better"


def record(recipe: Recipe, result: Result) -> dict[str, Any]:
    """A finished run as JSON."""
    context = result.context
    return {
        "run": context.metadata.run_id,
        "recipe": recipe.kind,
        "adapter": context.state.get("adapter"),
        "metrics": dict(context.metrics),
        "artifacts": {name: str(path) for name, path in context.artifacts.items()},
        "trained": context.state.get("trained"),
        "data": context.state.get("data"),
        "seconds": result.duration,
    }


def summary(recipe: Recipe, result: Result, *, coloured: bool) -> str:
    """A finished run: what was trained, on what, how it did, and what can be done with it."""
    context = result.context
    trained, data = context.state.get("trained") or {}, context.state.get("data") or {}
    adapter = context.state.get("adapter")
    rows: list[tuple[str, object]] = [("run", context.metadata.run_id)]
    if adapter:
        rows.append(("adapter", adapter))
    if feedback := context.state.get("feedback"):
        rows.append(("feedback", counted(feedback["lines"], "line")))
    if data:
        learned = counted(data["examples"], "example")
        rows.append(("data", f"{learned}, {data['held_out']:,} held out ({data['format']})"))
        for missing, count in data.get("lacking", {}).items():
            rows.append(("passed over", f"{counted(count, 'example')} without {missing}"))
        if data["bad_rows"]:
            rows.append(("passed over", counted(data["bad_rows"], "bad row")))
        if data.get("unanswered"):
            rows.append(("unanswered", counted(data["unanswered"], "question")))
    if trained:
        rows += [
            ("trained", f"{counted(trained['steps'], 'step')}, {trained['tokens']:,} tokens"),
            ("parameters", f"{trained['parameters']:,} of {trained['base_model']}"),
        ]
        if trained["ended"] != "done":
            rows.append(("ended early", trained["ended"]))
        if trained["best_step"] is not None:
            best = f"step {trained['best_step']:,}, the best"
            rows.append(("kept", best if trained["best_step"] else NOTHING_BETTER))
    rows.append(("took", duration(result.duration)))
    title = f"✓ {adapter or context.metadata.run_id} is trained"
    lines = [styled(title, "bold green", coloured=coloured), ""]
    lines.append(pairs(rows, coloured=coloured))
    figures = _figures(context.metrics)
    if figures:
        judged = "on what was held out" if data.get("held_out") else "on what was learned"
        lines += ["", table([judged, "before", "after"], figures, coloured=coloured, right=(1, 2))]
    rounds = _rounds(context.metrics)
    if rounds:
        head = ["round", "lessons held", "other answers unchanged", "checks"]
        lines += ["", table(head, rounds, coloured=coloured, right=(1, 2))]
    if adapter:
        lines += ["", f"In the chat: /adapters load {adapter}"]
    elif recipe.kind == "reward":
        run = context.metadata.run_id
        lines += ["", f"To train for it: shammah train rl --reward {run} --data ..."]
    return "\n".join(lines)


def preview(planned: Preview, *, coloured: bool) -> str:
    """What a run would do."""
    steps = "known when it has begun" if planned.steps is None else f"{planned.steps:,}"
    facts = pairs(
        [
            ("model", planned.model),
            ("renderer", planned.renderer),
            ("format", planned.format),
            ("examples", f"{planned.examples:,}, {planned.held_out:,} held out"),
            *(
                ("passed over", f"{counted(count, 'example')} without {missing}")
                for missing, count in planned.lacking.items()
            ),
            ("bad rows", f"{planned.bad_rows:,}"),
            ("parameters", f"{planned.parameters:,} to be trained"),
            ("learning rate", f"{planned.learning_rate:.3g}"),
            ("steps", steps),
        ],
        coloured=coloured,
    )
    text = harmless(str(planned.first_sample["text"]))
    shown = text if len(text) <= SAMPLE else f"{text[:SAMPLE]}…"
    head = styled("The first example; what is learned stands in ⟦ ⟧:", "bold", coloured=coloured)
    return "\n".join([planned.workflow, "", facts, "", head, shown])


def _figures(metrics: Any) -> list[list[str]]:
    names = [name.removeprefix("after/") for name in metrics if name.startswith("after/")]
    return [
        [name, _number(metrics.get(f"before/{name}")), _number(metrics[f"after/{name}"])]
        for name in names
    ]


def _rounds(metrics: Mapping[str, float]) -> list[list[str]]:
    """Of feedback that was learned in rounds, what each came to."""
    rows = []
    number = 1
    while (held := metrics.get(f"round {number}/as_taught")) is not None:
        unchanged = metrics.get(f"round {number}/unchanged")
        rows.append(
            [
                str(number),
                f"{held:.0%}",
                "" if unchanged is None else f"{unchanged:.0%}",
                "failed" if metrics.get(f"round {number}/refused") else "passed",
            ]
        )
        number += 1
    return rows


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4g}"
