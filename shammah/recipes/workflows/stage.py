"""One step of a workflow: a class with `execute`, or a function under `@stage`.

Knows what it reads and sets of the state, how it is checked and how it is undone; not where it
stands in a workflow, nor what is kept of it.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, overload

from shammah.recipes.workflows.context import Context

__all__ = ["FunctionStage", "Stage", "stage"]

StageFunction = Callable[[Context], Awaitable[None] | None]
"""Synchronous ones are called in a thread."""


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


class Stage:
    """One step. Its name is `name`, or that of its class in small letters with underscores."""

    name: str = ""
    needs: tuple[str, ...] = ()
    """Keys of the state that it reads."""
    gives: tuple[str, ...] = ()
    """Keys of the state that it sets."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for method in ("execute", "validate", "rollback"):
            if not inspect.iscoroutinefunction(getattr(cls, method)):
                raise TypeError(f"{cls.__name__}.{method} has to be `async def`.")
        taken = {_snake(base.__name__) for base in cls.__mro__[1:]} | {""}
        if "name" not in vars(cls) and cls.name in taken:
            cls.name = _snake(cls.__name__)

    async def execute(self, context: Context) -> None:
        """Do it."""
        raise NotImplementedError(f"{type(self).__name__} has no execute().")

    async def validate(self, context: Context) -> None:
        """Look whether it can run, and change nothing.

        Raises:
            ShammahError: it cannot.
        """

    async def rollback(self, context: Context) -> None:
        """Undo it; also where `execute` failed half-way. The context is as it was then."""

    def describe(self) -> str:
        """What it does, in one line: the first of its docstring."""
        return _first_line(type(self).__doc__) if type(self) is not Stage else ""


class FunctionStage(Stage):
    """A stage that is a function."""

    def __init__(
        self,
        function: StageFunction,
        *,
        name: str | None = None,
        needs: tuple[str, ...] = (),
        gives: tuple[str, ...] = (),
        rollback: StageFunction | None = None,
        validate: StageFunction | None = None,
    ) -> None:
        self.function = function
        self.name = name or str(getattr(function, "__name__", "stage"))
        self.needs = _keys(needs)
        self.gives = _keys(gives)
        self.__doc__ = function.__doc__
        self._rollback = rollback
        self._validate = validate

    def __call__(self, context: Context) -> Awaitable[None] | None:
        """The function itself."""
        return self.function(context)

    async def execute(self, context: Context) -> None:
        await _call(self.function, context)

    async def validate(self, context: Context) -> None:
        if self._validate is not None:
            await _call(self._validate, context)

    async def rollback(self, context: Context) -> None:
        if self._rollback is not None:
            await _call(self._rollback, context)

    def describe(self) -> str:
        return _first_line(self.function.__doc__)


@overload
def stage(function: StageFunction, /) -> FunctionStage: ...


@overload
def stage(
    *,
    name: str | None = None,
    needs: tuple[str, ...] = (),
    gives: tuple[str, ...] = (),
    rollback: StageFunction | None = None,
    validate: StageFunction | None = None,
) -> Callable[[StageFunction], FunctionStage]: ...


def stage(
    function: StageFunction | None = None,
    /,
    *,
    name: str | None = None,
    needs: tuple[str, ...] = (),
    gives: tuple[str, ...] = (),
    rollback: StageFunction | None = None,
    validate: StageFunction | None = None,
) -> FunctionStage | Callable[[StageFunction], FunctionStage]:
    """Make a function a stage, as `@stage` or `@stage(needs=("rows",))`.

    Args:
        function: of a context, `async def` or not; one that is not runs in a thread.
        name: what it is called in paths; else the function's name.
        needs: keys of the state that it reads.
        gives: keys of the state that it sets.
        rollback: undoes it, also where it failed half-way.
        validate: looks whether it can run, and changes nothing.
    """

    def make(function: StageFunction) -> FunctionStage:
        return FunctionStage(
            function, name=name, needs=needs, gives=gives, rollback=rollback, validate=validate
        )

    return make if function is None else make(function)


async def _call(function: StageFunction, context: Context) -> None:
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 -- an object whose call is async
    ):
        result = function(context)
        assert result is not None
        await result
        return
    finished = False

    def work() -> Awaitable[None] | None:
        nonlocal finished
        result = function(context)
        finished = not inspect.isawaitable(result)
        return result

    try:
        result = await context.in_thread(work)
    except asyncio.CancelledError:
        # What came to its end while one waited has been done, and is to count as done.
        if finished:
            return
        raise
    if inspect.isawaitable(result):
        await result


def _keys(keys: object) -> tuple[str, ...]:
    """Keys, and not the letters of one."""
    if isinstance(keys, str) or not isinstance(keys, Iterable):
        raise TypeError(f"needs and gives are tuples of keys: ({keys!r},) and not {keys!r}.")
    return tuple(keys)


def _first_line(text: str | None) -> str:
    return inspect.cleandoc(text).split("\n", 1)[0].strip() if text else ""
