"""What a stage is given: configuration, live things, and what earlier stages left.

`state`, `metrics` and `artifacts` are what a run keeps: plain values, numbers and paths, handed
from stage to stage. Knows nothing of workflows or of where it is kept.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, ParamSpec, TypeVar, cast

from shammah.recipes.workflows.backends import Backends, Factory

__all__ = ["Backends", "Context", "Factory", "Interrupted", "Metadata", "Stop"]

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Metadata:
    """Which run it is."""

    run_id: str = ""
    workflow: str = ""
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    """When it was begun for the first time, in UTC."""
    resumed: bool = False
    """Whether it goes on from what an earlier process had finished."""


class Interrupted(BaseException):
    """Raised by `Context.interrupt`; no `Exception`, so that a stage does not catch it unawares."""


class Stop:
    """Whether somebody asked to stop; once asked, it stays so.

    Args:
        asks: looked at each time; may be called from any thread.
        above: that of the run around a branch, which stops its branches too.
    """

    def __init__(
        self, asks: Callable[[], bool] | None = None, *, above: Stop | None = None
    ) -> None:
        self._asks = asks
        self._above = above
        self._asked = False

    def ask(self) -> None:
        """Stop."""
        self._asked = True

    def __bool__(self) -> bool:
        if not self._asked:
            above = self._above is not None and bool(self._above)
            self._asked = above or (self._asks is not None and bool(self._asks()))
        return self._asked


class Context:
    """What a stage is given.

    Args:
        config: what `run` was given: a mapping or a pydantic model. Not to be changed.
        backends: live things by name.
        state: plain JSON values.
        metrics: numbers.
        artifacts: files and folders that stages made.
        metadata: which run it is.
        folder: the run's folder; None where nothing is kept.
        item: that of the loop around, else None. Not to be changed.
    """

    def __init__(
        self,
        config: Any = None,
        backends: Backends | None = None,
        *,
        state: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        artifacts: Mapping[str, Path] | None = None,
        metadata: Metadata | None = None,
        folder: Path | None = None,
        item: Any = None,
        stop: Stop | None = None,
        threads: Executor | None = None,
    ) -> None:
        self.config = config
        self.backends = Backends() if backends is None else backends
        self.metadata = Metadata() if metadata is None else metadata
        self.folder = folder
        self.item = item
        self.stage = ""
        """The path of the stage that runs, such as `rounds[2]/train`."""
        self.stop = Stop() if stop is None else stop
        self._state = dict(state or {})
        self._metrics = dict(metrics or {})
        self._artifacts = dict(artifacts or {})
        self._threads = threads

    @property
    def state(self) -> dict[str, Any]:
        """Plain JSON values, handed from stage to stage; they survive a kill."""
        return self._state

    @property
    def metrics(self) -> dict[str, float]:
        """What was measured; survives a kill."""
        return self._metrics

    @property
    def artifacts(self) -> dict[str, Path]:
        """Files and folders that stages made; their paths survive a kill."""
        return self._artifacts

    def stopping(self) -> bool:
        """Whether somebody asked to stop: a long stage looks at it between its steps, and either
        comes to its end early or calls `interrupt`."""
        return bool(self.stop)

    def interrupt(self) -> NoReturn:
        """Leave the stage unfinished and end the run, so that a resume runs the stage again."""
        raise Interrupted

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that blocks in a thread of its own.

        A stage that is cancelled meanwhile waits for it, with `stopping()` true: what is live stays
        open as long as it is used.
        """
        around = contextvars.copy_context()
        future = asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: around.run(work, *args, **kwargs)
        )
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self.stop.ask()
            await outlast(future)
            raise

    def copy(
        self,
        *,
        state: Mapping[str, Any],
        metrics: Mapping[str, float],
        artifacts: Mapping[str, Path],
        stop: Stop,
    ) -> Context:
        """Another context of the same run, with a state of its own."""
        copied = Context(
            self.config,
            self.backends,
            state=state,
            metrics=metrics,
            artifacts=artifacts,
            metadata=self.metadata,
            folder=self.folder,
            item=self.item,
            stop=stop,
            threads=self._threads,
        )
        copied.stage = self.stage
        return copied

    def reading(self) -> Context:
        """The same for one who only looks: setting a value in it is a TypeError."""
        shown = self.copy(state={}, metrics={}, artifacts={}, stop=self.stop)
        shown._state = cast(dict[str, Any], MappingProxyType(self._state))
        shown._metrics = cast(dict[str, float], MappingProxyType(self._metrics))
        shown._artifacts = cast(dict[str, Path], MappingProxyType(self._artifacts))
        return shown


async def outlast(*futures: asyncio.Future[Any]) -> None:
    """Wait for all of them, whatever comes of them and however often one is cancelled."""
    waiting = {future for future in futures if not future.done()}
    while waiting:
        try:
            _, waiting = await asyncio.wait(waiting)
        except asyncio.CancelledError:
            waiting = {future for future in waiting if not future.done()}
    for future in futures:
        # Looked at, so that nobody complains of an error that nobody took.
        if not future.cancelled():
            future.exception()
