"""Shows one answer while it comes: finished Markdown blocks for good, the rest live.

Knows text and the screen, nothing of models.
"""

from __future__ import annotations

import asyncio

from shammah.repl.markdown import MarkdownBlocks, render_markdown
from shammah.repl.screen import Screen
from shammah.repl.text import harmless, rows, styled

REDRAW_SECONDS = 0.08
"""The live text is drawn at most this often: drawing takes time from decoding."""


class AnswerView:
    """Feed it pieces, then call `finish`.

    Args:
        markdown: render Markdown; else show the text as it is.
        theme: pygments style for code.
    """

    def __init__(self, screen: Screen, *, markdown: bool, theme: str) -> None:
        self._screen = screen
        self._markdown = markdown
        self._theme = theme
        self._blocks = MarkdownBlocks()
        self._line = ""
        self._printed = False
        self._redrawing: asyncio.TimerHandle | None = None

    def feed(self, piece: str) -> None:
        """Show the next piece of the answer."""
        if not self._markdown:
            whole, newline, self._line = (self._line + piece).rpartition("\n")
            if newline:
                self._screen.print(harmless(whole), live=harmless(self._line))
        else:
            for block in self._blocks.feed(piece):
                self._print(block, then=self._live())
        self._redraw_soon()

    def finish(self, *, cut: bool = False) -> None:
        """The answer has ended; `cut` says that it was stopped before its end."""
        if self._redrawing is not None:
            self._redrawing.cancel()
        if self._markdown:
            self._print(self._blocks.finish(), then="")
        elif self._line:
            self._screen.print(harmless(self._line), live="")
        if cut:
            self._screen.print(styled("… (stopped)", "dim", coloured=self._screen.coloured))
        self._screen.gap(live="")

    def _print(self, block: str, *, then: str) -> None:
        text = self._render(block)
        if text:
            if self._printed:
                self._screen.gap()
            self._screen.print(text, live=then)
            self._printed = True

    def _render(self, source: str) -> str:
        return render_markdown(source, theme=self._theme, coloured=self._screen.coloured)

    def _live(self) -> str:
        """The unfinished end as it looks now; of a long one only what fits on the screen."""
        if not self._markdown:
            return harmless(self._line)
        source = self._blocks.tail
        lines = source.split("\n")
        if len(lines) > rows():
            # Highlighting a long code block again and again would cost more than decoding it.
            fence = lines[0].lstrip() if lines[0].lstrip().startswith(("```", "~~~")) else ""
            source = "\n".join([fence, *lines[-rows() :]])
        text = self._render(source)
        return "\n" + text if text and self._printed else text

    def _redraw_soon(self) -> None:
        if self._redrawing is None and self._screen.interactive:
            loop = asyncio.get_running_loop()
            self._redrawing = loop.call_later(REDRAW_SECONDS, self._redraw)

    def _redraw(self) -> None:
        self._redrawing = None
        self._screen.set_live(self._live())


class PlainView:
    """Shows one answer where nothing can be drawn twice: every piece as it comes."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._last = ""

    def feed(self, piece: str) -> None:
        """Show the next piece of the answer."""
        if text := harmless(piece):
            self._screen.write(text)
            self._last = text

    def finish(self, *, cut: bool = False) -> None:
        """The answer has ended; `cut` says that it was stopped before its end."""
        if self._last and not self._last.endswith("\n"):
            self._screen.print()
        if cut:
            self._screen.print("... (stopped)")
        self._screen.gap()
