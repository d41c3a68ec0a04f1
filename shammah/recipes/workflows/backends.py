"""The live things that stages work with, by name: a model, a training client, a data set.

What is made by a `Factory` is made at first use and closed at the end of the run; what was given
ready belongs to whoever gave it. Nothing here is kept on disk: a stage that runs after a resume
finds only what was given to `run` and what factories make.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from shammah.errors import UsageError, WorkflowError

__all__ = ["Backends", "Factory"]

log = logging.getLogger("shammah")


class Factory:
    """Says how a backend is made, so that it is made only where a stage asks for it.

    Args:
        make: gives the thing; called at most once a run, in the thread of the stage that asks.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


class Backends:
    """Live things by name; may be used by several threads.

    Args:
        given: things, or a `Factory` of each.
        named: the same, as arguments.
    """

    def __init__(self, given: Mapping[str, Any] | None = None, /, **named: Any) -> None:
        self._given: dict[str, Any] = {**(given or {}), **named}
        self._made: dict[str, Any] = {}
        # One that is entered again by its holder: a factory may ask for another backend.
        self._lock = threading.RLock()

    def __getitem__(self, name: str) -> Any:
        """The thing of that name, made now if nobody asked before.

        Raises:
            UsageError: there is none.
        """
        with self._lock:
            if name in self._made:
                return self._made[name]
            if name not in self._given:
                near = get_close_matches(name, self._given, n=1)
                known = ", ".join(sorted(self._given)) or "none"
                hint = f"Did you mean `{near[0]}`?" if near else f"There are: {known}."
                raise UsageError(f"There is no backend `{name}`.", hint=hint)
            thing = self._given[name]
            if isinstance(thing, Factory):
                thing = self._made[name] = thing.make()
            return thing

    def __setitem__(self, name: str, thing: Any) -> None:
        """Give a thing, or the factory of one. Stages that run after a resume do not find it."""
        with self._lock:
            if name in self._made:
                raise UsageError(f"The backend `{name}` is in use already.")
            self._given[name] = thing

    def __contains__(self, name: object) -> bool:
        return name in self._given

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._given))

    def get(self, name: str, default: Any = None) -> Any:
        """The thing of that name, or the default where there is none."""
        return self[name] if name in self._given else default

    async def close(self) -> None:
        """Close what factories made, the last one first, and forget it.

        Raises:
            WorkflowError: one or more could not be closed; the others are.
        """
        failures: list[tuple[str, Exception]] = []
        with self._lock:
            made = list(reversed(self._made.items()))
            self._made.clear()
        for name, thing in made:
            end = getattr(thing, "aclose", None) or getattr(thing, "close", None)
            if end is None:
                continue
            try:
                ended = end()
                if inspect.isawaitable(ended):
                    await ended
            except Exception as error:
                log.warning("the backend %s was not closed: %s", name, error, exc_info=error)
                failures.append((name, error))
        if failures:
            name, cause = failures[0]
            message = f"The backend `{name}` could not be closed: {cause or type(cause).__name__}"
            raise WorkflowError(message) from cause
