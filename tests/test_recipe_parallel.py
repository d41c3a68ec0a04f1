"""Several recipes in one process at the same time: each as if it were alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from shammah import Context, Paths, SupervisedFineTuning, parallel, run, stage, workflow
from shammah.adapters.validate import sha256_of
from shammah.errors import UsageError, WorkflowError
from shammah.recipes.workflows.stage import FunctionStage


async def test_a_run_is_gone_on_with_only_if_there_is_one(tmp_path: Path) -> None:
    data = faq(tmp_path)
    paths = Paths(tmp_path / "home", tmp_path / "home")
    with pytest.raises(UsageError, match="not said which run"):
        await recipe(data, 0).run(paths=paths, resume=True)
    steps = iter([False, False, False, True])
    stopped = await recipe(data, 0).run(
        paths=paths, run_id="a", resume=True, should_stop=lambda: next(steps, True)
    )
    assert stopped.ended == "stopped"
    manifest = json.loads((paths.runs / "a" / "manifest.json").read_text())
    assert manifest["run_id"] == "a" and manifest["config"]["seed"] == 0
    ended = await recipe(data, 0).run(paths=paths, run_id="a", resume=True)
    alone = await recipe(data, 0).run(paths=Paths(tmp_path / "b", tmp_path / "b"))
    assert ended.ended == "done"
    first, second = (sha256_of(each.artifacts["weights"]) for each in (ended, alone))
    assert first == second


async def test_runs_that_begin_in_one_second_have_names_of_their_own(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "home", tmp_path / "home")
    data = faq(tmp_path)
    data.write_text(data.read_text() + "a row of one cell\n")
    bad = recipe(data, 0)
    for _ in range(3):
        with pytest.raises(WorkflowError, match="1 cells"):
            await bad.run(paths=paths)
    assert len(list(paths.runs.iterdir())) == 3


def faq(folder: Path) -> Path:
    """A small data set."""
    data = folder / "faq.csv"
    with data.open("w", newline="") as stream:
        rows = [(f"Where is room {n}?", f"Room {n} is on floor {n}.") for n in range(6)]
        csv.writer(stream).writerows([("prompt", "completion"), *rows])
    return data


def recipe(data: Path, seed: int) -> SupervisedFineTuning:
    return SupervisedFineTuning(
        data=str(data), seed=seed, max_steps=3, batch_size=2, lora={"rank": 2}, name=f"s{seed}",
        hooks="norm",
    )  # fmt: skip


def training(data: Path, seed: int, paths: Paths) -> FunctionStage:
    @stage(name=f"s{seed}")
    async def train(context: Context) -> None:
        result = await recipe(data, seed).run(paths=paths, run_id=f"s{seed}")
        context.artifacts[f"s{seed}"] = result.artifacts["weights"]

    return train


def steps(paths: Paths, seed: int) -> list[dict[str, Any]]:
    lines = (paths.runs / f"s{seed}" / "metrics.jsonl").read_text().splitlines()
    kept = ("step", "loss", "gradients/norm", "eval/nll_per_token")
    return [{key: each[key] for key in kept if key in each} for each in map(json.loads, lines)]


async def test_runs_at_the_same_time_are_those_that_run_alone(tmp_path: Path) -> None:
    data = faq(tmp_path)
    together, alone = (Paths(tmp_path / name, tmp_path / name) for name in ("one", "other"))
    flow = workflow("both", parallel(*(training(data, seed, together) for seed in (0, 1))))
    result = await run(flow)
    for seed in (0, 1):
        by_itself = await recipe(data, seed).run(paths=alone, run_id=f"s{seed}")
        same = sha256_of(by_itself.artifacts["weights"])
        assert sha256_of(result.artifacts[f"s{seed}"]) == same
        assert steps(together, seed) == steps(alone, seed)
        assert sum("loss" in each for each in steps(alone, seed)) == 3
    assert steps(together, 0) != steps(together, 1)
