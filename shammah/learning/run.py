"""One worker at work on one job: who may stop it, when it must end, and why it failed.

Knows the process and its events. What follows for the job is the supervisor's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from shammah.learning.job import Alive, Event, Failed, Progress, Start
from shammah.learning.process import Stopwatch, WorkerProcess, signal_name
from shammah.learning.queue import CANCEL, Job
from shammah.learning.status import TrainingState

WATCH_SECONDS = 0.1
"""How often a running worker is looked after."""
CANCEL_SECONDS = 5.0
"""What a worker gets to end by itself before it is killed."""

HINTS: dict[str, str] = {
    "out_of_memory": "Lower training.micro_batch_tokens or lora.rank, or free some memory.",
    "divergence": "Lower training.learning_rate.",
    "timeout": "Raise training.timeout_minutes, or lower training.epochs.",
}


class Run:
    """A worker at work on a job."""

    def __init__(
        self,
        job: Job,
        worker: WorkerProcess,
        *,
        somebody_streams: Callable[[], bool],
        on_change: Callable[[], None],
    ) -> None:
        self.job = job
        self.progress: Progress | None = None
        self.cancelled = False
        self._worker = worker
        self._somebody_streams = somebody_streams
        self._on_change = on_change
        self._clock = Stopwatch()
        self._alive = self._began = self._ending = self._timed_out = False
        self._told: Failed | None = None
        self._killing: asyncio.TimerHandle | None = None

    @property
    def state(self) -> TrainingState:
        if self._worker.suspended:
            return "paused"
        return "running" if self._began else "starting"

    def take(self, event: Event) -> None:
        """Note what an event says."""
        if isinstance(event, Alive):
            self._alive = True
            self.look_after()
        elif isinstance(event, Start):
            self._began = True
        elif isinstance(event, Progress):
            self._began, self.progress = True, event
        elif isinstance(event, Failed):
            self._told = event
        self._on_change()

    def look_after(self) -> None:
        """Stop the worker while somebody streams, let it go on when nobody does."""
        before = self._worker.suspended
        if not self._somebody_streams():
            self._worker.resume()
        elif self._alive and not self._ending:
            # Before it is alive it would not die with us, and a stopped process that nobody knows
            # of would stay for ever. One that is ending is let go.
            self._worker.suspend()
        self._clock.run(not self._worker.suspended)
        if before != self._worker.suspended:
            self._on_change()

    async def watch(self, seconds: float) -> None:
        """Look after the worker until cancelled: streams of others, cancellation, and a timeout
        that does not count the seconds in which it stood still."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            self.look_after()
            if self._ending:
                continue
            if (self.job.folder / CANCEL).exists():
                self.cancel()
            elif self._clock.seconds > seconds:
                self._timed_out = True
                self.end(CANCEL_SECONDS)

    def cancel(self) -> None:
        """End it; its work is not wanted."""
        self.cancelled = True
        self.end(CANCEL_SECONDS)

    def end(self, seconds: float) -> None:
        """Ask the worker to end, and kill it if it has not after some seconds (0: at once)."""
        self._ending = True
        if seconds <= 0:
            self._worker.kill()
            return
        self._worker.interrupt()
        if self._killing is None:
            loop = asyncio.get_running_loop()
            self._killing = loop.call_later(seconds, self._worker.kill)

    async def finish(self, seconds: float) -> int:
        """Wait until the worker has ended, kill it after some seconds; its exit code."""
        self._ending = True
        self._worker.resume()
        try:
            with suppress(TimeoutError):
                return await asyncio.wait_for(self._worker.wait(), seconds)
            self._worker.kill()
            return await self._worker.wait()
        finally:
            if self._killing is not None:
                self._killing.cancel()

    def failure(self, code: int, rubbish: str | None) -> Failed:
        """Why there is no result.

        Args:
            code: the exit code.
            rubbish: what it wrote instead of events, if it did.
        """
        if rubbish is not None:
            return Failed(
                kind="rubbish", message=f"The worker wrote rubbish instead of events: {rubbish!r}."
            )
        if self._timed_out:
            minutes = f"{self._clock.seconds / 60:.3g} minutes"
            return Failed(
                kind="timeout",
                message=f"It was not done after {minutes}.",
                hint=HINTS["timeout"],
            )
        if self._told is not None:
            hint = self._told.hint or HINTS.get(self._told.kind)
            return self._told.model_copy(update={"hint": hint})
        if code < 0:
            killed = signal_name(code) == "SIGKILL"
            return Failed(
                kind="killed",
                message=f"The worker process was killed ({signal_name(code)}).",
                hint=f"The system may have run out of memory. {HINTS['out_of_memory']}"
                if killed
                else None,
            )
        last = self._worker.stderr_tail.splitlines()[-1:] or ["it wrote nothing"]
        return Failed(
            kind="crash",
            message=f"The worker process ended with code {code}: {last[0]}",
            hint=f"Details are in {self.job.folder}.",
        )
