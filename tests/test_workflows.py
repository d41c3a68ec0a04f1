"""Workflows: what runs, what is handed on, what is undone, and what is refused."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from shammah.errors import InputError, UsageError, WorkflowError
from shammah.recipes.workflows.context import Backends, Context, Factory
from shammah.recipes.workflows.drawing import describe
from shammah.recipes.workflows.running import dry_run, run
from shammah.recipes.workflows.stage import FunctionStage, Stage, stage
from shammah.recipes.workflows.workflow import (
    Workflow,
    conditional,
    loop,
    parallel,
    stream_loop,
    workflow,
)
from shammah.tracking.telemetry import attached


def noting(name: str, *, undone: list[str] | None = None) -> FunctionStage:
    """A stage that adds its path to `state["log"]`, and to `undone` when it is rolled back."""

    async def function(context: Context) -> None:
        context.state["log"] = [*context.state.get("log", []), context.stage]

    async def rollback(context: Context) -> None:
        if undone is not None:
            undone.append(context.stage)

    return FunctionStage(function, name=name, rollback=rollback)


@stage
async def fail(context: Context) -> None:
    raise RuntimeError("the disk has gone")


class Live:
    """Something to be closed."""

    def __init__(self, name: str, closed: list[str]) -> None:
        self.name, self.closed = name, closed

    def close(self) -> None:
        self.closed.append(self.name)


# -- What runs ------------------------------------------------------------------------------------


async def test_stages_run_in_order_and_hand_on_what_they_set(tmp_path: Path) -> None:
    @stage(gives=("rows",))
    def read(context: Context) -> None:
        context.state["rows"] = (1, 2, 3)

    class TrainOnce(Stage):
        needs = ("rows",)
        gives = ("loss",)

        async def execute(self, context: Context) -> None:
            assert context.state["rows"] == [1, 2, 3]
            context.state["loss"] = context.metrics["loss"] = 0.5
            assert context.folder is not None
            context.artifacts["adapter"] = context.folder / "adapter"

    flow = workflow("flow", read, TrainOnce())
    result = await run(flow, {"epochs": 3}, folder=tmp_path / "run", run_id="first")
    assert [path for path, _ in result.stages] == ["read", "train_once"]
    assert result.context.state == {"rows": [1, 2, 3], "loss": 0.5}
    assert result.artifacts == {"adapter": tmp_path / "run" / "adapter"}
    about = result.context.metadata
    assert (about.run_id, about.workflow, about.resumed) == ("first", "flow", False)
    # Nothing is run again of one that is finished, wherever its folder is now.
    await asyncio.to_thread((tmp_path / "run").rename, tmp_path / "moved")
    again = await run(flow, {"epochs": 3}, folder=tmp_path / "moved", resume=True)
    assert again.context.state == result.context.state
    assert (again.metrics, again.stages, again.ended) == (result.metrics, result.stages, "done")
    assert again.artifacts == {"adapter": tmp_path / "moved" / "adapter"}
    assert again.duration == pytest.approx(result.duration, abs=0.5)


async def test_paths_name_every_place() -> None:
    a, b = noting("a"), noting("b")
    flow = workflow(
        "flow",
        a,
        a,
        workflow("inner", a),
        loop(a, loop(b, over=lambda context: "x", name="again"), over="rounds"),
        conditional(lambda context: True, then=[a], otherwise=b, name="good enough?"),
        conditional(lambda context: False, then=a, otherwise=b),
        parallel(conditional(lambda context: True, then=a, name="left"), name="both"),
        parallel([a, b], name="one"),
        stream_loop(b, source=lambda context: iter("xy")),
    )
    result = await run(flow, {"rounds": 2})
    assert result.context.state["log"] == [path for path, _ in result.stages]
    assert result.context.state["log"] == [
        "a", "a#2", "inner/a", "rounds[0]/a", "rounds[0]/again[0]/b", "rounds[1]/a",
        "rounds[1]/again[0]/b", "good enough?/then/a", "if/otherwise/b", "both/left/then/a",
        "one/branch 1/a", "one/branch 1/b", "stream[0]/b", "stream[1]/b",
    ]  # fmt: skip
    assert result.context.item is None


async def test_a_loop_goes_over_the_state_the_configuration_or_what_a_function_gives() -> None:
    seen = []

    @stage
    def look(context: Context) -> None:
        seen.append(context.item)

    given = {"items": ["a", {"b": 1}]}
    flow = workflow(
        "flow",
        loop(look, over="items"),
        loop(look, over="times"),
        loop(look, over=lambda context: (item for item in range(7, 9))),
    )
    await run(flow, {"times": 2}, state=given)
    assert seen == ["a", {"b": 1}, 0, 1, 7, 8]
    with pytest.raises(WorkflowError, match="`nothing`, which nothing before it gives"):
        await run(workflow("flow", loop(look, over="nothing")), {})


async def test_sync_branches_run_at_the_same_time() -> None:
    barrier = threading.Barrier(12)

    def meet(name: str) -> FunctionStage:
        def function(context: Context) -> None:
            barrier.wait(10)
            context.state[name] = True

        return FunctionStage(function, name=name)

    flow = workflow("flow", parallel(*(meet(f"s{number}") for number in range(12))))
    assert len((await run(flow)).context.state) == 12


def setting(name: str, key: str, value: object) -> FunctionStage:
    async def function(context: Context) -> None:
        if value is None:
            del context.state[key]
        else:
            context.state[key] = value

    return FunctionStage(function, name=name)


async def test_branches_are_put_together_where_they_agree() -> None:
    begun = {"kept": 1, "gone": 2}
    flow = workflow(
        "flow",
        parallel(
            setting("a", "x", [1]),
            [setting("b", "x", [2]), setting("c", "x", [1])],
            setting("d", "gone", None),
        ),
    )
    assert (await run(flow, state=begun)).context.state == {"kept": 1, "x": [1]}
    flow = workflow("flow", parallel(setting("a", "x", 1), [setting("b", "x", 2)], name="both"))
    with pytest.raises(WorkflowError, match=r"`a` and `branch 2` set state\['x'\]") as caught:
        await run(flow)
    assert caught.value.stage == "both"
    assert caught.value.rolled_back == ("both/branch 2/b", "both/a")


async def test_a_branch_that_fails_ends_the_others() -> None:
    undone: list[str] = []
    begun = asyncio.Event()
    seen = []

    def note(context: Context) -> None:
        undone.append(context.stage)

    @stage(rollback=note)
    async def patient(context: Context) -> None:
        begun.set()
        await asyncio.sleep(60)

    @stage(rollback=note)
    def blocking(context: Context) -> None:
        while not context.stopping():
            time.sleep(0.005)
        seen.append("stopped")
        context.interrupt()

    @stage(rollback=note)
    async def broken(context: Context) -> None:
        await begun.wait()
        raise RuntimeError("no")

    flow = workflow("flow", noting("first", undone=undone), parallel(patient, blocking, broken))
    with pytest.raises(WorkflowError) as caught:
        await run(flow)
    assert caught.value.stage == "parallel/broken"
    assert seen == ["stopped"]
    assert undone[-1] == "first"
    assert sorted(undone[:3]) == ["parallel/blocking", "parallel/broken", "parallel/patient"]
    assert caught.value.rolled_back == tuple(undone)


# -- Streams --------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [0, 1, 3])
async def test_a_stream_is_read_ahead_and_never_further(prefetch: int) -> None:
    given, begun = 0, 0
    waiting, closed, overlapped = [], [], []

    def source(context: Context) -> Iterator[int]:
        nonlocal given
        thread = threading.get_ident()
        try:
            for number in range(12):
                given += 1
                waiting.append(given - begun)
                yield number
        finally:
            closed.append(threading.get_ident() == thread)

    @stage
    async def work(context: Context) -> None:
        nonlocal begun
        begun += 1
        before = given
        await asyncio.sleep(0.02)
        overlapped.append(given > before)

    result = await run(workflow("flow", stream_loop(work, source=source, prefetch=prefetch)))
    assert len(result.stages) == begun == 12
    # One more than those that wait is on its way to the body.
    assert max(waiting) <= prefetch + 1
    assert any(overlapped) == (prefetch > 0)
    assert closed == [True]


async def test_an_async_source_is_closed_when_the_body_fails() -> None:
    closed = []

    async def source(context: Context) -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await asyncio.sleep(0)
        finally:
            closed.append(True)

    with pytest.raises(WorkflowError, match=r"`stream\[0\]/fail`"):
        await run(workflow("flow", stream_loop(fail, source=source, name="stream")))
    assert closed == [True]


async def test_a_source_that_fails_is_named() -> None:
    def source(context: Context) -> Iterator[int]:
        yield 1
        raise InputError("line 2 is broken", hint="Mend it.")

    undone: list[str] = []
    flow = workflow("flow", stream_loop(noting("a", undone=undone), source=source))
    with pytest.raises(WorkflowError, match="line 2 is broken") as caught:
        await run(flow)
    assert (caught.value.stage, caught.value.hint) == ("source", "Mend it.")
    assert undone == ["source[0]/a"]


async def test_a_stream_that_waits_for_an_item_can_be_stopped() -> None:
    stop, closed = threading.Event(), []

    async def source(context: Context) -> AsyncIterator[int]:
        try:
            yield 1
            stop.set()
            await asyncio.sleep(60)
        finally:
            closed.append(True)

    flow = workflow("flow", stream_loop(noting("a"), source=source))
    result = await run(flow, should_stop=stop.is_set)
    assert (result.ended, closed) == ("stopped", [True])


async def test_a_stream_goes_on_behind_what_is_done_and_refuses_another(tmp_path: Path) -> None:
    done: list[Any] = []

    @stage
    def work(context: Context) -> None:
        done.append(context.item)
        context.state["sum"] = context.state.get("sum", 0) + context.item

    def flow(items: list[int]) -> Workflow:
        return workflow("flow", stream_loop(work, source=lambda context: items, name="stream"))

    stopped = await run(flow([1, 2, 3, 4]), folder=tmp_path, should_stop=lambda: len(done) >= 2)
    assert stopped.ended == "stopped"
    for other in ([1, 9, 3, 4], [1]):
        with pytest.raises(WorkflowError, match="other items than before, from 1 on"):
            await run(flow(other), folder=tmp_path, resume=True)
    result = await run(flow([1, 2, 3, 4]), folder=tmp_path, resume=True)
    assert done == [1, 2, 3, 4]
    assert result.context.state == {"sum": 10}
    assert result.context.metadata.resumed
    # Once it is at its end it is not read again.
    assert (await run(flow([]), folder=tmp_path, resume=True)).context.state == {"sum": 10}


# -- What is refused ------------------------------------------------------------------------------


async def test_a_journal_of_another_run_is_refused(tmp_path: Path) -> None:
    flow = workflow("flow", noting("a"), noting("b"))
    config = {"epochs": 3, "key": "secret-4711"}
    await run(flow, config, folder=tmp_path)
    written = await asyncio.to_thread((tmp_path / "journal.jsonl").read_text)
    assert "secret-4711" not in written

    async def refused(text: str, flow: Workflow, config: Mapping[str, Any], **how: Any) -> None:
        with pytest.raises(WorkflowError, match=text):
            await run(flow, config, folder=tmp_path, **how)

    await refused("holds a run already", flow, config)
    await refused(r"\(epochs\)", flow, {**config, "epochs": 4}, resume=True)
    await refused("other stages", workflow("flow", noting("a")), config, resume=True)
    await refused("of the workflow `flow`", workflow("other", noting("a")), config, resume=True)
    await refused("another state", flow, config, resume=True, state={"x": 1})


def test_a_broken_journal_is_refused_and_a_torn_one_mended(tmp_path: Path) -> None:
    flow = workflow("flow", noting("a"), noting("b"))
    result = asyncio.run(run(flow, folder=tmp_path))
    journal = tmp_path / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:2]) + lines[2][:-9])
    again = asyncio.run(run(flow, folder=tmp_path, resume=True))
    assert again.context.state == result.context.state
    journal.write_bytes(lines[0] + b"{}\n" + lines[2])
    with pytest.raises(WorkflowError, match="broken in line 2"):
        asyncio.run(run(flow, folder=tmp_path, resume=True))


async def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    @stage
    async def again(context: Context) -> None:
        with pytest.raises(WorkflowError, match="Another process"):
            await run(workflow("flow", noting("a")), folder=tmp_path)

    await run(workflow("flow", again), folder=tmp_path)


async def test_a_loop_over_what_json_cannot_hold_is_compared(tmp_path: Path) -> None:
    def flow(count: int) -> Workflow:
        paths = [Path(f"{number}") for number in range(count)]
        return workflow("flow", loop(noting("a"), over=lambda context: paths, name="files"))

    calls = iter([False, False, True])
    stopped = await run(flow(3), folder=tmp_path, should_stop=lambda: next(calls, True))
    assert stopped.ended == "stopped"
    with pytest.raises(WorkflowError, match="goes over other items than before"):
        await run(flow(2), folder=tmp_path, resume=True)
    assert len((await run(flow(3), folder=tmp_path, resume=True)).stages) == 3


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("state", {"at": {1: 2}}, r"state\['x'\]\['at'\] has the key 1"),
        ("state", [1, {2}], r"state\['x'\]\[1\] is a set"),
        ("metrics", "high", r"metrics\['x'\] is a str"),
        ("artifacts", 5, r"artifacts\['x'\] is a int"),
    ],
)
async def test_what_cannot_be_kept_names_stage_and_key(kind: str, value: Any, text: str) -> None:
    @stage
    def put(context: Context) -> None:
        getattr(context, kind)["x"] = value

    with pytest.raises(WorkflowError, match=text) as caught:
        await run(workflow("flow", put))
    assert caught.value.stage == "put"


async def test_needs_are_known_before_and_gives_after(tmp_path: Path) -> None:
    ran = []

    @stage(needs=("rows",))
    def train(context: Context) -> None:
        ran.append(1)

    @stage(gives=("rows",))
    def forget(context: Context) -> None:
        ran.append(2)

    for flow in (workflow("flow", train, forget), workflow("flow", parallel(forget, train))):
        with pytest.raises(WorkflowError, match="needs `rows`, which nothing before it gives"):
            await run(flow, folder=tmp_path)
    assert not ran
    assert await asyncio.to_thread(lambda: list(tmp_path.iterdir())) == []
    with pytest.raises(WorkflowError, match="gives `rows`, which it did not set"):
        await run(workflow("flow", forget))
    # Only a run can tell which way is taken.
    flow = workflow("flow", conditional(lambda context: False, then=forget), train)
    with pytest.raises(WorkflowError, match="needs `rows`, which nothing before it set"):
        await run(flow)


def test_what_is_no_workflow_is_refused() -> None:
    async def bare(context: Context) -> None: ...

    with pytest.raises(TypeError, match="bare in the workflow 'flow' is no stage"):
        workflow("flow", bare)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no name"):
        workflow("a/b", noting("a"))
    with pytest.raises(ValueError, match="no steps"):
        loop(over="rounds")
    with pytest.raises(TypeError, match="tuples of keys"):
        stage(needs="rows")(bare)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="async def"):

        class Sync(Stage):
            def execute(self, context: Context) -> None: ...  # type: ignore[override]


# -- What is undone -------------------------------------------------------------------------------


async def test_a_failure_undoes_what_ran_with_what_there_was(tmp_path: Path) -> None:
    undone: list[Any] = []
    fails = True

    def remember(context: Context) -> None:
        undone.append((context.stage, context.item, context.state.get("n")))
        if context.stage == "rounds[0]/count":
            raise RuntimeError("cannot")

    @stage(rollback=remember)
    def count(context: Context) -> None:
        context.state["n"] = context.state.get("n", 0) + 1

    @stage(rollback=remember)
    async def publish(context: Context) -> None:
        context.state["n"] = 100
        if fails:
            raise UsageError("there is no library", hint="Make one.")

    flow = workflow("flow", loop(count, over="rounds"), publish)
    with pytest.raises(WorkflowError) as caught:
        await run(flow, {"rounds": 2}, folder=tmp_path)
    assert undone == [("publish", None, 100), ("rounds[1]/count", 1, 2), ("rounds[0]/count", 0, 1)]
    error = caught.value
    assert error.stage == "publish"
    assert "The stage `publish` failed: there is no library" in error.message
    assert (error.hint, error.exit_code) == ("Make one.", 2)  # of its cause
    assert isinstance(error.__cause__, UsageError)
    assert error.rolled_back == ("publish", "rounds[1]/count", "rounds[0]/count")
    assert error.rollback_failures == (("rounds[0]/count", "RuntimeError: cannot"),)
    with pytest.raises(WorkflowError, match="holds a run already"):
        await run(flow, {"rounds": 2}, folder=tmp_path)
    fails = False
    result = await run(flow, {"rounds": 2}, folder=tmp_path, resume=True)
    assert [path for path, _ in result.stages] == ["rounds[0]/count", "rounds[1]/count", "publish"]
    assert not result.context.metadata.resumed


async def test_a_failure_after_a_resume_undoes_what_an_earlier_process_ran(tmp_path: Path) -> None:
    undone: list[str] = []

    def remember(context: Context) -> None:
        undone.append(context.stage)

    @stage(rollback=remember)
    async def a(context: Context) -> None: ...

    calls = iter([False, False, False, True])
    flow = workflow("flow", parallel(a, [a, a]), fail)
    stopped = await run(flow, folder=tmp_path, should_stop=lambda: next(calls, True))
    assert len(stopped.stages) == 3
    with pytest.raises(WorkflowError) as caught:
        await run(flow, folder=tmp_path, resume=True)
    assert undone == ["parallel/branch 2/a#2", "parallel/branch 2/a", "parallel/a"]
    assert caught.value.rolled_back == ("fail", *undone)


async def test_nothing_is_undone_that_the_journal_would_not_know(tmp_path: Path) -> None:
    undone: list[str] = []

    @stage
    def fill(context: Context) -> None:
        (tmp_path / "journal.jsonl").unlink()
        (tmp_path / "journal.jsonl").mkdir()
        raise RuntimeError("the disk has gone")

    # The first stage to write opens the journal, so that this one meets a folder in its place.
    with pytest.raises(WorkflowError, match="is left as it is") as caught:
        await run(workflow("flow", fill), folder=tmp_path)
    assert (caught.value.stage, caught.value.rolled_back, undone) == ("fill", (), [])


# -- Stopping -------------------------------------------------------------------------------------


async def test_a_stage_that_is_interrupted_runs_again(tmp_path: Path) -> None:
    stop = threading.Event()
    starts = 0

    @stage
    def train(context: Context) -> None:
        nonlocal starts
        starts += 1
        context.state["half"] = True
        if starts == 1:
            stop.set()
            assert context.stopping()
            context.interrupt()

    flow = workflow("flow", noting("a"), train, noting("b"))
    first = await run(flow, folder=tmp_path, should_stop=stop.is_set)
    assert (first.ended, first.context.state) == ("stopped", {"log": ["a"]})
    result = await run(flow, folder=tmp_path, resume=True)
    assert (result.ended, starts) == ("done", 2)
    assert result.context.state == {"log": ["a", "b"], "half": True}


async def test_a_cancelled_run_waits_for_threads_closes_and_can_go_on(tmp_path: Path) -> None:
    closed: list[str] = []
    order = []
    using = threading.Event()

    @stage
    def train(context: Context) -> None:
        if context.metadata.resumed:
            return
        assert context.backends["outer"] is context.backends["outer"]
        using.set()
        while not context.stopping():
            time.sleep(0.005)
        time.sleep(0.05)
        order.append(list(closed))
        context.interrupt()

    flow = workflow("flow", noting("a"), train)
    live = Backends(inner=Factory(lambda: Live("inner", closed)))
    live["outer"] = Factory(lambda: (live["inner"], Live("outer", closed))[1])
    task = asyncio.create_task(run(flow, folder=tmp_path, backends=live))
    await asyncio.to_thread(using.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # Nothing was closed while a thread still used it.
    assert order == [[]]
    assert closed == ["outer", "inner"]
    result = await run(flow, folder=tmp_path, resume=True)
    assert [path for path, _ in result.stages] == ["a", "train"]


async def test_what_came_to_its_end_while_it_was_cancelled_counts(tmp_path: Path) -> None:
    runs = []
    begun = threading.Event()

    @stage
    def short(context: Context) -> None:
        runs.append(context.stage)
        begun.set()
        while not context.stopping() and len(runs) == 1:
            time.sleep(0.005)

    flow = workflow("flow", short, noting("b"))
    task = asyncio.create_task(run(flow, folder=tmp_path))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    result = await run(flow, folder=tmp_path, resume=True)
    assert (runs, result.context.state) == (["short"], {"log": ["b"]})


async def test_backends_that_were_made_are_closed_the_last_first() -> None:
    closed: list[str] = []

    class Async(Live):
        async def aclose(self) -> None:
            self.closed.append(f"async {self.name}")

    backends = Backends(
        a=Factory(lambda: Live("a", closed)),
        b=Factory(lambda: Async("b", closed)),
        given=Live("given", closed),
        unused=Factory(lambda: Live("unused", closed)),
    )

    @stage
    def use(context: Context) -> None:
        assert context.backends["b"] is context.backends["b"]
        assert context.backends["a"] and context.backends["given"]
        assert context.backends.get("none") is None
        with pytest.raises(UsageError, match="Did you mean `given`"):
            context.backends["givn"]

    await run(workflow("flow", use), backends=backends)
    assert closed == ["a", "async b"]
    closed.clear()
    with pytest.raises(WorkflowError, match="the disk has gone"):
        await run(workflow("flow", use, fail), backends=backends)
    assert closed == ["a", "async b"]


# -- What is seen ---------------------------------------------------------------------------------


class Checked(Stage):
    """Looks before it runs."""

    needs = ("rows",)

    async def validate(self, context: Context) -> None:
        if not context.config.get("library"):
            raise UsageError("There is no library.", hint="Name one.")

    async def execute(self, context: Context) -> None:
        context.state["seen"] = True


async def test_a_dry_run_finds_what_stands_against_it() -> None:
    def meddle(context: Context) -> None:
        context.state["x"] = 1

    @stage(validate=meddle)
    def meddling(context: Context) -> None:
        raise AssertionError("it ran")

    flow = workflow(
        "flow",
        meddling,
        conditional(lambda context: 1 / 0 > 1, then=Checked(), otherwise=meddling),
        loop(Checked(), over="rounds"),
    )
    plan = await dry_run(flow, {"rounds": 2})
    assert plan.lines[1] == "if/then/checked  Looks before it runs."
    assert [problem.split()[0] for problem in plan.problems] == [
        "`if/then/checked`", "`rounds[…]/checked`", "`meddling`", "`if/otherwise/meddling`",
    ]  # fmt: skip
    assert "does not support item assignment" in plan.text
    flow = workflow("flow", Checked())
    plan = await dry_run(flow, {}, state={"rows": []})
    assert plan.problems == ("`checked` cannot run: There is no library.",)
    with pytest.raises(WorkflowError, match="There is no library") as caught:
        await run(flow, {}, state={"rows": []})
    assert (caught.value.stage, caught.value.rolled_back) == ("checked", ())
    assert not (await dry_run(flow, {"library": 1}, state={"rows": 1})).problems


DRAWN = """\
fine-tune
├─ prepare           Read the rows and render them.                       → rows
├─ rounds            for each of rounds
│  └─ train          One round of training…  rows → loss, a_very_long_key_indeed
├─ good enough?      one of two ways
│  ├─ then
│  │  └─ prepare     Read the rows and render them.                       → rows
│  └─ otherwise
│     └─ train       One round of training…  rows → loss, a_very_long_key_indeed
└─ both              at the same time
   ├─ train          One round of training…  rows → loss, a_very_long_key_indeed
   └─ branch 2
      └─ inner
         └─ prepare  Read the rows and render them.                       → rows"""


def test_a_workflow_is_drawn() -> None:
    @stage(gives=("rows",))
    def prepare(context: Context) -> None:
        """Read the rows and render them.

        More is not shown.
        """

    @stage(needs=("rows",), gives=("loss", "a_very_long_key_indeed"))
    def train(context: Context) -> None:
        """One round of training over everything that is there, which takes its time."""

    flow = workflow(
        "fine-tune",
        prepare,
        loop(train, over="rounds"),
        conditional(lambda context: True, then=prepare, otherwise=[train], name="good enough?"),
        parallel(train, [workflow("inner", prepare)], name="both"),
    )
    assert describe(flow) == DRAWN
    plain = describe(flow, ascii=True, width=40)
    assert plain.isascii()
    assert max(map(len, plain.splitlines())) == 40
    assert "\x1b[2m→ rows\x1b[0m" in describe(flow, dim=True)


async def test_telemetry_tells_of_the_workflow_and_its_stages() -> None:
    told: list[tuple[str, str]] = []

    def hear(name: str, measured: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        told.append((name, about[name.split(".")[0]]))

    names = [
        f"{kind}.{word}"
        for kind in ("workflow", "stage")
        for word in ("start", "stop", "exception")
    ]
    with attached("test", names, hear):
        await run(workflow("flow", noting("a")))
        with pytest.raises(WorkflowError):
            await run(workflow("flow", fail))
    assert told == [
        ("workflow.start", "flow"), ("stage.start", "a"), ("stage.stop", "a"),
        ("workflow.stop", "flow"),
        ("workflow.start", "flow"), ("stage.start", "fail"), ("stage.exception", "fail"),
        ("workflow.exception", "flow"),
    ]  # fmt: skip
