"""Turns things into text for a terminal: Markdown, tables, colours, harmless characters.

Knows nothing of prompts or of the assistant. rich is imported on first use, so that the prompt
does not wait for it.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

# Everything that could move the cursor or change the terminal's state: C0 but tab and newline,
# DEL, C1, and the marks that reorder text (bidirectional overrides).
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
WIDE = 72
"""Columns that a terminal needs for a name beside numbers."""
_TRAILING = re.compile(r"[ \t]+((?:\x1b\[[0-9;]*m)*)$", re.MULTILINE)


def harmless(text: str) -> str:
    """The text without characters that a terminal would obey. Line ends become newlines."""
    return _UNSAFE.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def columns() -> int:
    """The width of the terminal, never less than 10."""
    return max(10, shutil.get_terminal_size((80, 24)).columns)


def cell(fixed: int, cells: int) -> int:
    """How wide each of so many long cells may be beside `fixed` columns of others."""
    width = width_of_output()
    if width < WIDE:  # The cells stand below each other there.
        return max(12, width - 20)
    return max(12, (width - fixed) // cells)


def width_of_output() -> int:
    """The width of the terminal; of a pipe or a file, wide enough that nothing is folded."""
    stream = sys.__stdout__
    return columns() if stream is not None and stream.isatty() else 160


def rows() -> int:
    """The height of the terminal, never less than 6."""
    return max(6, shutil.get_terminal_size((80, 24)).lines)


def unicode_output(stream: TextIO | None = None) -> bool:
    """Whether marks beyond ASCII can be shown."""
    encoding = getattr(stream or sys.stdout, "encoding", None) or "ascii"
    return encoding.lower().replace("-", "").startswith("utf")


def true_colour() -> bool:
    """Whether the terminal says that it shows 24-bit colours."""
    return os.environ.get("COLORTERM", "").lower() in ("truecolor", "24bit")


@lru_cache(maxsize=4)
def _console(width: int, coloured: bool) -> Console:
    import io

    from rich.console import Console
    from rich.theme import Theme

    plain = not coloured or bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    return Console(
        file=io.StringIO(),
        width=width,
        force_terminal=coloured,
        color_system=None if plain else "truecolor" if true_colour() else "256",
        no_color=plain,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
        theme=Theme({"markdown.code": "bold cyan"}),
    )


def render(*renderables: RenderableType, coloured: bool, width: int | None = None) -> str:
    """What rich makes of these, as text with escape sequences, without trailing blanks.

    Trailing blanks would be copied with the text, and wrap when the window becomes narrower.
    """
    console = _console(width or width_of_output(), coloured)
    with console.capture() as capture:
        for renderable in renderables:
            console.print(renderable)
    return _TRAILING.sub(r"\1", capture.get()).rstrip("\n")


def styled(text: str, style: str, *, coloured: bool) -> str:
    """Text in one of rich's styles, wrapped between words; as it is where there are no colours."""
    if not coloured:
        return text
    from rich.text import Text

    return render(Text(text, style=style), coloured=True)


def wrapped(text: str) -> str:
    """Text wrapped between words at the terminal's edge; styled text is left as it is."""
    if "\x1b" in text or all(len(line) < columns() // 2 for line in text.split("\n")):
        return text
    from rich.text import Text

    return render(Text(text), coloured=False)


def table(
    headings: Sequence[str],
    lines: Iterable[Sequence[object]],
    *,
    coloured: bool,
    right: Sequence[int] = (),
    whole: Sequence[int] = (),
    width: int | None = None,
) -> str:
    """Columns without rules, cells folded to fit the width; a column of empty cells is left out.

    Args:
        headings: one for each column.
        lines: the cells; shown by `str`, control characters left out.
        right: indices of the columns that are aligned to the right (numbers).
        whole: indices of the columns that are not folded where the terminal is wide enough.
    """
    from rich.table import Table
    from rich.text import Text

    cells = [[harmless(str(cell)) for cell in line] for line in lines]
    kept = [index for index in range(len(headings)) if any(line[index] for line in cells)]
    wide = (width or width_of_output()) >= WIDE
    if not wide and len(kept) > 3:
        # Too many columns to stand side by side: each line becomes a list of its own.
        return "\n\n".join(
            pairs(
                [(headings[index] or "*", line[index]) for index in kept if line[index]],
                coloured=coloured,
                width=width,
            )
            for line in cells
        )
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index in kept:
        grid.add_column(
            headings[index],
            justify="right" if index in right else "left",
            overflow="fold",
            no_wrap=wide and index in whole,
        )
    for line in cells:
        grid.add_row(*(Text(line[index]) for index in kept))
    return render(grid, coloured=coloured, width=width)


def pairs(lines: Iterable[tuple[str, object]], *, coloured: bool, width: int | None = None) -> str:
    """Names on the left, values on the right."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in lines:
        grid.add_row(name, Text(harmless(str(value))))
    return render(grid, coloured=coloured, width=width)


def one_line(text: str, width: int = 60) -> str:
    """The text on one line, cut to a width with an ellipsis."""
    flat = " ".join(harmless(text).split())
    return flat if len(flat) <= width else flat[: max(1, width - 1)].rstrip() + "…"


def size(count: float) -> str:
    """A number of bytes as people read it."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min"


def when(moment: datetime) -> str:
    """A moment in the user's own time."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
