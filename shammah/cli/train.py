"""`shammah train`: queue a job, run it here, look at it."""

from __future__ import annotations

import asyncio
import re
import sys
from argparse import Namespace
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shammah.assistant import Assistant, Notice
from shammah.cli.context import log_changes, open_workspace, paths_of, settings_of, start_log
from shammah.cli.gradient_flow import HOOK, say_flow
from shammah.cli.output import coloured, emit, say, tell
from shammah.errors import TrainingError, UsageError
from shammah.repl import wording
from shammah.repl.text import columns, pairs, unicode_output
from shammah.repl.toolbar import training_progress

if TYPE_CHECKING:
    from shammah.learning.queue import Job
    from shammah.learning.supervisor import Trainer

LOOK_SECONDS = 0.2
SHOWN = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "epoch", "learned")
"""What the table of a run shows."""


def now(options: Namespace) -> int:
    domain = _domain(options.domain)
    changes = {**_tracking(options), **_hooks(options)}
    _check_trace(options)
    if options.report and not options.wait:
        raise UsageError("--report draws when the job is done: it needs --wait.")
    if options.wait:

        async def ask(trainer: Trainer) -> Job:
            job = await trainer.request("now", join=True, domain=domain)
            return _written(job, options, changes)

        return asyncio.run(_run_here(options, ask, changes))
    if changes.get("tracking.loggers") and "rich" in changes["tracking.loggers"]:
        raise UsageError("The logger rich shows a table here: it needs --wait.")
    with open_workspace(options, changes) as workspace:
        job = workspace.queue.enqueue(workspace.settings, reason="now", domain=domain)
        _written(job, options, changes)
    return _report(options, job, "The next chat runs it, or `shammah train now --wait`.")


def resume(options: Namespace) -> int:
    if options.name is not None:
        from shammah.cli.recipes import go_on

        return go_on(options)
    _check_trace(options)
    if options.wait:
        return asyncio.run(_run_here(options, _resumed))
    with open_workspace(options) as workspace:
        job = workspace.queue.resumable()
        if job is None:
            raise TrainingError("No training job was interrupted.")
        job = workspace.queue.requeue(job.id)
    return _report(options, job, "The next chat runs it, or `shammah train now --wait`.")


def rebuild(options: Namespace) -> int:
    _check_trace(options)
    if options.wait:
        return asyncio.run(_run_here(options, lambda trainer: trainer.rebuild()))
    with open_workspace(options) as workspace:
        job = workspace.queue.rebuild(workspace.settings)
    return _report(options, job, "The next chat runs it, or `shammah train now --wait`.")


def status(options: Namespace) -> int:
    from shammah.learning.status import TrainingStatus, status_from, status_of_folder

    with open_workspace(options) as workspace:
        job = workspace.queue.current()
        state = workspace.feedback.state()
        if job is None:
            running = TrainingStatus()
        elif job.status == "running":
            running = status_of_folder(job.folder, job=job.id, examples=job.examples)
        else:
            running = status_from("queued", job=job.id, examples=job.examples, progress=None)
    if options.json:
        emit({**asdict(running), "buffer": {"count": state.count, "weight": state.weight}})
        return 0
    if running.active:
        say(pairs(wording.training(running), coloured=coloured()))
    else:
        say("No training job is queued or running.")
    say(wording.buffer(state))
    return 0


def plan(options: Namespace) -> int:
    with open_workspace(options) as workspace:
        planned = workspace.plan()
    if options.json:
        emit(planned.to_dict())
    else:
        say(wording.plan(planned, coloured=coloured()))
    return 0


def queue(options: Namespace) -> int:
    with open_workspace(options) as workspace:
        jobs = workspace.queue.list()
    if options.json:
        emit(jobs)
    elif jobs:
        say(wording.jobs_table(jobs, coloured=coloured()))
    else:
        tell("No training job has been queued yet.")
    return 0


def cancel(options: Namespace) -> int:
    return asyncio.run(_cancel(options))


async def _cancel(options: Namespace) -> int:
    assistant = _assistant(options)
    try:
        job = await (await assistant.trainer()).cancel()
    finally:
        await assistant.close()
    return _report(options, job, "Its lessons are in the buffer.")


async def _resumed(trainer: Trainer) -> Job:
    held = await asyncio.to_thread(trainer.queue.resumable)
    if held is None:
        raise TrainingError("No training job was interrupted.")
    return await trainer.resume(held.id)


async def _run_here(
    options: Namespace,
    ask: Callable[[Trainer], Awaitable[Job]],
    changes: dict[str, Any] | None = None,
) -> int:
    """Get a job from the trainer, run it in this process, and report its end."""
    assistant = _assistant(options, changes)
    try:
        trainer = await assistant.trainer()
        job = await ask(trainer)
        trace = _trace_of(options)
        before = _written_at(trace)
        if trace is not None:
            trainer.traces[job.id] = trace
        with _table(job, "rich" in assistant.settings.tracking.loggers) as shown:
            job = await _watch(trainer, job, live=sys.stderr.isatty() and not shown)
        if trace is not None and _written_at(trace) == before:
            tell(f"No timeline was written: the worker of job {job.id} was not started from here.")
    except asyncio.CancelledError:
        tell("Interrupted. `shammah train resume --wait` goes on, and so does the next chat.")
        raise
    finally:
        await assistant.close()
    if options.json:
        emit(job)
    elif job.status == "done":
        say(wording.job_done(job))
        if getattr(options, "report", False):
            from shammah.learning.job import JobSpec

            say_flow(paths_of(options), JobSpec.read(job.folder).run_name)
    if job.status != "done":
        raise TrainingError(wording.job_done(job))
    return 0


@contextmanager
def _table(job: Job, wanted: bool) -> Iterator[bool]:
    """A table of the run on stderr while inside, if it is wanted."""
    if not wanted:
        yield False
        return
    from rich.console import Console

    from shammah.tracking.loggers.live import LiveLogger
    from shammah.tracking.telemetry import attached

    console = Console(stderr=True, no_color=not coloured(sys.stderr) or None)
    logger = LiveLogger(f"training job {job.id}", console, blocks=unicode_output(sys.stderr))

    def show(name: str, measured: Mapping[str, int | float], about: Mapping[str, Any]) -> None:
        if about.get("job") == job.id:
            figures = {key: value for key, value in measured.items() if key in SHOWN}
            logger.log_metrics(figures, int(measured["step"]))

    try:
        with attached("table", ["training.step", "training.progress"], show):
            yield True
    finally:
        logger.close()


async def _watch(trainer: Trainer, job: Job, *, live: bool) -> Job:
    """Wait for a job's end, with its progress on one line where that is wanted."""
    waiting = asyncio.create_task(trainer.wait(job.id))
    while not waiting.done():
        if live:
            line = training_progress(trainer.status())[: columns() - 1]
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()
        await asyncio.wait([waiting], timeout=LOOK_SECONDS)
    if live:
        sys.stderr.write("\r\x1b[K")
    return await waiting


def _check_trace(options: Namespace) -> None:
    """Say at once what is wrong with `--trace`.

    Raises:
        UsageError: nobody waits, or there is no place for the file.
    """
    trace = _trace_of(options)
    if trace is None:
        return
    if not options.wait:
        raise UsageError(
            "--trace writes what the worker started here does: it needs --wait.",
            hint="`shammah config set tracking.trace true` writes one into each job's folder.",
        )
    if trace.is_dir() or not trace.parent.is_dir():
        raise UsageError(f"--trace takes a file in a folder that is there, not {trace}.")


def _trace_of(options: Namespace) -> Path | None:
    return None if options.trace is None else Path(options.trace).expanduser().absolute()


def _written_at(file: Path | None) -> int | None:
    try:
        return None if file is None else file.stat().st_mtime_ns
    except OSError:
        return None


def _domain(given: str | None) -> str | None:
    """What `--domain` says.

    Raises:
        UsageError: it is no name for a domain.
    """
    if given is None:
        return None
    from shammah.settings import domain_name

    try:
        return domain_name(given)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _tracking(options: Namespace) -> dict[str, Any]:
    """The settings that `--logger`, `--run-name`, `--run-group`, `--run-id` and `--tag` stand
    for."""
    loggers = options.logger
    if loggers is not None and "none" in loggers:
        if len(loggers) > 1:
            raise UsageError("--logger none leaves no room for another one.")
        loggers = []
    changes = {
        "tracking.loggers": loggers,
        "tracking.name": options.run_name,
        "tracking.group": options.run_group,
        "tracking.run_id": options.run_id,
        "tracking.tags": options.tag,
    }
    return {key: value for key, value in changes.items() if value is not None}


def _hooks(options: Namespace) -> dict[str, Any]:
    """The setting that `--hooks` and `--report` stand for. A comma before `exploding=` or
    `vanishing=` is between thresholds, not between hooks."""
    if options.hooks is None and not options.report:
        return {}
    given = options.hooks
    if given is None:
        given = ",".join(settings_of(paths_of(options)).training.hooks)
    names = [name.strip() for name in re.split(r",(?!\s*(?:exploding|vanishing)=)", given)]
    names = list(dict.fromkeys(name for name in names if name))
    if options.report and HOOK not in names:
        names.append(HOOK)
    return {"training.hooks": names}


def _written(job: Job, options: Namespace, changes: dict[str, Any]) -> Job:
    """The job, if it is written down and looked at as the options say: it may have been queued
    before.

    Raises:
        TrainingError: it is otherwise.
    """
    if changes:
        from shammah.learning.job import JobSpec

        wanted, spec = settings_of(paths_of(options), changes), JobSpec.read(job.folder)
        if spec.tracking != wanted.tracking or spec.training.hooks != wanted.training.hooks:
            raise TrainingError(
                f"Training job {job.id} is {job.status} already, with other loggers or hooks.",
                hint="Leave these options out to wait for it, or `shammah train cancel` first.",
            )
    return job


def _assistant(options: Namespace, changes: dict[str, Any] | None = None) -> Assistant:
    paths = paths_of(options)
    settings = settings_of(paths, {**(changes or {}), **log_changes(options)})
    start_log(paths, settings)
    return Assistant(settings, paths, train=False, on_notice=_notice)


def _notice(notice: Notice) -> None:
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""
    sys.stderr.write(clear)
    tell(notice.text)


def _report(options: Namespace, job: Job, remark: str) -> int:
    if options.json:
        emit(job)
    else:
        say(wording.queued(job))
        tell(remark)
    return 0
