"""Workflows: what runs, what is kept, what is undone, and what a kill leaves."""

from __future__ import annotations

import threading
from pathlib import Path

from shammah.recipes.context import Context
from shammah.recipes.running import run
from shammah.recipes.stage import FunctionStage, Stage, stage
from shammah.recipes.workflow import parallel, workflow


def add(name: str, value: object) -> FunctionStage:
    """A stage that appends to a list of its own."""

    async def append(context: Context) -> None:
        context.state[name] = [*context.state.get(name, []), value]

    return FunctionStage(append, name=name)


async def test_stages_run_in_order_and_hand_on_what_they_set(tmp_path: Path) -> None:
    @stage(gives=("rows",))
    def read(context: Context) -> None:
        """Read the rows."""
        context.state["rows"] = (1, 2, 3)

    class TrainOnce(Stage):
        """Train."""

        needs = ("rows",)
        gives = ("loss",)

        async def execute(self, context: Context) -> None:
            assert context.state["rows"] == [1, 2, 3]
            context.state["loss"] = 0.5
            context.metrics["loss"] = 0.5
            assert context.folder is not None
            context.artifacts["adapter"] = context.folder / "adapter"

    flow = workflow("flow", read, TrainOnce())
    result = await run(flow, {"epochs": 3}, folder=tmp_path / "run")
    assert result.ended == "done"
    assert [path for path, _ in result.stages] == ["read", "train_once"]
    assert result.context.state == {"rows": [1, 2, 3], "loss": 0.5}
    assert result.metrics == {"loss": 0.5}
    assert result.artifacts == {"adapter": tmp_path / "run" / "adapter"}
    again = await run(flow, {"epochs": 3}, folder=tmp_path / "run", resume=True)
    assert again.context.state == result.context.state
    assert (again.metrics, again.artifacts) == (result.metrics, result.artifacts)
    assert (again.stages, again.ended) == (result.stages, "done")


async def test_sync_branches_run_at_the_same_time() -> None:
    barrier = threading.Barrier(12)

    def meet(name: str) -> FunctionStage:
        def function(context: Context) -> None:
            barrier.wait(10)
            context.state[name] = True

        return FunctionStage(function, name=name)

    flow = workflow("flow", parallel(*(meet(f"s{number}") for number in range(12))))
    assert len((await run(flow)).context.state) == 12
