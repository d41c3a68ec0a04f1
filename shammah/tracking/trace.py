"""Where the time of this process goes, as a file that Perfetto and chrome://tracing open.

    with tracing(Path("trace.json")):
        with timed("forward", tokens=512): ...

What is timed anywhere in the process lands in the one trace that is open; where none is, `timed`
costs a call and nothing is kept. Each slice is written by one call of the system as it ends, so
that a killed process leaves all but its last ones: the JSON array then lacks its closing bracket,
which both viewers allow. Stages, epochs and the figures of steps come from `telemetry`. Knows names
and numbers; no word of a conversation is given to it.

The format: "Trace Event Format" of the Chromium project, JSON array form, times in microseconds.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from shammah.files import storage_error
from shammah.tracking import telemetry

__all__ = ["Trace", "timed", "tracing", "tracing_on"]

log = logging.getLogger("shammah")

HANDLER = "trace"
EVENTS = (
    "workflow.start", "workflow.stop", "workflow.exception",
    "stage.start", "stage.stop", "stage.exception",
    "training.epoch", "training.step", "training.eval",
)  # fmt: skip
CURVES = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "learned")
"""Figures that are drawn as curves above the slices."""

_NOTHING = nullcontext()
_current: Trace | None = None


def timed(name: str, **about: str | int | float) -> AbstractContextManager[None]:
    """A slice of the trace that is open, from now until the block ends.

    Args:
        about: what the viewer shows of the slice.
    """
    trace = _current
    return _NOTHING if trace is None else trace.slice(name, about)


def tracing_on() -> bool:
    """Whether a trace is open: whether it is worth waiting for a device to have finished."""
    return _current is not None


@contextmanager
def tracing(path: Path | None, process: str = "shammah") -> Iterator[None]:
    """Write a trace while inside; None writes none.

    Args:
        path: a file, which is written anew (0600).
        process: what the viewer calls this process.

    Raises:
        StorageError: it cannot be written.
        RuntimeError: another trace is open in this process.
    """
    global _current
    if path is None:
        yield
        return
    if _current is not None:
        raise RuntimeError("A trace is being written already.")
    trace = Trace(path, process)
    with telemetry.attached(HANDLER, EVENTS, trace.told):
        _current = trace
        try:
            yield
        finally:
            _current = None
            trace.close()


class Trace:
    """A trace file being written; may be used by several threads.

    Raises:
        StorageError: the file cannot be written.
    """

    def __init__(self, path: Path, process: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._began = time.perf_counter_ns()
        self._pid = os.getpid()
        self._threads: set[int] = set()
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            self._file: int | None = os.open(path, flags, 0o600)
            about = json.dumps(self._event("M", "process_name", args={"name": process}))
            os.write(self._file, f"[\n{about}".encode())
        except OSError as error:
            raise storage_error(error, path) from error

    @contextmanager
    def slice(self, name: str, about: Mapping[str, Any]) -> Iterator[None]:
        """A slice from now until the block ends."""
        began = self._now()
        try:
            yield
        finally:
            self._write(self._event("X", name, ts=began, dur=self._now() - began, args=about))

    def told(
        self, name: str, measured: Mapping[str, int | float], about: Mapping[str, Any]
    ) -> None:
        """Write down an event of `telemetry`."""
        kind, _, word = name.partition(".")
        if kind in ("workflow", "stage"):
            # Begun and ended apart, so that one that was killed in the middle is seen as well.
            self._write(self._event("B" if word == "start" else "E", str(about[kind]), args=about))
        elif name == "training.step":
            for curve, value in _finite(measured).items():
                if curve in CURVES:
                    shown = {curve: value}
                    self._write(self._event("C", curve.replace("_", " "), args=shown))
        else:
            self._write({**self._event("i", word, args=_finite(measured)), "s": "p"})

    def close(self) -> None:
        """End the array."""
        with self._lock:
            file, self._file = self._file, None
            if file is not None:
                try:
                    os.write(file, b"\n]\n")
                    os.close(file)
                except OSError as error:
                    log.warning("the end of the trace %s was not written: %s", self._path, error)

    def _now(self) -> float:
        """Microseconds since the trace began."""
        return (time.perf_counter_ns() - self._began) / 1000

    def _event(self, phase: str, name: str, **more: Any) -> dict[str, Any]:
        thread = threading.get_native_id()
        return {
            "name": name, "ph": phase, "ts": self._now(), "pid": self._pid, "tid": thread, **more,
        }  # fmt: skip

    def _write(self, event: Mapping[str, Any]) -> None:
        events = [event]
        if event["tid"] not in self._threads:
            self._threads.add(event["tid"])
            named = {"name": threading.current_thread().name}
            events.insert(0, self._event("M", "thread_name", args=named))
        # One call for whole events, so that none is torn.
        data = "".join(",\n" + json.dumps(each) for each in events).encode()
        with self._lock:
            if self._file is None:
                return
            try:
                os.write(self._file, data)
            except OSError as error:
                log.warning("nothing more is written to the trace %s: %s", self._path, error)
                os.close(self._file)
                self._file = None


def _finite(measured: Mapping[str, int | float]) -> dict[str, int | float]:
    """JSON has no number for the others."""
    return {name: value for name, value in measured.items() if math.isfinite(value)}
