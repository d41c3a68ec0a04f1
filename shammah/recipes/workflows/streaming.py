"""Items of a source, fetched ahead while others are worked on.

Knows nothing of stages or of what items are.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from shammah.recipes.workflows.context import Context, outlast
from shammah.recipes.workflows.workflow import Source

__all__ = ["END", "Ahead"]

END: Any = object()
"""Comes after the last item."""
LOOK_SECONDS = 0.1
"""So often a wait for an item asks whether to go on waiting."""


class Ahead:
    """Fetches items of a source; at most `prefetch` of them wait to be taken.

    A source that is not async is opened, read and closed in one thread of its own. One that blocks
    there is waited for, so that it should look at `context.stopping()`.
    """

    def __init__(self, source: Source, context: Context, prefetch: int) -> None:
        self._source = source
        self._context = context
        self._eager = prefetch > 0
        self._places = asyncio.Semaphore(prefetch)
        self._fetched: asyncio.Queue[tuple[Any, BaseException | None]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "source")
        self._iterator: AsyncIterator[Any] | Iterator[Any] | None = None
        self._task = asyncio.create_task(self._fetch())

    async def next(self, stopping: Callable[[], bool]) -> Any:
        """The next item, or `END` where there is none or `stopping` says so.

        Raises:
            Exception: what the source raised.
        """
        if not self._eager:
            self._places.release()
        waiting = asyncio.ensure_future(self._fetched.get())
        try:
            while not (await asyncio.wait({waiting}, timeout=LOOK_SECONDS))[0]:
                if stopping():
                    return END
        finally:
            if not waiting.done():
                waiting.cancel()
        item, error = waiting.result()
        if error is not None:
            raise error
        if self._eager:
            self._places.release()
        return item

    async def close(self) -> None:
        """Fetch nothing more, and close the source's iterator.

        Raises:
            Exception: what it raised then.
        """
        self._task.cancel()
        await outlast(self._task)
        try:
            if isinstance(self._iterator, AsyncIterator):
                if (aclose := getattr(self._iterator, "aclose", None)) is not None:
                    await aclose()
            elif (close := getattr(self._iterator, "close", None)) is not None:
                await self._in_thread(close)
        finally:
            self._thread.shutdown(wait=False)

    async def _fetch(self) -> None:
        try:
            items = await self._in_thread(lambda: self._source(self._context))
            if inspect.isawaitable(items):
                items = await items
            if hasattr(items, "__aiter__"):
                self._iterator = cast(AsyncIterator[Any], aiter(items))
            else:
                self._iterator = await self._in_thread(lambda: iter(items))
            item = None
            while item is not END:
                await self._places.acquire()
                item = await self._step()
                self._fetched.put_nowait((item, None))
        except BaseException as error:
            # Whatever it is, whoever waits for an item is told.
            self._fetched.put_nowait((END, error))
            if isinstance(error, asyncio.CancelledError):
                raise

    async def _step(self) -> Any:
        if isinstance(self._iterator, AsyncIterator):
            return await anext(self._iterator, END)
        iterator = cast("Iterator[Any]", self._iterator)
        return await self._in_thread(lambda: next(iterator, END))

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
