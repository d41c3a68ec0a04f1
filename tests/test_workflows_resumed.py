"""Workflows that are stopped, fail or are killed anywhere and go on: the same comes of them."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shammah.errors import WorkflowError
from shammah.recipes.workflows.context import Context
from shammah.recipes.workflows.journal import JOURNAL
from shammah.recipes.workflows.running import Result, run
from shammah.recipes.workflows.stage import FunctionStage
from shammah.recipes.workflows.values import digest
from shammah.recipes.workflows.workflow import (
    Step,
    Workflow,
    conditional,
    loop,
    parallel,
    stream_loop,
    workflow,
)

Tree = Any


def _trees() -> st.SearchStrategy[Sequence[Tree]]:
    leaf = st.sampled_from(["async", "sync"])

    def nest(inner: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
        steps = st.lists(inner, min_size=1, max_size=3)
        return st.one_of(
            st.tuples(st.just("loop"), st.integers(0, 3), st.booleans(), steps),
            st.tuples(st.just("stream"), st.integers(0, 3), st.integers(0, 2), steps),
            st.tuples(st.just("if"), steps, steps),
            st.tuples(st.just("parallel"), st.lists(steps, min_size=1, max_size=3)),
            st.tuples(st.just("workflow"), steps),
        )

    return st.lists(st.recursive(leaf, nest, max_leaves=8), min_size=1, max_size=4)


class Seen:
    """What stages of a tree did, and when one of them is to fail."""

    def __init__(self) -> None:
        self.executed: list[str] = []
        self.finished: list[str] = []
        self.undone: list[str] = []
        self.states: dict[str, str] = {}
        self.fail_at = -1

    def flow(self, tree: Sequence[Tree]) -> Workflow:
        """The tree as a workflow. Each stage sets keys of its own by all that it sees."""
        return workflow("tree", *self._steps(tree, itertools.count()))

    def _steps(self, tree: Sequence[Tree], numbers: Iterator[int]) -> list[Step]:
        return [self._step(each, numbers) for each in tree]

    def _step(self, tree: Tree, numbers: Iterator[int]) -> Step:
        if isinstance(tree, str):
            return self._stage(tree, next(numbers))
        kind, *rest = tree
        if kind == "workflow":
            return workflow("inner", *self._steps(rest[0], numbers))
        if kind == "parallel":
            return parallel(*(self._steps(branch, numbers) for branch in rest[0]))
        if kind == "if":
            then, otherwise = (self._steps(way, numbers) for way in rest)
            return conditional(lambda context: digest(dict(context.state)) < "8", then, otherwise)
        items: list[Any] = [{"n": number} for number in range(rest[0])]
        if kind == "stream":
            body = self._steps(rest[2], numbers)
            return stream_loop(*body, source=lambda context: iter(items), prefetch=rest[1])
        if rest[1]:
            items = [Path(str(number)) for number in range(rest[0])]
        return loop(*self._steps(rest[2], numbers), over=lambda context: items)

    def _stage(self, kind: str, number: int) -> FunctionStage:
        def sync(context: Context) -> None:
            self.executed.append(context.stage)
            if len(self.executed) == self.fail_at:
                raise RuntimeError("now")
            seen = digest([dict(context.state), context.item])
            context.state[f"s{number}"] = {"seen": seen, "path": context.stage}
            context.metrics[f"m{number}"] = int(seen, 16)
            if context.state.pop(f"t{number}", None) is None:
                context.state[f"t{number}"] = (number, [seen])
            self.finished.append(context.stage)

        async def later(context: Context) -> None:
            await asyncio.sleep(0)
            sync(context)

        async def rollback(context: Context) -> None:
            self.undone.append(context.stage)
            self.states[context.stage] = digest([dict(context.state), context.item])

        function = sync if kind == "sync" else later
        return FunctionStage(function, name=f"s{number}", rollback=rollback)


def _same(one: Result, other: Result) -> bool:
    return (
        one.context.state == other.context.state
        and one.metrics == other.metrics
        and sorted(path for path, _ in one.stages) == sorted(path for path, _ in other.stages)
    )


FAST = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


@FAST
@given(tree=_trees(), after=st.integers(0, 12), again=st.integers(0, 12))
def test_a_run_that_is_stopped_goes_on_to_the_same_end(
    tree: Sequence[Tree], after: int, again: int
) -> None:
    undisturbed = asyncio.run(run(Seen().flow(tree)))
    seen = Seen()
    flow = seen.flow(tree)
    with TemporaryDirectory() as name:
        folder = Path(name)
        for limit in (after, after + again):
            stopped = asyncio.run(
                run(
                    flow,
                    folder=folder,
                    resume=True,
                    should_stop=lambda: len(seen.executed) >= limit,  # noqa: B023
                )
            )
            assert stopped.ended == "done" or len(seen.executed) >= limit
        result = asyncio.run(run(flow, folder=folder, resume=True))
        assert _same(result, undisturbed)
        assert len(seen.executed) == len(set(seen.executed)) == len(undisturbed.stages)
        assert _same(asyncio.run(run(flow, folder=folder, resume=True)), undisturbed)
        assert len(seen.executed) == len(undisturbed.stages)


@FAST
@given(tree=_trees(), at=st.integers(1, 12), stopped_at=st.integers(0, 12))
def test_a_run_that_fails_is_undone_in_reverse_and_begins_anew(
    tree: Sequence[Tree], at: int, stopped_at: int
) -> None:
    undisturbed = asyncio.run(run(Seen().flow(tree)))
    seen = Seen()
    flow = seen.flow(tree)
    with TemporaryDirectory() as name:
        folder = Path(name)
        early = min(stopped_at, at - 1)
        asyncio.run(run(flow, folder=folder, should_stop=lambda: len(seen.executed) >= early))
        if len(seen.executed) >= min(at, len(undisturbed.stages)):
            return
        seen.fail_at = at
        try:
            asyncio.run(run(flow, folder=folder, resume=True))
        except WorkflowError as error:
            kept = [
                each["path"]
                for each in map(json.loads, (folder / JOURNAL).read_text().splitlines())
                if each["kind"] == "finished"
            ]
            begun = [path for path in seen.undone if path not in kept]
            assert error.stage in begun
            assert seen.undone == [*begun, *reversed(kept)]
            assert error.rolled_back == tuple(seen.undone)
            assert set(seen.executed) == set(seen.undone)
            seen.executed.clear()
        else:
            assert len(undisturbed.stages) < at
        seen.fail_at = -1
        assert _same(asyncio.run(run(flow, folder=folder, resume=True)), undisturbed)


@FAST
@given(tree=_trees(), share=st.floats(0, 1))
def test_a_journal_that_ends_anywhere_is_gone_on_with(tree: Sequence[Tree], share: float) -> None:
    seen = Seen()
    flow = seen.flow(tree)
    with TemporaryDirectory() as name:
        folder = Path(name)
        undisturbed = asyncio.run(run(flow, folder=folder))
        content = (folder / JOURNAL).read_bytes()
        header = content.index(b"\n") + 1
        end = header + round(share * (len(content) - header))
        (folder / JOURNAL).write_bytes(content[:end])
        whole = content[:end].count(b'"kind":"finished"') - (
            b'"kind":"finished"' in content[:end].rpartition(b"\n")[2]
        )
        seen.executed.clear()
        assert _same(asyncio.run(run(flow, folder=folder, resume=True)), undisturbed)
        assert len(seen.executed) == len(undisturbed.stages) - whole


@FAST
@given(tree=_trees(), at=st.integers(1, 8), share=st.floats(0, 1))
def test_a_kill_while_all_is_undone_is_made_up_for(
    tree: Sequence[Tree], at: int, share: float
) -> None:
    seen = Seen()
    flow = seen.flow(tree)
    seen.fail_at = at
    with TemporaryDirectory() as name:
        folder = Path(name)
        try:
            asyncio.run(run(flow, folder=folder))
        except WorkflowError:
            pass
        else:
            return
        lines = (folder / JOURNAL).read_bytes().splitlines(keepends=True)
        failed = next(
            number for number, line in enumerate(lines) if json.loads(line)["kind"] == "failed"
        )
        end = failed + 1 + round(share * (len(lines) - 2 - failed))
        (folder / JOURNAL).write_bytes(b"".join(lines[:end]))
        before, states = list(seen.undone), dict(seen.states)
        seen.undone.clear()
        seen.fail_at = -1
        result = asyncio.run(run(flow, folder=folder, resume=True))
        # What had been undone is not undone again; the rest is, with what there was then.
        assert seen.undone == before[end - failed - 1 :]
        whole = {each for each in seen.undone if each in seen.finished}
        beside = {path for path in whole if "stream" not in path and "loop" not in path}
        assert {path: seen.states[path] for path in beside} == {
            path: states[path] for path in beside
        }
        assert _same(result, asyncio.run(run(Seen().flow(tree))))


PROGRAM = """
import asyncio, os, sys, time
from pathlib import Path
from shammah.recipes.workflows.context import Context
from shammah.recipes.workflows.running import run
from shammah.recipes.workflows.stage import stage
from shammah.recipes.workflows.workflow import loop, parallel, stream_loop, workflow

folder, seconds = Path(sys.argv[1]), float(sys.argv[2])

def did(context, word):
    with (folder / "done.txt").open("a") as file:
        file.write(f"{word} {context.stage}\\n")

@stage
def add(context: Context) -> None:
    did(context, "begun")
    time.sleep(seconds)
    context.state["sum"] = context.state.get("sum", 0) * 3 + (context.item or 1)
    context.artifacts[context.stage.replace("/", "-")] = context.folder / "file"
    context.metrics["sum"] = context.state["sum"] / 7
    did(context, "done")

@stage
async def aside(context: Context) -> None:
    did(context, "begun")
    await asyncio.sleep(seconds)
    context.state["aside"] = context.state["sum"]
    did(context, "done")

flow = workflow(
    "killed", add, loop(add, over="rounds"), parallel(add, aside),
    stream_loop(add, source=lambda context: range(5), name="stream"),
)
result = asyncio.run(run(flow, {"rounds": 4}, folder=folder / "run", resume=True))
print(result.ended, result.context.state, result.metrics, sorted(result.artifacts))
"""


def _program(folder: Path, seconds: float) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", PROGRAM, str(folder), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_run_goes_on_from_its_last_finished_stage(tmp_path: Path) -> None:
    undisturbed = _program(tmp_path / "whole", 0.0).communicate(timeout=60)[0]
    assert undisturbed.startswith("done ")
    file = tmp_path / "killed" / "done.txt"
    kills = 0
    for lines in (3, 9, 12, 17):
        process = _program(tmp_path / "killed", 0.08)
        until = time.monotonic() + 60
        while not file.exists() or len(file.read_text().splitlines()) < lines:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        kills += process.returncode == -signal.SIGKILL
    assert kills == 4
    said = _program(tmp_path / "killed", 0.0).communicate(timeout=60)[0]
    # The artifacts lie in the run's own folder, of which the result names only the keys here.
    assert said == undisturbed
    words = file.read_text().split("\n")[:-1]
    # A kill may fall between what a stage did last and the line in the journal.
    twice = [word for word in set(words) if word.startswith("done") and words.count(word) > 1]
    assert len(twice) <= kills
    paths = {word.split(" ", 1)[1] for word in words if word.startswith("done")}
    assert len(paths) == 1 + 4 + 2 + 5
    begun = sum(word.startswith("begun") for word in words)
    # Each kill costs at most the stages that ran just then: two where branches did.
    assert begun <= len(paths) + kills + 1


def test_a_stage_of_a_killed_run_is_in_the_journal_before_the_next_begins(tmp_path: Path) -> None:
    process = _program(tmp_path / "run", 0.15)
    file = tmp_path / "run" / "done.txt"
    until = time.monotonic() + 60
    while not file.exists() or "begun rounds[1]" not in file.read_text():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.005)
    process.kill()
    process.communicate(timeout=60)
    assert _program(tmp_path / "run", 0.0).communicate(timeout=60)[0].startswith("done ")
    words = file.read_text()
    assert words.count("begun rounds[0]/add\n") == 1
    assert words.count("begun rounds[1]/add\n") == 2


def test_a_long_stream_costs_the_same_at_its_end(tmp_path: Path) -> None:
    count, times = 900, []

    def add(context: Context) -> None:
        times.append(time.process_time())
        context.state["sum"] = context.state.get("sum", 0) + context.item

    async def later(context: Context) -> None:
        add(context)

    flow = workflow(
        "long", stream_loop(FunctionStage(later, name="add"), source=lambda context: range(count))
    )
    result = asyncio.run(run(flow, folder=tmp_path))
    assert result.context.state == {"sum": count * (count - 1) // 2}
    third = count // 3
    assert times[-1] - times[-third] < 3 * (times[third] - times[0]) + 0.2
