"""Several loggers as one that never waits and never fails.

Each logger has a thread and a bounded queue of its own, so that a slow tool holds up neither
training nor the other tools, and one that fails is left out from then on. What a full queue could
not take is counted. Whatever went wrong is told in a line. Knows loggers; not the tools.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shammah.errors import ShammahError
from shammah.ports.metrics_store import Number
from shammah.tracking.loggers.base import Artifact, Outcome, RunLogger

log = logging.getLogger("shammah")

CAPACITY = 10_000
"""Records that wait for one logger at most."""
CLOSE_SECONDS = 30.0
"""What all loggers together get to finish when the run has ended."""

Open = Callable[[], RunLogger]
Call = Callable[[RunLogger], object]


class Multiplexer(RunLogger):
    """Passes everything on to several loggers.

    Args:
        immediate: loggers that are called at once, in the thread that logs.
        queued: by name, what opens a logger. It is opened in its own thread, so that a server that
            does not answer holds nothing up.
        tell: is given a line about each logger that fails or loses something; called from any
            thread.
    """

    tool = "all"

    def __init__(
        self,
        immediate: Sequence[RunLogger],
        queued: Mapping[str, Open],
        *,
        tell: Callable[[str], object] = lambda text: None,
        capacity: int = CAPACITY,
    ) -> None:
        self._tell = tell
        self._immediate = list(immediate)
        self._lanes = [_Lane(name, made, tell, capacity) for name, made in queued.items()]
        self._closed = False

    def log_metrics(self, metrics: Mapping[str, Number], step: int) -> None:
        kept = dict(metrics)
        self._all(lambda logger: logger.log_metrics(kept, step))

    def log_hparams(self, hparams: Mapping[str, Any]) -> None:
        self._all(lambda logger: logger.log_hparams(hparams))

    def log_text(self, name: str, text: str, step: int | None = None) -> None:
        self._all(lambda logger: logger.log_text(name, text, step))

    def log_artifact(self, artifact: Artifact) -> None:
        self._all(lambda logger: logger.log_artifact(artifact))

    def sync(self, seconds: float = CLOSE_SECONDS) -> None:
        """Return when all so far is where it belongs, or after some seconds."""
        self._all(lambda logger: logger.sync())
        until = time.monotonic() + seconds
        for lane in self._lanes:
            lane.wait(until)

    @property
    def url(self) -> str | None:
        return next(iter(self.urls.values()), None)

    @property
    def urls(self) -> dict[str, str]:
        """Where to look, by tool; of those that are open by now."""
        loggers = [*self._immediate, *(lane.logger for lane in self._lanes if lane.logger)]
        return {logger.tool: url for logger in loggers if (url := logger.url)}

    @property
    def dropped(self) -> dict[str, int]:
        """Records that a full queue could not take, by tool."""
        return {lane.name: lane.dropped for lane in self._lanes if lane.dropped}

    def close(self, outcome: Outcome = "done", seconds: float = CLOSE_SECONDS) -> None:
        """End all of them; those that take longer than some seconds are left alone."""
        if self._closed:
            return
        self._closed = True
        self._at_once(lambda logger: logger.close(outcome))
        for lane in self._lanes:
            lane.end(outcome)
        until = time.monotonic() + seconds
        for lane in self._lanes:
            lane.join(until)

    def _all(self, call: Call) -> None:
        if self._closed:
            return
        self._at_once(call)
        for lane in self._lanes:
            lane.put(call)

    def _at_once(self, call: Call) -> None:
        for logger in list(self._immediate):
            try:
                call(logger)
            except Exception as error:
                self._immediate.remove(logger)
                self._tell(_failure(logger.tool, error))


class _Lane:
    """One logger with its queue and its thread."""

    def __init__(self, name: str, made: Open, tell: Callable[[str], object], capacity: int) -> None:
        self.name = name
        self.dropped = 0
        self.logger: RunLogger | None = None
        self._tell = tell
        self._capacity = capacity
        self._waiting: deque[Call] = deque()
        self._change = threading.Condition()
        self._busy = True
        self._ended: Outcome | None = None
        self._dead = False
        # A daemon: a tool that hangs must not keep the process.
        self._thread = threading.Thread(
            target=self._work, args=(made,), name=f"logger {name}", daemon=True
        )
        self._thread.start()

    def put(self, call: Call) -> None:
        with self._change:
            if self._dead or self._ended:
                return
            if len(self._waiting) >= self._capacity:
                self.dropped += 1
                return
            self._waiting.append(call)
            self._change.notify_all()

    def wait(self, until: float) -> None:
        """Return when the queue is empty and nothing is being written, or at a time."""
        with self._change:
            self._change.wait_for(
                lambda: self._dead or not (self._waiting or self._busy),
                max(0.0, until - time.monotonic()),
            )

    def end(self, outcome: Outcome) -> None:
        with self._change:
            self._ended = outcome
            self._change.notify_all()

    def join(self, until: float) -> None:
        self._thread.join(max(0.0, until - time.monotonic()))
        with self._change:
            unwritten = len(self._waiting)
            self._dead = True
        if self._thread.is_alive():
            self._tell(
                f"{self.name} did not finish in time; {unwritten} records and what it was writing "
                "may be missing there."
            )
        if self.dropped:
            self._tell(
                f"{self.name} was too slow: {self.dropped} records are missing there. "
                "`shammah runs show` has them all."
            )

    def _work(self, made: Open) -> None:
        try:
            self.logger = made()
            while (call := self._next()) is not None:
                call(self.logger)
        except BaseException as error:  # Some clients end with SystemExit.
            self._die(error)
            outcome: Outcome = "failed"
        else:
            outcome = self._ended or "done"
        if self.logger is not None:
            # One that failed is closed too: it may hold a connection or a process.
            try:
                self.logger.close(outcome)
            except BaseException as error:
                if not self._dead:
                    self._die(error)

    def _next(self) -> Call | None:
        with self._change:
            self._busy = False
            self._change.notify_all()
            self._change.wait_for(lambda: self._waiting or self._ended or self._dead)
            if self._dead or not self._waiting:
                return None
            self._busy = True
            return self._waiting.popleft()

    def _die(self, error: BaseException) -> None:
        with self._change:
            self._dead = True
            self._waiting.clear()
            self._change.notify_all()
        with contextlib.suppress(Exception):
            self._tell(_failure(self.name, error))


def _failure(name: str, error: BaseException) -> str:
    """The line that is told of a logger that failed; the log has the rest."""
    log.warning("the logger %s failed and is left out", name, exc_info=error)
    if isinstance(error, ShammahError):
        said = error.message + (f" {error.hint}" if error.hint else "")
    else:
        first = (str(error).strip().splitlines() or [""])[0]
        said = f"{type(error).__name__}: {first}"
    return f"Nothing more is written to {name}: {said}"
