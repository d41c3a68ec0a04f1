"""Lines of the input, read beside everything else.

A thread of its own reads: one that waits for a person or a slow pipe must hold up neither an
answer nor leaving, so it is a daemon and not one of asyncio's.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import AsyncIterator, Callable


def read_lines(take: Callable[[str | None], None]) -> None:
    """Begin to read stdin; `take` is called on the running event loop with each line, and with
    None at the end."""
    loop = asyncio.get_running_loop()

    def read() -> None:
        # The loop may be closed, or stdin, while this waits for more.
        with contextlib.suppress(RuntimeError, ValueError, OSError):
            for line in sys.stdin:
                loop.call_soon_threadsafe(take, line)
            loop.call_soon_threadsafe(take, None)

    threading.Thread(target=read, name="stdin", daemon=True).start()


async def input_lines() -> AsyncIterator[str]:
    """Each line of stdin as it comes."""
    lines: asyncio.Queue[str | None] = asyncio.Queue()
    read_lines(lines.put_nowait)
    while (line := await lines.get()) is not None:
        yield line
