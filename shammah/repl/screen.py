"""The one place that writes to the terminal while the prompt is up.

What is printed goes above the prompt and stays; the *live* text stands between it and the prompt
and is redrawn as it changes (an answer's unfinished end). prompt_toolkit draws the live text as
part of the prompt, so it is never in the scrollback twice. Without a prompt (a pipe, a dumb
terminal) printing is plain printing and nothing is live.

Knows nothing of the assistant.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable

from shammah.repl.text import columns, rows


class Screen:
    """Prints above the prompt, in the order asked for.

    Args:
        interactive: a prompt is drawn by prompt_toolkit; else plain output.
        coloured: escape sequences may be written.
        redraw: asks the prompt to draw itself again.
    """

    def __init__(
        self, *, interactive: bool, coloured: bool, redraw: Callable[[], None] | None = None
    ) -> None:
        self.interactive = interactive
        self.coloured = coloured
        self.live = ""
        self.redraw = redraw or (lambda: None)
        self._waiting: list[tuple[str | None, str | None]] = []
        self._blank = True
        self._writer: asyncio.Task[None] | None = None
        self._free = asyncio.Lock()

    def print(self, text: str = "", *, live: str | None = None) -> None:
        """Put lines above the prompt, for good.

        Args:
            text: with or without escape sequences; a newline is added.
            live: the live text from the moment the lines are printed (unchanged if None).
        """
        self._put(text, live)

    def gap(self, *, live: str | None = None) -> None:
        """A blank line, unless the last one printed was blank."""
        self._put(None, live)

    def _put(self, text: str | None, live: str | None) -> None:
        if not self.interactive:
            _write(self._lines(text))
            return
        self._waiting.append((text, live))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.get_running_loop().create_task(self._write_waiting())

    def note(self, text: str) -> None:
        """A word beside the answers: above the prompt, or on stderr where output is plain."""
        if self.interactive:
            self.print(text)
            self.gap()
        else:
            _write(text + "\n", error=True)

    def write(self, text: str) -> None:
        """Plain output only: text without a newline of its own, at once."""
        self._blank = False
        _write(text)

    def set_live(self, text: str) -> None:
        """Show this above the prompt until something else is shown there."""
        if self.interactive and text != self.live:
            self.live = text
            self.redraw()

    def prompt_text(self, mark: str) -> str:
        """What stands before the input: the end of the live text that fits, and the mark."""
        if not self.live:
            return mark
        lines = self.live.split("\n")
        fitting = max(1, rows() - 5)
        return "\n".join(lines[-fitting:]) + "\n" + mark

    async def drained(self) -> None:
        """Wait until everything is printed."""
        while self._writer is not None and not self._writer.done():
            await asyncio.shield(self._writer)

    @contextlib.asynccontextmanager
    async def lent(self) -> AsyncIterator[None]:
        """Give the terminal to another program (an editor); what is printed meanwhile waits."""
        await self.drained()
        async with self._free:
            if self.interactive:
                from prompt_toolkit.application import in_terminal

                async with in_terminal():
                    yield
            else:
                yield

    async def _write_waiting(self) -> None:
        from prompt_toolkit.application import run_in_terminal

        while self._waiting:
            async with self._free:
                await run_in_terminal(self._write_now)

    def _write_now(self) -> None:
        waiting, self._waiting = self._waiting, []
        _write("".join([self._lines(text) for text, _ in waiting]))
        for _, live in waiting:
            if live is not None:
                self.live = live

    def _lines(self, text: str | None) -> str:
        if text is None:
            text, blank = "" if self._blank else "\n", True
        else:
            text, blank = f"{text}\n", text.endswith("\n") or not text
        self._blank = blank
        return text

    @property
    def width(self) -> int:
        return columns()


def _write(text: str, *, error: bool = False) -> None:
    """Write at once; characters the terminal's encoding lacks become question marks."""
    stream = sys.__stderr__ if error else sys.__stdout__
    assert stream is not None
    encoding = stream.encoding or "utf-8"
    data = text.encode(encoding, "replace")
    buffer = getattr(stream, "buffer", None)
    if buffer is None:
        stream.write(data.decode(encoding))
    else:
        stream.flush()
        buffer.write(data)
    stream.flush()
