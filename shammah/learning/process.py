"""One worker process as its supervisor sees it: start, listen, stop, let run, end.

Knows how to talk to a process. What its events mean for the job is the supervisor's business.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import psutil

from shammah.learning.job import STDERR, Event, parse_event

COMMAND: tuple[str, ...] = (sys.executable, "-P", "-X", "utf8", "-m", "shammah.learning.worker")
"""How the worker is started; `-P` keeps the user's current folder out of its imports."""

RUBBISH_LINES = 20
"""Lines that are no events before a worker is given up."""

_LINE_BYTES = 1 << 20
_STDERR_BYTES = 1 << 20
_TAIL_BYTES = 8192


class RubbishError(Exception):
    """Raised when a worker writes what is not events; the text is an excerpt."""


class WorkerProcess:
    """A running worker. Made by `start`."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self._process = process
        self._psutil: psutil.Process | None = None
        with suppress(psutil.Error):
            self._psutil = psutil.Process(process.pid)
        self._suspended = False
        self._rubbish = 0
        self._stderr_tail = b""
        self._stderr = asyncio.create_task(self._drain_stderr(folder / STDERR))

    @classmethod
    async def start(
        cls,
        folder: Path,
        *,
        threads: int,
        nice: int,
        command: Sequence[str] = COMMAND,
        options: Sequence[str] = (),
    ) -> WorkerProcess:
        """Start a worker on a job folder.

        The worker dies with the thread that calls this (Linux), so that a chat that is killed
        leaves nothing behind.

        Args:
            options: further options of the worker.

        Raises:
            OSError: the process cannot be started.
        """
        process = await _spawn([*command, str(folder), *_limits(threads, nice), *options])
        return cls(process, folder)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, minus the signal that killed it, or None while it runs."""
        return self._process.returncode

    @property
    def suspended(self) -> bool:
        return self._suspended

    @property
    def stderr_tail(self) -> str:
        """The end of what it wrote to stderr."""
        return self._stderr_tail.decode("utf-8", "replace").strip()

    def suspend(self) -> None:
        """Stop it where it is. It keeps its memory and gives up the processor."""
        if not self._suspended and self._psutil is not None and self.returncode is None:
            with suppress(psutil.Error):
                self._psutil.suspend()
                self._suspended = True

    def resume(self) -> None:
        """Let it go on."""
        if self._suspended and self._psutil is not None:
            with suppress(psutil.Error):
                self._psutil.resume()
        self._suspended = False

    def interrupt(self) -> None:
        """Ask it to end cleanly. A stopped process would not hear, so it is resumed first."""
        self.resume()
        with suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        """End it at once, stopped or not."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def wait(self) -> int:
        """Wait until it has ended and all its output is read; its exit code."""
        # A full pipe that nobody reads would keep it from ending.
        stdout = asyncio.create_task(self._discard_stdout())
        try:
            code = await self._process.wait()
            # A grandchild that inherited the pipes could hold them open for ever.
            await asyncio.wait({stdout, self._stderr}, timeout=1.0)
        finally:
            stdout.cancel()
        self._stderr.cancel()
        return code

    async def events(self) -> AsyncIterator[Event]:
        """Its events as they come, to the end of its output.

        Raises:
            RubbishError: more than `RUBBISH_LINES` lines were something else.
        """
        async for line in self._lines():
            event = parse_event(line)
            if event is not None:
                yield event
            elif line.strip():
                self._rubbish += 1
                if self._rubbish > RUBBISH_LINES:
                    raise RubbishError(line[:80].decode("utf-8", "backslashreplace"))

    async def _lines(self) -> AsyncIterator[bytes]:
        assert self._process.stdout is not None
        pending = b""
        while chunk := await self._process.stdout.read(65536):
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                yield line
            if len(pending) > _LINE_BYTES:
                raise RubbishError(pending[:80].decode("utf-8", "backslashreplace"))
        if pending:
            yield pending

    async def _discard_stdout(self) -> None:
        assert self._process.stdout is not None
        while await self._process.stdout.read(65536):
            pass

    async def _drain_stderr(self, path: Path) -> None:
        assert self._process.stderr is not None
        written = 0
        while chunk := await self._process.stderr.read(65536):
            self._stderr_tail = (self._stderr_tail + chunk)[-_TAIL_BYTES:]
            if written < _STDERR_BYTES:
                with suppress(OSError), _append(path) as file:
                    file.write(chunk[: _STDERR_BYTES - written])
            written += len(chunk)


def end_orphan(pid: int | None, folder: Path) -> bool:
    """Kill the worker that a dead supervisor left on a job folder, stopped or running.

    A reused pid is told apart by its command line. Returns whether there was one.
    """
    if pid is None:
        return False
    try:
        process = psutil.Process(pid)
        line = process.cmdline()
        if str(folder) not in line or not any("worker" in part for part in line):
            return False
        process.kill()
        with suppress(psutil.TimeoutExpired):
            process.wait(timeout=5)
    except psutil.Error:
        return False
    return True


def signal_name(code: int) -> str:
    """`SIGKILL` for the exit code -9."""
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


def _append(path: Path) -> BinaryIO:
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    return os.fdopen(handle, "ab")


class WorkerInWaiting:
    """A worker that has imported all it needs and waits for a job: begun when one is about to come,
    so that the job need not wait for it. It ends by itself after a while without one.

    Args:
        command: how a worker is started.
    """

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self._command = command
        self._process: asyncio.subprocess.Process | None = None
        self._limits: tuple[int, int] | None = None
        self._calling = asyncio.Lock()

    async def call(self, *, threads: int, nice: int) -> None:
        """See that one is there, or on its way; with these limits.

        Raises:
            OSError: the process cannot be started.
        """
        async with self._calling:
            there = self._process is not None and self._process.returncode is None
            if there and self._limits == (threads, nice):
                return
            await self.dismiss()
            self._process = await _spawn(
                [*self._command, "--wait", *_limits(threads, nice)], asyncio.subprocess.PIPE
            )
            self._limits = (threads, nice)

    async def begin(
        self, folder: Path, *, threads: int, nice: int, options: Sequence[str] = ()
    ) -> WorkerProcess | None:
        """Give it a job; None where there is none with these limits, or it has just ended."""
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return None
        if process.returncode is not None or self._limits != (threads, nice):
            _end(process)
            return None
        try:
            process.stdin.write(json.dumps([str(folder), *options]).encode() + b"\n")
            await process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            return None
        process.stdin.close()
        return WorkerProcess(process, folder)

    async def dismiss(self) -> None:
        """End it, if it is there."""
        process, self._process = self._process, None
        if process is not None:
            _end(process)
            await process.wait()


def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()


def _limits(threads: int, nice: int) -> list[str]:
    return ["--threads", str(threads), "--nice", str(nice), "--parent", str(os.getpid())]


async def _spawn(
    command: Sequence[str], stdin: int = asyncio.subprocess.DEVNULL
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *command,
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=_environment(),
        start_new_session=True,
    )


def _environment() -> dict[str, str]:
    # The program's own folder comes first on the path: it need not be installed.
    package = str(Path(__file__).resolve().parents[2])
    inherited = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([package, inherited] if inherited else [package]),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


class Stopwatch:
    """Seconds that count only while it runs."""

    def __init__(self) -> None:
        self._total = 0.0
        self._since: float | None = time.monotonic()

    def run(self, running: bool) -> None:
        """Go on, or stand still."""
        now = time.monotonic()
        if self._since is not None:
            self._total += now - self._since
        self._since = now if running else None

    @property
    def seconds(self) -> float:
        since = self._since
        return self._total + (time.monotonic() - since if since is not None else 0.0)
