"""Workflows: what is done after what, how often, on which condition, and what at the same time.

    flow = workflow(
        "fine-tune",
        prepare,
        loop(train, evaluate, over="rounds"),
        conditional(is_better, then=[publish], otherwise=[discard]),
    )

Each step has a path: `prepare`, `rounds[2]/train` (items are counted from 0),
`is_better/then/publish`, `parallel/a`. Of steps with one name in one place the second is called
`train#2`. A workflow is a plain value; `running` runs it, `drawing` draws it.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from shammah.recipes.workflows.context import Context
from shammah.recipes.workflows.stage import Stage
from shammah.recipes.workflows.values import digest

__all__ = [
    "Conditional", "Loop", "Parallel", "Steps", "StreamLoop", "Way", "Workflow", "conditional",
    "loop", "parallel", "shape", "stages", "stream_loop", "workflow",
]  # fmt: skip

FORBIDDEN = "/[]#\n\r\t"
"""What no name may hold, because paths are made of it."""

Over: TypeAlias = str | Callable[[Context], Iterable[Any] | Awaitable[Iterable[Any]]]
When: TypeAlias = Callable[[Context], bool | Awaitable[bool]]
Items: TypeAlias = Iterable[Any] | AsyncIterable[Any]
Source: TypeAlias = Callable[[Context], Items | Awaitable[Items]]


@dataclass(frozen=True)
class Steps:
    """Steps one after the other, each under a name that is its own here."""

    named: tuple[tuple[str, Step], ...]

    def __iter__(self) -> Iterator[tuple[str, Step]]:
        return iter(self.named)

    def __len__(self) -> int:
        return len(self.named)


@dataclass(frozen=True)
class Workflow:
    """Steps under a name; a step of another workflow too."""

    name: str
    steps: Steps


@dataclass(frozen=True)
class Loop:
    """A body, once for each item."""

    name: str
    body: Steps
    over: Over


@dataclass(frozen=True)
class Conditional:
    """One of two ways."""

    name: str
    when: When
    then: Steps
    otherwise: Steps


@dataclass(frozen=True)
class Way:
    """One branch of several."""

    name: str
    steps: Steps
    prefix: str
    """Stands before its steps' paths: nothing where it is a single step."""


@dataclass(frozen=True)
class Parallel:
    """Branches at the same time, each with a copy of the state."""

    name: str
    branches: tuple[Way, ...]


@dataclass(frozen=True)
class StreamLoop:
    """A body, once for each item of a source that is read as it goes."""

    name: str
    body: Steps
    source: Source
    prefetch: int


Step: TypeAlias = Stage | Workflow | Loop | Conditional | Parallel | StreamLoop
STEPS: tuple[type, ...] = (Stage, Workflow, Loop, Conditional, Parallel, StreamLoop)


def workflow(name: str, *steps: Step) -> Workflow:
    """Steps one after the other."""
    return Workflow(_name(name), _steps(steps, f"the workflow {name!r}"))


def loop(*body: Step, over: Over, name: str | None = None) -> Loop:
    """A body, once for each item, which is `context.item` there.

    Args:
        over: a key of the state, else of the configuration, whose value has the items (or is a
            whole number: so many rounds, with 0, 1, ... for items); or a function that gives them.
            They have to be the same when a run is resumed.
        name: else `over` where that is a key, or the function's name.
    """
    called = name or (over if isinstance(over, str) else _function_name(over, "loop"))
    return Loop(_name(called), _steps(body, f"the loop {called!r}"), over)


def conditional(
    when: When,
    then: Step | Sequence[Step],
    otherwise: Step | Sequence[Step] = (),
    name: str | None = None,
) -> Conditional:
    """One of two ways, chosen when it is reached; a run that is resumed keeps to the choice."""
    called = name or _function_name(when, "if")
    ways = _sequence(then), _sequence(otherwise)
    if not any(ways):
        raise ValueError(f"The conditional {called!r} has no steps.")
    return Conditional(_name(called), when, *(_steps(way, called, empty=True) for way in ways))


def parallel(*branches: Step | Sequence[Step], name: str | None = None) -> Parallel:
    """Branches at the same time.

    Each begins with a copy of the state; what they set is put together at the end, where two that
    set one key to different values are an error.

    Args:
        branches: a step, or several one after the other: those stand under `branch 2` and so on.
    """
    called = name or "parallel"
    if not branches:
        raise ValueError(f"{called!r} has no branches.")
    names = _apart(
        [
            f"branch {place}" if isinstance(each, Sequence) else getattr(each, "name", "")
            for place, each in enumerate(branches, start=1)
        ]
    )
    ways = []
    for name_of, each in zip(names, branches, strict=True):
        steps = _steps(_sequence(each), f"a branch of {called!r}")
        if isinstance(each, Sequence):
            ways.append(Way(name_of, steps, f"{name_of}/"))
        else:
            ways.append(Way(name_of, Steps(((name_of, each),)), ""))
    return Parallel(_name(called), tuple(ways))


def stream_loop(
    *body: Step, source: Source, prefetch: int = 2, name: str | None = None
) -> StreamLoop:
    """A body, once for each item of a source that may be long, slow or without end.

    Args:
        source: gives an iterable, async or not; one that is not is read in a thread of its own. A
            run that is resumed reads it from its beginning and passes over what was done, so that
            it has to give the same again.
        prefetch: so many items at most wait while the body works; 0 reads one when it is needed.
    """
    if prefetch < 0:
        raise ValueError(f"prefetch is {prefetch}; it cannot be below 0.")
    called = name or _function_name(source, "stream")
    return StreamLoop(_name(called), _steps(body, f"the loop {called!r}"), source, prefetch)


def stages(steps: Steps) -> Iterator[Stage]:
    """All stages, in the order in which they are written."""
    for _, step in steps:
        match step:
            case Stage():
                yield step
            case Workflow():
                yield from stages(step.steps)
            case Loop() | StreamLoop():
                yield from stages(step.body)
            case Conditional():
                yield from stages(step.then)
                yield from stages(step.otherwise)
            case Parallel():
                for way in step.branches:
                    yield from stages(way.steps)


def shape(flow: Workflow) -> str:
    """Names a workflow's shape: two with the same names and structure have the same."""
    return digest([flow.name, _structure(flow.steps)])


def _structure(steps: Steps) -> list[Any]:
    return [[name, *_inside(step)] for name, step in steps]


def _inside(step: Step) -> list[Any]:
    match step:
        case Stage():
            return ["stage", list(step.needs), list(step.gives)]
        case Workflow():
            return ["workflow", _structure(step.steps)]
        case Loop():
            return [
                "loop",
                step.over if isinstance(step.over, str) else None,
                _structure(step.body),
            ]
        case Conditional():
            return ["conditional", _structure(step.then), _structure(step.otherwise)]
        case Parallel():
            return ["parallel", [[way.name, _structure(way.steps)] for way in step.branches]]
        case StreamLoop():
            return ["stream", _structure(step.body)]


def _steps(steps: Sequence[Step], where: str, *, empty: bool = False) -> Steps:
    for step in steps:
        if not isinstance(step, STEPS):
            shown = getattr(step, "__name__", repr(step))
            raise TypeError(f"{shown} in {where} is no stage; is @stage missing above it?")
    if not steps and not empty:
        raise ValueError(f"There are no steps in {where}.")
    names = _apart([_name(step.name) for step in steps])
    return Steps(tuple(zip(names, steps, strict=True)))


def _sequence(steps: Step | Sequence[Step]) -> Sequence[Step]:
    return steps if isinstance(steps, Sequence) else (steps,)


def _apart(names: Sequence[str]) -> list[str]:
    """Each name once: `train`, `train#2`."""
    seen: dict[str, int] = {}
    apart = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        apart.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return apart


def _name(name: str) -> str:
    if not isinstance(name, str) or not name.strip() or any(sign in name for sign in FORBIDDEN):
        raise ValueError(f"{name!r} is no name for a step: it has to be a text without /, [, ], #.")
    return name


def _function_name(function: Callable[..., Any], otherwise: str) -> str:
    name = getattr(function, "__name__", otherwise)
    return otherwise if name.startswith("<") else name
