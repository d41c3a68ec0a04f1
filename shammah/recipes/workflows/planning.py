"""What a run would do, found out without doing any of it.

Both ways of a conditional are gone through, the body of a loop once. Knows only what stages say of
themselves: `needs`, `gives` and `validate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from shammah.errors import WorkflowError
from shammah.recipes.workflows.backends import Backends
from shammah.recipes.workflows.context import Context, Metadata
from shammah.recipes.workflows.stage import Stage
from shammah.recipes.workflows.undoing import said
from shammah.recipes.workflows.values import plain
from shammah.recipes.workflows.workflow import (
    Conditional,
    Loop,
    Parallel,
    Steps,
    StreamLoop,
    Workflow,
)

__all__ = ["Plan", "dry_run", "missing_needs"]


@dataclass(frozen=True)
class Plan:
    """What would run, and what stands against it."""

    lines: tuple[str, ...]
    """A line for each stage, in order: its path and what it does."""
    problems: tuple[str, ...]
    """Each with the path of the stage; empty where nothing is known to stand against a run."""

    @property
    def text(self) -> str:
        """All of it, to be printed."""
        return "\n".join((*self.lines, *(f"! {problem}" for problem in self.problems)))


async def dry_run(
    flow: Workflow,
    config: Any = None,
    *,
    backends: Backends | Mapping[str, Any] | None = None,
    state: Mapping[str, Any] | None = None,
) -> Plan:
    """Look through a workflow without running a stage.

    `validate` is called of stages outside of loops whose needs are there from the beginning; what
    factories made for it is closed again.
    """
    live = backends if isinstance(backends, Backends) else Backends(backends)
    begun_with = {key: plain(value, f"state[{key!r}]") for key, value in (state or {}).items()}
    context = Context(config, live, state=begun_with, metadata=Metadata(workflow=flow.name))
    problems = [f"`{path}` {message}." for path, message in missing_needs(flow, config, begun_with)]
    lines = []
    try:
        for path, stage, looped in _places(flow.steps, ""):
            described = stage.describe()
            lines.append(f"{path}  {described}" if described else path)
            if not looped and all(key in begun_with for key in stage.needs):
                shown = context.reading()
                shown.stage = path
                try:
                    await stage.validate(shown)
                except Exception as error:
                    problems.append(f"`{path}` cannot run: {said(error)}")
    finally:
        try:
            await live.close()
        except WorkflowError as error:
            problems.append(error.message)
    return Plan(tuple(lines), tuple(problems))


def missing_needs(flow: Workflow, config: Any, state: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The stages that need what nothing before them gives, by path, and what that is.

    What only one way of a conditional gives counts as given.
    """
    problems: list[tuple[str, str]] = []
    _follow(flow.steps, "", set(state), config, problems)
    return problems


def _follow(
    steps: Steps, prefix: str, known: set[str], config: Any, problems: list[tuple[str, str]]
) -> None:
    """Add to `known` what the steps give."""
    for name, step in steps:
        path = prefix + name
        match step:
            case Stage():
                for key in step.needs:
                    if key not in known:
                        problems.append((path, f"needs `{key}`, which nothing before it gives"))
                known.update(step.gives)
            case Workflow():
                _follow(step.steps, f"{path}/", known, config, problems)
            case Loop():
                if (
                    isinstance(step.over, str)
                    and step.over not in known
                    and not _has(config, step.over)
                ):
                    what = f"goes over `{step.over}`, which nothing before it gives"
                    problems.append((path, f"{what} and which is no setting"))
                _follow(step.body, f"{path}[…]/", known, config, problems)
            case StreamLoop():
                _follow(step.body, f"{path}[…]/", known, config, problems)
            case Conditional():
                ways = [set(known), set(known)]
                _follow(step.then, f"{path}/then/", ways[0], config, problems)
                _follow(step.otherwise, f"{path}/otherwise/", ways[1], config, problems)
                known.update(*ways)
            case Parallel():
                given: set[str] = set()
                for way in step.branches:
                    here = set(known)
                    _follow(way.steps, f"{path}/{way.prefix}", here, config, problems)
                    given |= here
                known |= given


def _places(steps: Steps, prefix: str, looped: bool = False) -> Iterator[tuple[str, Stage, bool]]:
    """Each stage with its path, and whether it stands in a loop."""
    for name, step in steps:
        path = prefix + name
        match step:
            case Stage():
                yield path, step, looped
            case Workflow():
                yield from _places(step.steps, f"{path}/", looped)
            case Loop() | StreamLoop():
                yield from _places(step.body, f"{path}[…]/", True)
            case Conditional():
                yield from _places(step.then, f"{path}/then/", looped)
                yield from _places(step.otherwise, f"{path}/otherwise/", looped)
            case Parallel():
                for way in step.branches:
                    yield from _places(way.steps, f"{path}/{way.prefix}", looped)


def _has(config: Any, name: str) -> bool:
    return name in config if isinstance(config, Mapping) else hasattr(config, name)
