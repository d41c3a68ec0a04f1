"""Runs a workflow: begins or goes on, stops, undoes what failed, and closes what it opened.

    result = await run(flow, {"epochs": 3}, backends={"client": Factory(make)}, folder=folder)

What is finished lies in the folder's journal, so that a run that was stopped or killed goes on from
there with `resume=True` and ends as an undisturbed one would have.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from shammah.errors import ShammahError, StorageError, WorkflowError
from shammah.files import private_folder
from shammah.recipes.workflows.backends import Backends
from shammah.recipes.workflows.branch import Branch
from shammah.recipes.workflows.context import Context, Metadata, Stop
from shammah.recipes.workflows.journal import Journal
from shammah.recipes.workflows.planning import Plan, dry_run, missing_needs
from shammah.recipes.workflows.records import Header
from shammah.recipes.workflows.undoing import StageFailed, failure, not_undone, roll_back, said
from shammah.recipes.workflows.values import digest, plain
from shammah.recipes.workflows.walking import Stopped, Walk
from shammah.recipes.workflows.workflow import Workflow, shape
from shammah.tracking.telemetry import span

__all__ = ["Plan", "Result", "dry_run", "run"]

log = logging.getLogger("shammah")

THREADS = 256
"""Stages that block at the same time; a thread is begun where none is free."""


@dataclass(frozen=True)
class Result:
    """What came of a run."""

    context: Context
    metrics: dict[str, float]
    artifacts: dict[str, Path]
    duration: float
    """Seconds, in all processes that worked at it."""
    ended: Literal["done", "stopped"]
    stages: list[tuple[str, float]]
    """The paths of the finished stages in that order, and the seconds of each."""


async def run(
    flow: Workflow,
    config: Any = None,
    *,
    backends: Backends | Mapping[str, Any] | None = None,
    folder: Path | None = None,
    resume: bool = False,
    should_stop: Callable[[], bool] | None = None,
    run_id: str | None = None,
    state: Mapping[str, Any] | None = None,
) -> Result:
    """Run a workflow, or go on with one.

    Args:
        config: a mapping or a pydantic model, for the stages.
        backends: live things by name, or a `Factory` of each.
        folder: where the journal lies; None keeps nothing.
        resume: go on with the run in the folder, if there is one. One that was rolled back begins
            anew; one that is finished only gives its result.
        should_stop: asked between stages, and by `context.stopping()`; also from threads. The run
            then ends as "stopped", and can be resumed.
        run_id: a name for it; else one is made up.
        state: what it begins with; plain values.

    Raises:
        WorkflowError: a stage failed, and what ran was rolled back (`stage`, `rolled_back`); or it
            was not begun at all: a key is needed that nothing gives, or the folder holds a run that
            is another one, or is not to be resumed.
        StorageError: the folder cannot be written.
    """
    begun_with = {key: plain(value, f"state[{key!r}]") for key, value in (state or {}).items()}
    for path, message in missing_needs(flow, config, begun_with):
        raise WorkflowError(f"`{path}` {message}.", stage=path)
    header = Header(
        workflow=flow.name,
        shape=shape(flow),
        config=_digests(config),
        run_id=run_id or f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}",
        started_at=datetime.now(UTC),
        state=begun_with,
    )
    live = backends if isinstance(backends, Backends) else Backends(backends)
    threads = ThreadPoolExecutor(THREADS, "stage")
    stop = Stop(should_stop)
    with _alone_in(folder):
        journal = _journal(header, folder, resume, named=run_id is not None)

        def root() -> Branch:
            about = Metadata(
                journal.header.run_id, flow.name, journal.header.started_at, bool(journal.done)
            )
            state = journal.header.state
            return Branch(
                Context(
                    config, live, state=state, metadata=about, folder=folder, stop=stop,
                    threads=threads,
                )
            )  # fmt: skip

        try:
            try:
                if journal.failed is not None:
                    await _finish_rollback(flow, journal, root())
                    journal.close()
                    journal = Journal.begun(journal.header, folder)
                return await _walk(flow, journal, root(), stop)
            except BaseException:
                await _close(live)
                raise
        finally:
            journal.close()
            threads.shutdown(wait=False)


async def _walk(flow: Workflow, journal: Journal, branch: Branch, stop: Stop) -> Result:
    """Go through all of it; ends with backends closed, unless it raises."""
    about = branch.context.metadata
    live = branch.context.backends
    began = time.perf_counter() - journal.elapsed
    walk = Walk(journal, stop, began, recall=journal.ended)
    if journal.ended:
        await walk.steps(flow.steps, "", branch)
        return _result(journal, branch, journal.elapsed, "done")
    ended: Literal["done", "stopped"] = "done"
    with span("workflow", flow.name, {"workflow": flow.name, "run": about.run_id}):
        try:
            await walk.steps(flow.steps, "", branch)
        except Stopped:
            ended = "stopped"
        except StageFailed as failed:
            cause = failed.__cause__
            # A user's own mistake needs no traceback, but the log has it.
            level = logging.INFO if isinstance(cause, ShammahError) else logging.ERROR
            log.log(level, "the stage %s failed", failed.path, exc_info=cause)
            begun = [each.path for each in walk.ran if each.texts is None]
            try:
                journal.fail(failed.path, said(cause), begun)
            except StorageError as error:
                # What is undone and stays in the journal as finished would be missed by a resume.
                raise not_undone(failed, error) from cause
            await roll_back(walk.ran, journal)
            raise failure(failed, journal) from cause
        branch.context.stage = ""
        await live.close()
        duration = time.perf_counter() - began
        if ended == "done":
            journal.end(duration)
    return _result(journal, branch, duration, ended)


async def _finish_rollback(flow: Workflow, journal: Journal, branch: Branch) -> None:
    """Undo what a process that was killed while it did so has left."""
    if journal.rolled_back:
        return
    walk = Walk(journal, branch.context.stop, 0.0, recall=True)
    # Where the journal ends; or two branches that did not agree, which was the failure.
    with suppress(Stopped, StageFailed):
        await walk.steps(flow.steps, "", branch)
    await roll_back(walk.ran, journal)


async def _close(backends: Backends) -> None:
    """Close what is open while something else is raised, which is what counts."""
    closing = asyncio.ensure_future(backends.close())
    try:
        await asyncio.shield(closing)
    except WorkflowError:
        pass  # It is in the log.
    except asyncio.CancelledError:
        await asyncio.wait({closing})
        raise


def _result(
    journal: Journal, branch: Branch, duration: float, ended: Literal["done", "stopped"]
) -> Result:
    context = branch.context
    stages = [(path, done.seconds) for path, done in journal.done.items()]
    return Result(context, dict(context.metrics), dict(context.artifacts), duration, ended, stages)


def _journal(header: Header, folder: Path | None, resume: bool, *, named: bool) -> Journal:
    found = None if folder is None else Journal.found(folder)
    if found is None:
        return Journal.begun(header, folder)
    if not resume:
        raise WorkflowError(
            f"{folder} holds a run already.", hint="Resume it, or name another folder."
        )
    different = header.differences(found.header)
    if different is None and named and header.run_id != found.header.run_id:
        different = f"it is called {found.header.run_id}"
    if different is not None:
        raise WorkflowError(
            f"The run in {folder} cannot go on: {different}.",
            hint="Ask for the same, or name another folder.",
        )
    if found.rolled_back:
        return Journal.begun(found.header, folder)
    return found


def _digests(config: Any) -> dict[str, str]:
    """A digest of each field of a configuration."""
    from pydantic import BaseModel

    if isinstance(config, BaseModel):
        return {name: digest(getattr(config, name)) for name in type(config).model_fields}
    if isinstance(config, Mapping):
        return {str(name): digest(value) for name, value in config.items()}
    return {} if config is None else {type(config).__name__: digest(config)}


@contextmanager
def _alone_in(folder: Path | None) -> Iterator[None]:
    """Nobody else works in the folder while inside."""
    if folder is None:
        yield
        return
    from filelock import FileLock, Timeout

    lock = FileLock(private_folder(folder) / ".lock", mode=0o600, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise WorkflowError(
            f"Another process is running a workflow in {folder}.",
            hint="Wait for its end, or name another folder.",
        ) from error
    try:
        yield
    finally:
        lock.release()
