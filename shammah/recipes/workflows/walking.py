"""Goes through a workflow: runs what is not finished, and takes from the journal what is.

A walk through a finished part does what the first one did, with what each stage changed in place
of running it, so that all that follows sees the same. Knows nothing of how a run begins and ends.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shammah.errors import WorkflowError
from shammah.recipes.workflows.branch import Branch
from shammah.recipes.workflows.context import Context, Interrupted, Stop, outlast
from shammah.recipes.workflows.items import items_of
from shammah.recipes.workflows.journal import Journal
from shammah.recipes.workflows.records import Items
from shammah.recipes.workflows.stage import Stage
from shammah.recipes.workflows.streaming import END, Ahead
from shammah.recipes.workflows.undoing import Ran, StageFailed
from shammah.recipes.workflows.values import digest, is_plain
from shammah.recipes.workflows.workflow import (
    Conditional,
    Loop,
    Parallel,
    Steps,
    StreamLoop,
    Workflow,
)
from shammah.tracking.telemetry import span

__all__ = ["Stopped", "Walk"]

log = logging.getLogger("shammah")


class Stopped(Exception):
    """Nothing further is to start."""


class Walk:
    """One way through a workflow.

    Args:
        began: `time.perf_counter()` at which the run would have begun in one process.
        recall: run nothing, ask nothing, and stop where the journal ends.
    """

    def __init__(self, journal: Journal, stop: Stop, began: float, *, recall: bool = False) -> None:
        self.journal = journal
        self.stop = stop
        self.began = began
        self.recall = recall
        self.ran: list[Ran] = []

    async def steps(self, steps: Steps, prefix: str, branch: Branch) -> None:
        """Go through steps one after the other.

        Raises:
            StageFailed: one of them failed.
            Stopped: somebody asked to stop.
            WorkflowError: the journal is of something else.
        """
        for name, step in steps:
            path = prefix + name
            match step:
                case Stage():
                    await self._stage(step, path, branch)
                case Workflow():
                    await self.steps(step.steps, f"{path}/", branch)
                case Loop():
                    await self._loop(step, path, branch)
                case Conditional():
                    await self._conditional(step, path, branch)
                case Parallel():
                    await self._parallel(step, path, branch)
                case StreamLoop():
                    await self._stream(step, path, branch)

    async def _stage(self, stage: Stage, path: str, branch: Branch) -> None:
        context = branch.context
        if (done := self.journal.done.get(path)) is not None:
            branch.apply(done.changes)
            self._remember(path, stage, done.number, branch)
            return
        if self.recall and self.journal.failed and path in self.journal.failed.begun:
            self._remember(path, stage, self._last(path), branch, whole=False)
        self._go_on(branch)
        context.stage = path
        began = time.perf_counter()
        about = {"workflow": context.metadata.workflow, "run": context.metadata.run_id}
        with self._failing(path), span("stage", path, about):
            _look_for(stage.needs, context, "needs", "nothing before it set")
            await stage.validate(context.reading())
            try:
                await stage.execute(context)
                _look_for(stage.gives, context, "gives", "it did not set")
                changes = branch.settle()
                seconds, elapsed = time.perf_counter() - began, time.perf_counter() - self.began
                self.journal.finish(path, seconds, elapsed, changes)
            except Interrupted:
                branch.restore()
                raise
            except BaseException:
                self._remember(path, stage, len(self.ran) + 1e9, branch, whole=False)
                raise
        self._remember(path, stage, self.journal.done[path].number, branch)
        if _cancelled():
            # The stage came to its end while it was cancelled, and so counts; nothing follows.
            raise asyncio.CancelledError

    async def _loop(self, node: Loop, path: str, branch: Branch) -> None:
        for place, item in enumerate(await self._items(node, path, branch)):
            with branch.holding(item):
                await self.steps(node.body, f"{path}[{place}]/", branch)

    async def _items(self, node: Loop, path: str, branch: Branch) -> list[Any]:
        known = self.journal.items.get(path)
        if known is not None and known.values is not None:
            return known.values
        if known is not None and self.recall:
            return [None] * known.count
        if known is None:
            self._go_on(branch)
        with self._failing(path):
            items = await items_of(node, branch.context.reading())
            now = Items(
                path=path,
                count=len(items),
                digest=digest(items),
                values=items if is_plain(items) else None,
            )
            if known is None:
                self.journal.know(now)
        if known is not None and (known.count, known.digest) != (now.count, now.digest):
            raise WorkflowError(
                f"`{path}` goes over other items than before: {now.count}, and {known.count} then.",
                stage=path,
                hint="Give it the same, or run the workflow anew in another folder.",
            )
        return items

    async def _conditional(self, node: Conditional, path: str, branch: Branch) -> None:
        chosen = self.journal.decisions.get(path)
        if chosen is None:
            self._go_on(branch)
            with self._failing(path):
                answer = node.when(branch.context.reading())
                chosen = bool(await answer if inspect.isawaitable(answer) else answer)
                self.journal.decide(path, chosen)
        way = "then" if chosen else "otherwise"
        await self.steps(node.then if chosen else node.otherwise, f"{path}/{way}/", branch)

    async def _parallel(self, node: Parallel, path: str, branch: Branch) -> None:
        forks = [branch.fork() for _ in node.branches]
        tasks = [
            asyncio.create_task(self.steps(each.steps, f"{path}/{each.prefix}", fork))
            for each, fork in zip(node.branches, forks, strict=True)
        ]
        try:
            waiting = set(tasks)
            failed: list[BaseException] = []
            while waiting and not failed:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                failed = [
                    error
                    for task in tasks
                    if task in done and (error := _error(task)) and not isinstance(error, Stopped)
                ]
        finally:
            for task in tasks:
                task.cancel()
            await outlast(*tasks)
        if failed:
            raise failed[0]
        for task in tasks:
            task.result()
        with self._failing(path):
            branch.merge(
                [(each.name, fork) for each, fork in zip(node.branches, forks, strict=True)]
            )

    async def _stream(self, node: StreamLoop, path: str, branch: Branch) -> None:
        count = self.journal.stream_ends.get(path)
        if count is not None or self.recall:
            place = 0
            while (known := self.journal.streamed.get(f"{path}[{place}]")) is not None:
                with branch.holding(known.value):
                    await self.steps(node.body, f"{path}[{place}]/", branch)
                place += 1
            if count is None:
                raise Stopped
            return
        self._go_on(branch)
        ahead = Ahead(node.source, branch.context.reading(), node.prefetch)
        try:
            await self._streamed(node, path, branch, ahead)
        except BaseException:
            try:
                await ahead.close()
            except Exception as error:
                log.warning("the source of %s was not closed: %s", path, error, exc_info=error)
            raise
        with self._failing(path):
            await ahead.close()

    async def _streamed(self, node: StreamLoop, path: str, branch: Branch, ahead: Ahead) -> None:
        place = 0
        while True:
            with self._failing(path):
                item = await ahead.next(lambda: bool(branch.context.stop))
            here = f"{path}[{place}]"
            known = self.journal.streamed.get(here)
            if item is END:
                self._go_on(branch)
                if known is not None:
                    raise _other_items(path, place)
                with self._failing(path):
                    self.journal.end_stream(path, place)
                return
            named = digest(item)
            if known is None:
                self._go_on(branch)
                with self._failing(path):
                    self.journal.stream(here, named, item if is_plain(item) else None)
            elif known.digest != named:
                raise _other_items(path, place)
            with branch.holding(item):
                await self.steps(node.body, f"{here}/", branch)
            place += 1

    @contextmanager
    def _failing(self, path: str) -> Iterator[None]:
        """What is raised inside has failed at that path."""
        try:
            yield
        except (StageFailed, Stopped):
            raise
        except Interrupted:
            self.stop.ask()
            raise Stopped from None
        except asyncio.CancelledError as error:
            if _cancelled():
                raise
            # Nobody cancelled the run: the stage gave up something of its own.
            raise StageFailed(path) from error
        except Exception as error:
            raise StageFailed(path) from error

    def _go_on(self, branch: Branch) -> None:
        """Nothing new starts once somebody asked to stop."""
        if self.recall or branch.context.stop:
            raise Stopped

    def _last(self, path: str) -> float:
        assert self.journal.failed is not None
        return 1e9 + self.journal.failed.begun.index(path)

    def _remember(
        self, path: str, stage: Stage, number: float, branch: Branch, *, whole: bool = True
    ) -> None:
        texts = dict(branch.texts) if whole else None
        self.ran.append(Ran(path, stage, number, branch, texts, branch.context.item))


def _cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _error(task: asyncio.Task[None]) -> BaseException | None:
    return asyncio.CancelledError() if task.cancelled() else task.exception()


def _look_for(keys: tuple[str, ...], context: Context, verb: str, why: str) -> None:
    for key in keys:
        if key not in context.state:
            raise WorkflowError(f"It {verb} `{key}`, which {why}.")


def _other_items(path: str, place: int) -> WorkflowError:
    return WorkflowError(
        f"The source of `{path}` gives other items than before, from {place} on.",
        stage=path,
        hint="Let it give the same, or run the workflow anew in another folder.",
    )
