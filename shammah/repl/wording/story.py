"""A run's story as a tree."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from shammah.repl import text
from shammah.tracking.plot import number_text
from shammah.tracking.story import Scope, Table, Talk, Text
from shammah.tracking.story_html import cell_text, message_text

NARROWEST = 24
"""Columns that a text gets however deep it stands."""


def story_tree(
    story: Sequence[Scope], *, width: int, coloured: bool, depth: int | None = None
) -> str:
    """Scopes within scopes, each with what was told in it.

    Args:
        width: columns.
        depth: how many scopes within one another are opened; None opens all.
    """
    branch, last, down = ("├─ ", "└─ ", "│  ") if text.unicode_output() else ("|- ", "`- ", "|  ")
    lines: list[str] = []

    def tell(scope: Scope, before: str, after: str, left: int | None) -> None:
        lines.append(before + text.styled(_head(scope), "bold", coloured=coloured))
        if left is not None and left <= 0:
            if scope.entries:
                lines[-1] += f" ({text.counted(len(scope.entries), 'part')})"
            return
        scopes = [entry for entry in scope.entries if isinstance(entry, Scope)]
        for entry in scope.entries:
            if isinstance(entry, Scope):
                end = entry is scopes[-1]
                deeper = None if left is None else left - 1
                tell(
                    entry,
                    after + (last if end else branch),
                    after + ("   " if end else down),
                    deeper,
                )
            else:
                open_still = bool(scopes) and _before(scope, entry, scopes[-1])
                edge = after + (down if open_still else "   ")
                room = max(NARROWEST, width - len(edge))
                lines.extend((edge + line).rstrip() for line in _told(entry, room, coloured))

    for scope in story:
        tell(scope, "", "", None if depth is None else depth)
    return "\n".join(lines)


def _before(scope: Scope, entry: object, other: Scope) -> bool:
    """Whether an entry stands before another."""
    for each in scope.entries:
        if each is entry:
            return True
        if each is other:
            return False
    return False


def _head(scope: Scope) -> str:
    title = text.one_line(text.harmless(scope.title), 100) or "(outside of any scope)"
    told = "not ended" if scope.seconds is None else text.duration(scope.seconds)
    return f"{title}  {told}" + (f", {text.harmless(scope.error)}" if scope.error else "")


def _told(entry: Text | Table | Talk, width: int, coloured: bool) -> Iterator[str]:
    match entry:
        case Text():
            yield from _wrapped(entry.text, width)
        case Table():
            if entry.title:
                yield text.harmless(entry.title)
            rows = [[cell_text(cell) for cell in row] for row in entry.rows]
            numbers = [
                place
                for place in range(len(entry.columns))
                if entry.rows
                and all(
                    isinstance(row[place], int | float) and not isinstance(row[place], bool)
                    for row in entry.rows
                )
            ]
            shown = text.table(entry.columns, rows, coloured=coloured, right=numbers, width=width)
            yield from shown.splitlines()
        case Talk():
            reward = "" if entry.reward is None else f"reward {number_text(entry.reward)}"
            title = "  ".join(part for part in (text.harmless(entry.title), reward) if part)
            if title:
                yield title
            for message in entry.messages:
                role = text.harmless(str(message.get("role", "")))[:10]
                said = _wrapped(message_text(message), max(NARROWEST, width - 13))
                for number, line in enumerate(said):
                    yield f"  {role if number == 0 else '':<10} {line}"


def _wrapped(told: str, width: int) -> list[str]:
    lines: list[str] = []
    for line in text.harmless(told).splitlines() or [""]:
        lines += textwrap.wrap(line, width, break_long_words=True, replace_whitespace=False) or [""]
    return lines
