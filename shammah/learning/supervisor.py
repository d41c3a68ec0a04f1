"""The trainer of a chat: runs queued jobs one at a time in a worker process, behind the chat.

Of several processes on one data folder one trains at a time; the others see its progress. Knows
processes, the queue and the library. Does not import torch and knows nothing of models.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from shammah.adapters.library import Adapter, AdapterLibrary
from shammah.errors import ShammahError, StorageError, TrainingError
from shammah.feedback.buffer import LessonBuffer
from shammah.feedback.exchanges import ExchangeStore
from shammah.learning.job import Complete, Event, Failed, JobSpec, Remark, read_result
from shammah.learning.own_answers import keep
from shammah.learning.preparation import clear, prepare
from shammah.learning.priority import somebody_streams, streaming
from shammah.learning.process import (
    COMMAND,
    RubbishError,
    WorkerInWaiting,
    WorkerProcess,
    end_orphan,
)
from shammah.learning.publication import completed_text, publish, refused_text
from shammah.learning.queue import CANCEL, Job, JobQueue
from shammah.learning.relay import relay
from shammah.learning.run import CANCEL_SECONDS, WATCH_SECONDS, Run
from shammah.learning.status import TrainingState, TrainingStatus, status_from, status_of_folder
from shammah.learning.upkeep import Upkeep, removed_text
from shammah.paths import Paths
from shammah.settings import Settings, TrainingSettings
from shammah.storage.database import Database
from shammah.tracking.telemetry import emit

__all__ = ["Trainer", "TrainingStatus"]

log = logging.getLogger("shammah")

NoticeKind = Literal["info", "success", "warning", "error"]

POLL_SECONDS = 0.5
"""How often the queue is looked at for what other processes put in."""
STOP_SECONDS = 20.0
"""What a worker gets to write its checkpoint when the chat ends."""
TROUBLE_SECONDS = 10.0
"""How long to stand back when the database or the disk does not play along."""

Outcome = Complete | Failed | Literal["cancelled", "stopped", "not begun"]


class Trainer:
    """Runs training for one process. All methods belong to the event loop's thread."""

    def __init__(
        self,
        database: Database,
        paths: Paths,
        settings: Callable[[], Settings],
        feedback: LessonBuffer,
        library: AdapterLibrary,
        *,
        on_event: Callable[[Job, Event], None] | None = None,
        on_change: Callable[[], None] | None = None,
        on_notice: Callable[[NoticeKind, str], None] | None = None,
        on_published: Callable[[Adapter], Awaitable[None]] | None = None,
        command: Sequence[str] = COMMAND,
    ) -> None:
        """
        Args:
            settings: gives the settings as they are now.
            on_event: each event of the worker as it comes.
            on_change: `status()` changed.
            on_notice: something the user should read.
            on_published: a trained adapter is in the library (and active, if the settings say so);
                awaited before the user is told.
            command: how to start a worker; the job folder is appended.
        """
        self.queue = JobQueue(database, paths, feedback)
        self.traces: dict[int, Path] = {}
        """Where timelines of jobs go, if this process runs them."""
        self._database = database
        self._paths = paths
        self._settings = settings
        self._feedback = feedback
        self._library = library
        self._on_event = on_event or (lambda job, event: None)
        self._on_change = on_change or (lambda: None)
        self._on_notice = on_notice or (lambda kind, text: None)
        self._on_published = on_published
        self._upkeep = Upkeep(library, ExchangeStore(database), feedback, self.queue)
        self._command = tuple(command)
        self._waiting = WorkerInWaiting(self._command)
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._stop_seconds = STOP_SECONDS
        self._version: int | None = None
        self._poked = True
        self._streams = 0
        self._status = TrainingStatus()
        self._run: Run | None = None
        self._looks: set[asyncio.Task[None]] = set()

    # --- life -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to run queued jobs; returns at once. Does nothing when begun already."""
        if self._task is None:
            self._stopping.clear()
            self._task = asyncio.create_task(self._work())
            self.feedback_added()

    async def stop(self, checkpoint: bool = True) -> None:
        """End. A running job is interrupted and can go on later: from here with `checkpoint`,
        from its last checkpoint without."""
        self._stop_seconds = STOP_SECONDS if checkpoint else 0.0
        self._stopping.set()
        self._wake.set()
        if self._run is not None:
            self._run.end(self._stop_seconds)
        task, self._task = self._task, None
        await asyncio.gather(*self._looks, *([task] if task is not None else []))
        await self._waiting.dismiss()

    # --- asking -----------------------------------------------------------------------------

    def status(self) -> TrainingStatus:
        """What training is doing now, in this process or another."""
        return self._status

    async def request(
        self, reason: str = "now", *, join: bool = False, domain: str | None = None
    ) -> Job:
        """Queue one job with all lessons of the buffer (see `JobQueue.enqueue`).

        Args:
            join: if a job is queued or running already, return that one and queue nothing.
            domain: what its adapter is for; None leaves it to the settings.

        Raises:
            TrainingError: there is nothing to train on, or the other job is for another domain.
        """
        if join and (job := await asyncio.to_thread(self.queue.current)) is not None:
            return await asyncio.to_thread(self.queue.check_domain, job, domain)
        job = await asyncio.to_thread(
            self.queue.enqueue, self._settings(), reason=reason, domain=domain
        )
        self._poke()
        return job

    async def rebuild(self) -> Job:
        """Queue one job with every lesson that stands, from the base (see `JobQueue.rebuild`).

        Raises:
            TrainingError: there is no lesson, or another job is on its way.
        """
        job = await asyncio.to_thread(self.queue.rebuild, self._settings())
        self._poke()
        return job

    def feedback_added(self) -> None:
        """The buffer changed: queue a job if it is full enough. Returns at once."""
        task = asyncio.create_task(self._look_at_buffer())
        self._looks.add(task)
        task.add_done_callback(self._looks.discard)

    async def cancel(self, job_id: int | None = None) -> Job:
        """End a job, by default the running one, else the next. Its lessons go back to the buffer.

        Raises:
            TrainingError: there is no such job, or it has ended.
        """
        job = await asyncio.to_thread(self._to_cancel, job_id)
        run = self._run
        if run is not None and run.job.id == job.id:
            run.cancel()
            return await self._ended(job.id)
        if job.status == "running":
            await asyncio.to_thread(self.queue.ask_cancel, job.id)
            self._poke()
            job = await self._ended(job.id, or_ownerless=True)
        if job.status in ("done", "failed", "cancelled"):
            return job
        job = await asyncio.to_thread(
            self.queue.give_up, job.id, "cancelled", "Cancelled by the user."
        )
        await asyncio.to_thread(clear, job.folder)
        self._poke()
        return job

    async def resume(self, job_id: int) -> Job:
        """Let an interrupted job go on.

        Raises:
            TrainingError: there is no such job, or it is not interrupted.
        """
        job = await asyncio.to_thread(self.queue.requeue, job_id)
        self._poke()
        return job

    async def wait(self, job_id: int) -> Job:
        """Wait until a job has ended, whichever process runs it; if none does, this one does.

        Raises:
            TrainingError: there is no such job.
        """
        await self.start()
        return await self._ended(job_id)

    @property
    def busy(self) -> bool:
        """Whether this process runs a job."""
        return self._run is not None

    # --- the chat goes first ----------------------------------------------------------------

    @contextmanager
    def answering(self) -> Iterator[None]:
        """While inside, the worker stands still, whichever process runs it. May be nested."""
        self._streams += 1
        try:
            with streaming(self._paths.data):
                if self._run is not None:
                    self._run.look_after()
                yield
        finally:
            self._streams -= 1
            if self._run is not None:
                self._run.look_after()

    def _somebody_streams(self) -> bool:
        return self._streams > 0 or somebody_streams(self._paths.data)

    # --- the loop ---------------------------------------------------------------------------

    async def _work(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                await self._turn()
                await self._pause(POLL_SECONDS)
            except Exception as error:
                # Whatever it is, the chat goes on, and the next turn finds the job ownerless.
                log.exception("training stands still")
                self._set_status(TrainingStatus())
                self._on_notice("error", f"Training stands still: {error}")
                self._poked = True
                await self._pause(TROUBLE_SECONDS)

    async def _pause(self, seconds: float) -> None:
        if not self._stopping.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), seconds)

    def _poke(self) -> None:
        self._poked = True
        self._wake.set()

    async def _look_at_buffer(self) -> None:
        try:
            job = await asyncio.to_thread(self.queue.enqueue_if_due, self._settings())
        except ShammahError as error:
            log.exception("the buffer could not be queued")
            self._on_notice("error", f"Training was not queued: {error}")
            return
        if job is not None:
            self._poke()
        else:
            await self._expect_work()

    async def _turn(self) -> None:
        """Look at the queue, and run what is there unless another process does."""
        version = await asyncio.to_thread(self._database.data_version)
        if version == self._version and not self._poked and not self._status.active:
            return
        self._version, self._poked = version, False
        while not self._stopping.is_set():
            job = await asyncio.to_thread(self.queue.current)
            if job is None:
                self._set_status(TrainingStatus())
                return
            with self._alone() as alone:
                if not alone:
                    await self._show_other(job)
                    return
                await self._recover()
                claimed = await asyncio.to_thread(self.queue.claim)
                if claimed is not None:
                    await self._run_job(claimed)

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether nobody else trains on this data folder; inside, nobody else begins to."""
        # A lock of its own each time: one object could be taken twice.
        lock = FileLock(self._paths.data / "trainer.lock", mode=0o600, thread_local=False)
        with suppress(Timeout):
            lock.acquire(blocking=False)
        try:
            yield lock.is_locked
        finally:
            lock.release()

    async def _recover(self) -> None:
        """Take care of jobs whose process died. The lock is held: a running job has no owner."""
        for job in await asyncio.to_thread(self.queue.list, statuses=("running",)):
            await asyncio.to_thread(end_orphan, job.worker_pid, job.folder)
            result = await asyncio.to_thread(read_result, job.folder)
            if result is not None:
                try:
                    await self._publish(job, JobSpec.read(job.folder), result)
                except TrainingError as error:
                    await self._failed(job, Failed(kind="invalid", message=error.message))
                continue
            await asyncio.to_thread(
                self.queue.interrupt, job.id, "The process that ran it ended in the middle."
            )
            self._on_notice(
                "warning",
                f"Training job {job.id} ({job.examples} lessons) was interrupted: the process "
                "that ran it ended. /train now goes on with it.",
            )

    # --- one job ----------------------------------------------------------------------------

    async def _run_job(self, job: Job) -> None:
        self._set_state("starting", job)
        (job.folder / CANCEL).unlink(missing_ok=True)
        outcome: Outcome
        spec: JobSpec | None = None
        try:
            spec = await asyncio.to_thread(prepare, job, self.queue, self._feedback, self._library)
            if spec is None:
                await self._cancelled(job, "none of its lessons stands any more")
                return
            result = await asyncio.to_thread(read_result, job.folder)
            outcome = result or await self._train(job, spec)
        except (ShammahError, OSError) as error:
            log.exception("job %s could not be run", job.id)
            message, hint = getattr(error, "message", str(error)), getattr(error, "hint", None)
            outcome = Failed(kind="invalid", message=message, hint=hint)
        if isinstance(outcome, Complete) and spec is not None:
            await self._publish(job, spec, outcome)
        elif isinstance(outcome, Failed):
            await self._failed(job, outcome)
        elif outcome == "cancelled":
            await self._cancelled(job, "its lessons are back in the buffer")
        elif outcome == "not begun":
            await asyncio.to_thread(self.queue.unclaim, job.id)
        else:
            await asyncio.to_thread(self.queue.interrupt, job.id, "The chat ended.")
        self._set_status(TrainingStatus())

    async def _train(self, job: Job, spec: JobSpec) -> Outcome:
        """Run one worker from start to end."""
        while self._somebody_streams() and not self._stopping.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), WATCH_SECONDS)
        if self._stopping.is_set():
            return "not begun"
        training = spec.training
        worker = await self._worker(job, training)
        run = self._run = Run(
            job, worker, somebody_streams=self._somebody_streams, on_change=self._show
        )
        watch = asyncio.create_task(run.watch(training.timeout_minutes * 60))
        rubbish: str | None = None
        try:
            await asyncio.to_thread(self.queue.set_worker, job.id, worker.pid)
            self._say_start(spec)
            if self._stopping.is_set():
                run.end(self._stop_seconds)
            async for event in worker.events():
                run.take(event)
                relay(job.id, event)
                if isinstance(event, Remark):
                    self._on_notice("warning", event.text)
                self._on_event(job, event)
        except RubbishError as error:
            rubbish = str(error)
        finally:
            # Its output has ended, or is worthless, or we are leaving: it has to end now.
            code = await run.finish(CANCEL_SECONDS if rubbish is None else 0.0)
            watch.cancel()
            self._run = None
        result = await asyncio.to_thread(read_result, job.folder)
        if result is not None and rubbish is None:
            return result
        if run.cancelled:
            return "cancelled"
        if self._stopping.is_set():
            return "stopped"
        return run.failure(code, rubbish)

    async def _worker(self, job: Job, training: TrainingSettings) -> WorkerProcess:
        """A worker at work on a job: the one that waits, or a new one."""
        options = self._options(job)
        threads, nice = training.threads, training.nice
        waiting = await self._waiting.begin(job.folder, threads=threads, nice=nice, options=options)
        if waiting is not None:
            return waiting
        return await WorkerProcess.start(
            job.folder, threads=threads, nice=nice, command=self._command, options=options
        )

    async def _expect_work(self) -> None:
        """Have a worker ready where the buffer is about to be full."""
        settings = self._settings()
        if not settings.feedback.auto_train or self._command != COMMAND or self._run is not None:
            return
        state = await asyncio.to_thread(self._feedback.state)
        if state.nearly_reached:
            with suppress(OSError):  # the job itself will say what is wrong
                training = settings.training
                await self._waiting.call(threads=training.threads, nice=training.nice)

    def _options(self, job: Job) -> list[str]:
        """What a worker is told that is no part of its job."""
        about = {"path": str(self._paths.log), **self._settings().logging.model_dump()}
        trace = self.traces.get(job.id)
        traced = [] if trace is None else ["--trace", str(trace)]
        return ["--log", json.dumps(about), *traced]

    async def _publish(self, job: Job, spec: JobSpec, result: Complete) -> None:
        self._set_state("publishing", job)
        mode = self._settings().adapters.activate
        refused = mode == "gate" and result.gate is not None and not result.gate.passed
        routed = spec.routed_domain is not None
        activate = mode != "never" and not refused and not routed
        # With its domain it would answer at once.
        domain = None if routed and mode == "never" else spec.training.domain or None
        try:
            adapter = await asyncio.to_thread(
                publish, job, spec, result, self._library, activate=activate, domain=domain
            )
            await asyncio.to_thread(
                self.queue.finish, job.id, adapter.name, result, set_aside=refused
            )
        except StorageError as error:
            log.exception("job %s could not be published", job.id)
            await asyncio.to_thread(self.queue.interrupt, job.id, error.message)
            self._on_notice(
                "error",
                f"Training is done, but its adapter could not be published: {error}\n"
                "It is kept: /train now tries again.",
            )
            return
        except ShammahError as error:
            await self._failed(job, Failed(kind="invalid", message=error.message, hint=error.hint))
            return
        await asyncio.to_thread(keep, job.folder, self.queue.kept_anchors(result.fingerprint))
        await asyncio.to_thread(clear, job.folder)
        if self._on_published is not None:
            try:
                await self._on_published(adapter)
            except Exception as error:
                log.exception("%s could not be swapped in", adapter.name)
                self._on_notice("error", f"{adapter.name} was not swapped in: {error}")
        if refused:
            failures = list(result.gate.failures) if result.gate else []
            emit("adapter.rejected", metadata={"adapter": adapter.name, "failures": failures})
            self._on_notice("warning", refused_text(result, adapter.name))
        else:
            self._on_notice(
                "success",
                completed_text(spec, result, adapter.name, active=activate, domain=domain),
            )
        await self.prune()

    async def prune(self) -> None:
        """Remove the worst adapters where there are more than the settings keep, and say which."""
        keep = self._settings().adapters.max_kept
        try:
            removed = await asyncio.to_thread(self._upkeep.prune, keep)
        except ShammahError as error:
            log.exception("the library could not be pruned")
            self._on_notice("warning", f"No adapter was removed, though there are many: {error}")
            return
        if removed:
            self._on_notice("info", removed_text(removed, keep))

    async def _failed(self, job: Job, failed: Failed) -> None:
        await asyncio.to_thread(self.queue.give_up, job.id, "failed", failed.message)
        await asyncio.to_thread(clear, job.folder)
        lines = [f"Background training failed: {failed.message}"]
        if failed.hint:
            lines.append(failed.hint)
        lines.append(
            f"The {job.examples} lessons are back in the buffer: further feedback tries again, "
            "or /train now."
        )
        self._on_notice("error", "\n".join(lines))

    async def _cancelled(self, job: Job, why: str) -> None:
        await asyncio.to_thread(self.queue.give_up, job.id, "cancelled", f"Cancelled: {why}.")
        await asyncio.to_thread(clear, job.folder)
        self._on_notice("info", f"Training job {job.id} was cancelled: {why}.")

    # --- looking ----------------------------------------------------------------------------

    def _to_cancel(self, job_id: int | None) -> Job:
        if job_id is not None:
            job = self.queue.get(job_id)
            if job.status in ("done", "failed", "cancelled"):
                raise TrainingError(f"Job {job.id} has ended already: it is {job.status}.")
            return job
        found = self.queue.current() or self.queue.resumable()
        if found is None:
            raise TrainingError("There is no training job to cancel.")
        return found

    async def _ended(self, job_id: int, *, or_ownerless: bool = False) -> Job:
        while True:
            job = await asyncio.to_thread(self.queue.get, job_id)
            if job.ended:
                return job
            if or_ownerless:
                with self._alone() as alone:
                    if alone:
                        await self._recover()
            await asyncio.sleep(WATCH_SECONDS)

    async def _show_other(self, job: Job) -> None:
        if job.status == "running":
            status = await asyncio.to_thread(
                status_of_folder, job.folder, job=job.id, examples=job.examples
            )
        else:
            status = status_from("queued", job=job.id, examples=job.examples, progress=None)
        self._set_status(status)

    # --- showing ----------------------------------------------------------------------------

    def _say_start(self, spec: JobSpec) -> None:
        replay = f" and {len(spec.replay)} earlier ones" if spec.replay else ""
        count = len(spec.lessons)
        self._on_notice(
            "info",
            f"Background training started on {count} lesson{'s' * (count != 1)}{replay}.",
        )
        for note in spec.notes:
            self._on_notice("info", note)

    def _set_state(self, state: TrainingState, job: Job) -> None:
        self._set_status(status_from(state, job=job.id, examples=job.examples, progress=None))

    def _show(self) -> None:
        run = self._run
        if run is not None:
            self._set_status(
                status_from(
                    run.state, job=run.job.id, examples=run.job.examples, progress=run.progress
                )
            )

    def _set_status(self, status: TrainingStatus) -> None:
        if status != self._status:
            self._status = status
            self._on_change()
