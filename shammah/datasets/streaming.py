"""An iterator gone through without holding up the event loop."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import TypeVar

T = TypeVar("T")

AT_ONCE = 256
"""Items that are read on the thread before they are handed over."""


async def streamed(items: Iterator[T]) -> AsyncIterator[T]:
    """The items of an iterator, drawn on another thread some at a time."""
    while part := await asyncio.to_thread(lambda: list(itertools.islice(items, AT_ONCE))):
        for item in part:
            yield item
