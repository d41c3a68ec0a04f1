"""A person at a terminal: starts the program on a pseudo-terminal, types, and reads the screen.

The screen is a real terminal emulator (pyte) that answers the program's questions, such as where
the cursor is, so what is read is what a person would see, wide characters and redraws included.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import pexpect
import pyte

ROOT = Path(__file__).parents[1]
ENTER, ALT_ENTER, TAB, UP = "\r", "\x1b\r", "\t", "\x1b[A"
CTRL_A, CTRL_C, CTRL_D, CTRL_K, CTRL_S = "\x01", "\x03", "\x04", "\x0b", "\x13"


class Terminal:
    """`python -m shammah ARGUMENTS` on a terminal of the given size.

    Args:
        home: its SHAMMAH_HOME.
        environment: what is set beside that; None takes a variable away.
    """

    def __init__(
        self,
        home: Path,
        arguments: Sequence[str] = (),
        *,
        rows: int = 24,
        columns: int = 80,
        environment: Mapping[str, str | None] | None = None,
    ) -> None:
        wanted = {
            **os.environ,
            "TERM": "xterm-256color",
            "SHAMMAH_HOME": str(home),
            "VISUAL": None,
            "EDITOR": None,
            "NO_COLOR": None,
            **(environment or {}),
        }
        self._screen = pyte.HistoryScreen(columns, rows, history=10_000, ratio=0.001)
        self._stream = pyte.ByteStream(self._screen)
        self._oldest: Any = None
        self._above: list[str] = []
        self.started = time.monotonic()
        self._child = pexpect.spawn(
            sys.executable,
            ["-m", "shammah", *arguments],
            cwd=str(ROOT),
            env={name: value for name, value in wanted.items() if value is not None},
            dimensions=(rows, columns),
        )
        self._child.delaybeforesend = None
        self._screen.write_process_input = self._child.send

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._child.close(force=True)

    @property
    def lines(self) -> list[str]:
        """What the screen shows now."""
        return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        """Everything, what has scrolled away included."""
        above = self._screen.history.top
        if not above or above[0] is not self._oldest:  # the program has cleared it
            self._oldest, self._above = above[0] if above else None, []
        # What has scrolled away does not change any more: it is read once.
        for line in islice(above, len(self._above), None):
            shown = "".join(line[column].data for column in range(self._screen.columns))
            self._above.append(shown.rstrip())
        return "\n".join([*self._above, *self.lines])

    @property
    def process_id(self) -> int:
        return int(self._child.pid)

    def type(self, keys: str) -> None:
        """Press keys."""
        self._child.send(keys)

    def submit(self, line: str) -> None:
        """Type a line and press Enter."""
        self.type(line + ENTER)

    def wait_for(self, wanted: str | Callable[[Terminal], bool], seconds: float = 90.0) -> float:
        """Read until a text has appeared anywhere, or a condition holds; seconds since the start.

        Raises:
            AssertionError: it did not, in that time; the message shows the whole terminal.
        """
        there = wanted if callable(wanted) else lambda terminal: wanted in terminal.text
        end = time.monotonic() + seconds
        while not there(self):
            if time.monotonic() > end or not self._read():
                if there(self):
                    break
                raise AssertionError(f"{wanted!r} did not appear:\n{self.text}")
        return time.monotonic() - self.started

    def settle(self, seconds: float = 0.3, at_most: float = 1.5) -> None:
        """Read until nothing has come for a while; a toolbar that moves never stops."""
        end = time.monotonic() + at_most
        while self._read(seconds, still=True) and time.monotonic() < end:
            pass

    def submit_and_wait(self, line: str, wanted: str, seconds: float = 90.0) -> str:
        """Submit a line; what has appeared since, once the text is among it."""
        count = self.text.count(wanted)
        self.submit(line)
        self.wait_for(lambda terminal: terminal.text.count(wanted) > count, seconds)
        self.settle()
        return self.text.rpartition(f"> {line}")[2]

    def ask(self, question: str, seconds: float = 120.0) -> str:
        """Ask a question; the answer as it stands in the scrollback."""
        count = self.text.count(f"> {question}")

        def answer() -> str:
            # Between the echo and the answer the toolbar may not say "answering" yet.
            said = self.text.rpartition(f"> {question}\n")[2].partition("\n\n>")[0].strip()
            return "" if said.startswith(">") else said

        self.submit(question)
        self.wait_for(
            lambda terminal: bool(
                terminal.text.count(f"> {question}") > count
                and "answering" not in terminal.lines[-1]
                and answer()
            ),
            seconds,
        )
        self.settle()
        return answer()

    def leave(self, seconds: float = 60.0) -> int:
        """Press Ctrl-D and wait for the end; the exit code."""
        self.type(CTRL_D)
        return self.wait_for_end(seconds)

    def wait_for_end(self, seconds: float = 60.0) -> int:
        """The exit code, once the program has ended."""
        end = time.monotonic() + seconds
        while self._read() and time.monotonic() < end:
            pass
        self._child.close(force=False)
        assert self._child.exitstatus is not None, self.text
        return int(self._child.exitstatus)

    def _read(self, seconds: float = 0.05, *, still: bool = False) -> bool:
        """Take in what the program wrote; false at its end, or with `still` if nothing came."""
        try:
            self._stream.feed(self._child.read_nonblocking(65536, seconds))
        except pexpect.TIMEOUT:
            return not still
        except pexpect.EOF:
            return False
        return True
