"""A Python that has imported what the command needs, and of which each command is a copy.

Importing torch and transformers takes longer than most commands do. Here they are imported once;
`os.fork` then gives each command a process of its own, with its own environment, folder, standard
streams and exit code, as if it had been started anew. As a program this file is that Python;
`Prepared` is it as tests see it.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).parents[1]
MODULES = (
    "peft",
    "shammah.assistant.live_model",
    "shammah.cli.adapters",
    "shammah.cli.ask",
    "shammah.cli.chat",
    "shammah.cli.evaluate",
    "shammah.cli.recipes",
    "shammah.cli.train",
    "shammah.learning.supervisor",
    "shammah.recipes.publishing",
    "shammah.recipes.sft",
    "shammah.training.local_client",
    "shammah.training.loops.supervised",
)
_MOST_BYTES = 1 << 17


class Prepared:
    """Runs commands, each in a process of its own; several threads may do so at once.

    Args:
        environment: what the libraries see when they are imported.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        atexit.register(self._close)

    def run(
        self, arguments: Sequence[str], environment: Mapping[str, str], given: str, seconds: float
    ) -> subprocess.CompletedProcess[str]:
        """Run `shammah` to its end, as `subprocess.run` would.

        Raises:
            subprocess.TimeoutExpired: it did not end in time, and was killed.
        """
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
            streams[0].write(given.encode())
            streams[0].seek(0)
            word, theirs = os.pipe()
            told = stack.enter_context(os.fdopen(word, "rb", buffering=0))
            request = json.dumps([list(arguments), dict(environment)]).encode()
            try:
                descriptors = [*(stream.fileno() for stream in streams), theirs]
                with self._lock:
                    socket.send_fds(self._socket, [request], descriptors)
            finally:
                os.close(theirs)
            process = int(told.readline())
            if not select.select([told], [], [], seconds)[0]:
                os.kill(process, signal.SIGKILL)
                raise subprocess.TimeoutExpired(["shammah", *arguments], seconds)
            code = int(told.readline())
            _, out, err = (_content(stream) for stream in streams)
        return subprocess.CompletedProcess(["shammah", *arguments], code, out, err)

    def _close(self) -> None:
        self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()


def _content(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode()


def main() -> None:
    """Import everything, then start a copy for each request until nobody can ask any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path[0] = str(ROOT)  # as `python -m shammah` there has it
    requests = socket.socket(fileno=int(sys.argv[1]))
    from shammah.cli.main import ENVIRONMENT

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for module in MODULES:
        import_module(module)
    assert threading.active_count() == 1, "a copy has one thread, the one that forks"
    gc.freeze()  # what is here stays shared with the copies
    running: dict[int, tuple[int, int]] = {}  # by descriptor: the process, and whom to tell
    while True:
        for ready in select.select([requests, *running], [], [])[0]:
            if ready is not requests:
                process, word = running.pop(ready)
                os.close(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
                _say(word, code)
                os.close(word)
                continue
            request, descriptors, _, _ = socket.recv_fds(requests, _MOST_BYTES, 4)
            if not request:
                return
            *streams, word = descriptors
            process = os.fork()
            if process == 0:
                known = {requests.fileno(), *running, *(word for _, word in running.values())}
                _become(*json.loads(request), streams, {word, *known})
            for stream in streams:
                os.close(stream)
            _say(word, process)
            running[os.pidfd_open(process)] = (process, word)


def _say(word: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(word, b"%d\n" % number)


def _become(
    arguments: list[str], environment: dict[str, str], streams: list[int], others: set[int]
) -> NoReturn:
    """Be the command, in a process that was made for it."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for place, stream in enumerate(streams):
            os.dup2(stream, place)
        for descriptor in {*streams, *others}:
            os.close(descriptor)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["shammah", *arguments]
        from shammah.cli.main import command

        command()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
