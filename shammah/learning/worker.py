"""The worker process: `python -m shammah.learning.worker JOB_DIR`.

Reads one job folder, trains, writes one job folder, prints its events as JSON lines. Never opens
the database and knows no supervisor. With `--wait` it imports what it needs and then reads a line
from its input: the other arguments, as a JSON list. Only the standard library is imported at the
top: the process must be able to die with its parent before anything slow begins.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from shammah.learning.job import Event, Failed

_PR_SET_PDEATHSIG = 1
LONGEST_WAIT = 900.0
"""Seconds after which a worker that nobody has work for gives its memory back."""


class Interrupted(BaseException):
    """Raised by SIGTERM where nothing is worth a checkpoint yet."""


class Signals:
    """SIGTERM: ends the process while it sets up, and only leaves word while it trains."""

    def __init__(self) -> None:
        self.stop = False
        self.setting_up = False
        signal.signal(signal.SIGTERM, self._on_signal)
        # Ctrl-C in the terminal is the chat's; it says what it means with SIGTERM.
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stop = True
        if self.setting_up:
            raise Interrupted


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one job; the exit code says how it ended (see `job.EXIT_CODES`)."""
    parser = argparse.ArgumentParser(prog="shammah.learning.worker", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="JOB_DIR", nargs="?")
    parser.add_argument("--wait", action="store_true", help="for the other arguments, on its input")
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    parser.add_argument("--nice", type=int, default=0)
    parser.add_argument("--trace", type=Path, metavar="FILE", help="where its time goes")
    parser.add_argument("--log", type=json.loads, metavar="JSON", help="of `start_logging`")
    parser.add_argument("--parent", type=int, default=0, help="end when this process does")
    given = parser.parse_args(arguments)
    os.umask(0o077)
    _die_with(given.parent)
    out = _own_stdout()
    _set_environment(given)
    if given.wait:
        given = parser.parse_args(_what_to_do(), argparse.Namespace(**vars(given)))
    if given.folder is None:
        parser.error("which job?")
    signals = Signals()
    alive = {"event": "alive", "time": time.time(), "pid": os.getpid()}
    _write(out, given.folder, json.dumps(alive) + "\n")
    code = _run(given, signals, out)
    sys.stdout.flush()
    sys.stderr.flush()
    # All is written; taking the libraries down would only cost time.
    os._exit(code)


def _set_environment(given: argparse.Namespace) -> None:
    if given.nice and hasattr(os, "nice"):
        os.nice(given.nice)
    # These are read once, when torch is imported. Threads that spin while they wait for each other
    # are ruinous where somebody else uses the cores too (measured: 7x slower); asleep they lose
    # little.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if given.threads:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = str(given.threads)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ[name] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _what_to_do() -> list[str]:
    """The arguments that come when there is work; ends the process where none come."""
    import peft  # noqa: F401
    import transformers  # noqa: F401

    import shammah.learning.session  # noqa: F401

    line = b""
    if select.select([sys.stdin], [], [], LONGEST_WAIT)[0]:
        line = sys.stdin.buffer.readline()
    if not line:
        os._exit(0)
    # Nothing more is said to it, and what it starts has nothing to listen to.
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return [str(argument) for argument in json.loads(line)]


def _run(given: argparse.Namespace, signals: Signals, out: int) -> int:
    folder: Path = given.folder
    try:
        signals.setting_up = True
        if signals.stop:
            raise Interrupted
        from shammah.learning.job import EXIT_CODES, event_line

        if given.log:
            _start_log(given.log)
        from shammah.learning.session import run_job

        lock = threading.Lock()  # loggers speak up from threads of their own

        def tell(event: Event) -> None:
            with lock:
                _write(out, folder, event_line(event))

        failed = run_job(
            folder, threads=given.threads, signals=signals, tell=tell, trace=given.trace
        )
        if failed is None:
            return 0
    except BaseException as error:
        signals.setting_up = False
        from shammah.learning.job import EXIT_CODES, event_line

        failed = _failure(error)
        if failed.kind in ("crash", "out_of_memory"):
            traceback.print_exc()
            if given.log:
                logging.getLogger("shammah").error("the worker failed", exc_info=error)
    _write(out, folder, event_line(failed))
    return EXIT_CODES[failed.kind]


def _start_log(log: dict[str, Any]) -> None:
    from shammah.feedback.secrets import redacted
    from shammah.tracking.logs import start_logging

    start_logging(Path(log.pop("path")), **log, redact=redacted, worker=True)


def _failure(error: BaseException) -> Failed:
    from shammah.errors import DivergenceError, ShammahError
    from shammah.learning.job import Failed

    if isinstance(error, Interrupted):
        return Failed(kind="interrupted", message="It was told to end.")
    if _is_out_of_memory(error):
        return Failed(kind="out_of_memory", message="There was not enough memory to train.")
    if isinstance(error, ShammahError):
        kind = "divergence" if isinstance(error, DivergenceError) else "invalid"
        return Failed(kind=kind, message=error.message, hint=error.hint)
    first = (str(error).strip().splitlines() or [""])[0]
    return Failed(kind="crash", message=f"{type(error).__name__}: {first}")


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    # The CPU allocator raises a plain RuntimeError, worded by the platform.
    texts = ("can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


def _die_with(parent: int) -> None:
    """Let the kernel kill this process when its parent dies, even while it is stopped (Linux)."""
    if not parent:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if hasattr(os, "getppid") and os.getppid() != parent:
        os._exit(1)  # it died before we asked


def _own_stdout() -> int:
    """A descriptor for events alone: what libraries print goes to stderr."""
    events = os.dup(1)
    os.dup2(2, 1)
    return events


def _write(out: int, folder: Path, line: str) -> None:
    """One event: into the job's own record, and to the supervisor."""
    data = line.encode()
    record = os.open(folder / "events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(record, data)
    finally:
        os.close(record)
    try:
        while data:
            data = data[os.write(out, data) :]
    except BrokenPipeError:
        os._exit(1)  # nobody listens any more


if __name__ == "__main__":
    main()
