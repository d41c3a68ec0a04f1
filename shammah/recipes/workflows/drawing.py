"""A workflow as text: a tree that fits a terminal.

Knows what steps say of themselves, and runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from shammah.recipes.workflows.stage import Stage
from shammah.recipes.workflows.workflow import (
    Conditional,
    Loop,
    Parallel,
    Step,
    Steps,
    StreamLoop,
    Workflow,
)

__all__ = ["describe"]

DIM, PLAIN = "\x1b[2m", "\x1b[0m"
WIDTH = 80


@dataclass(frozen=True)
class _Signs:
    """What a tree is drawn with."""

    more: str
    last: str
    line: str
    arrow: str
    cut: str


_BOX = _Signs("├─ ", "└─ ", "│  ", "→", "…")
_ASCII = _Signs("|- ", "`- ", "|  ", "->", "...")


@dataclass(frozen=True)
class _Row:
    """A line: the tree before it, its name, what is said of it and what it takes and leaves."""

    before: str
    name: str
    text: str = ""
    flow: str = ""


def describe(flow: Workflow, *, ascii: bool = False, dim: bool = False, width: int = WIDTH) -> str:
    """The workflow as a tree, a line for each step.

    Behind a stage stand the keys it needs and those it gives, behind a loop what it goes over.

    Args:
        ascii: for terminals without box-drawing characters.
        dim: have needs and gives dimmed, by the escape code of terminals.
        width: columns that no line exceeds.
    """
    signs = _ASCII if ascii else _BOX
    rows = list(_rows(flow.steps, "", signs))
    # Texts begin in one column, unless a name is so long that they would have no room.
    column = min(max((len(row.before) + len(row.name) for row in rows), default=0), width // 2) + 2
    return "\n".join(
        (_cut(flow.name, width, signs), *(_line(row, column, width, signs, dim) for row in rows))
    )


def _rows(steps: Steps, before: str, signs: _Signs) -> Iterator[_Row]:
    children = [(name, step) for name, step in steps]
    for place, (name, step) in enumerate(children):
        last = place == len(children) - 1
        yield _row(before + (signs.last if last else signs.more), name, step, signs)
        yield from _below(step, before + ("   " if last else signs.line), signs)


def _row(before: str, name: str, step: Step, signs: _Signs) -> _Row:
    match step:
        case Stage():
            needs, gives = ", ".join(step.needs), ", ".join(step.gives)
            flow = f"{needs} {signs.arrow} {gives}".strip() if needs or gives else ""
            return _Row(before, name, step.describe(), flow)
        case Loop():
            over = step.over if isinstance(step.over, str) else getattr(step.over, "__name__", "")
            over = "an item" if over.startswith("<") else over
            return _Row(
                before, name, f"for each of {over}" if over != "an item" else "for each item"
            )
        case StreamLoop():
            ahead = f", {step.prefetch} read ahead" if step.prefetch else ""
            return _Row(before, name, f"for each item as it comes{ahead}")
        case Conditional():
            return _Row(before, name, "one of two ways" if len(step.otherwise) else "or not at all")
        case Parallel():
            return _Row(before, name, "at the same time")
        case Workflow():
            return _Row(before, name)


def _below(step: Step, before: str, signs: _Signs) -> Iterator[_Row]:
    match step:
        case Workflow():
            yield from _rows(step.steps, before, signs)
        case Loop() | StreamLoop():
            yield from _rows(step.body, before, signs)
        case Conditional():
            ways = [
                (word, way)
                for word, way in (("then", step.then), ("otherwise", step.otherwise))
                if len(way)
            ]
            yield from _ways(ways, before, signs)
        case Parallel():
            yield from _branches(step, before, signs)


def _ways(ways: list[tuple[str, Steps]], before: str, signs: _Signs) -> Iterator[_Row]:
    for place, (word, way) in enumerate(ways):
        last = place == len(ways) - 1
        yield _Row(before + (signs.last if last else signs.more), word)
        yield from _rows(way, before + ("   " if last else signs.line), signs)


def _branches(step: Parallel, before: str, signs: _Signs) -> Iterator[_Row]:
    for place, way in enumerate(step.branches):
        last = place == len(step.branches) - 1
        corner, line = (signs.last, "   ") if last else (signs.more, signs.line)
        if way.prefix:
            yield _Row(before + corner, way.name)
            yield from _rows(way.steps, before + line, signs)
        else:
            name, only = way.steps.named[0]
            yield _row(before + corner, name, only, signs)
            yield from _below(only, before + line, signs)


def _line(row: _Row, column: int, width: int, signs: _Signs, dim: bool) -> str:
    head = _cut(row.before + row.name, width, signs)
    flow = _cut(row.flow, max(0, width - len(head) - 2), signs)
    room = width - max(column, len(head) + 2) - (len(flow) + 2 if flow else 0)
    text = _cut(row.text, max(0, room), signs)
    line = f"{head:<{column - 2}}  {text}" if text else head
    if flow:
        gap = " " * (width - len(line) - len(flow))
        line += gap + (f"{DIM}{flow}{PLAIN}" if dim else flow)
    return line


def _cut(text: str, room: int, signs: _Signs) -> str:
    if len(text) <= room:
        return text
    return text[: room - len(signs.cut)].rstrip() + signs.cut if room > len(signs.cut) else ""
