"""Markdown that arrives in pieces: which blocks are finished, and how a block looks.

`MarkdownBlocks` cuts a growing text at the borders of its top-level blocks, so that a finished
block can be printed once and for all. Knows nothing of terminals or prompts.
"""

from __future__ import annotations

import itertools
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from shammah.repl.text import harmless, render

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

# What CommonMark takes for a line; `splitlines` knows other ends as well.
_LINE = re.compile(r"[^\r\n]*(?:\r\n?|\n)")
_BLANK = re.compile(r"^(?:\x1b\[[0-9;]*m)+$", re.MULTILINE)


class MarkdownBlocks:
    """Cuts a text that grows at its end into finished top-level blocks.

    Only whole lines are looked at: half a line may still turn out to be anything. The last block
    is never finished before the end, because the next line may belong to it. Joined together, the
    blocks and the tail are the text.
    """

    def __init__(self) -> None:
        self.tail = ""

    def feed(self, piece: str) -> list[str]:
        """Take the next piece; the blocks that are finished with it."""
        self.tail += piece
        if "\n" not in piece:
            return []
        whole = self.tail[: self.tail.rfind("\n") + 1]
        starts = block_starts(whole)
        if len(starts) < 2:
            return []
        lines = _LINE.findall(whole)
        # The first block takes the blank lines before it.
        borders = [0, *starts[1:]]
        blocks = ["".join(lines[a:b]) for a, b in itertools.pairwise(borders)]
        self.tail = self.tail[sum(len(block) for block in blocks) :]
        return blocks

    def finish(self) -> str:
        """The end of the text: what is left is the last block."""
        rest, self.tail = self.tail, ""
        return rest


def block_starts(text: str) -> list[int]:
    """The numbers of the lines that top-level blocks start on."""
    return [
        token.map[0]
        for token in parser().parse(text)
        if token.level == 0 and token.nesting >= 0 and token.map is not None
    ]


@lru_cache(maxsize=1)
def parser() -> MarkdownIt:
    """CommonMark with tables and strikethrough. Raw HTML and link definitions stay visible text:
    the first would not be shown at all, the second would need the whole text at once."""
    from markdown_it import MarkdownIt

    return (
        MarkdownIt()
        .enable("strikethrough")
        .enable("table")
        .disable(["html_block", "html_inline", "reference"])
    )


def render_markdown(text: str, *, theme: str, coloured: bool, width: int | None = None) -> str:
    """Markdown as terminal text with escape sequences; no blank lines around it."""
    document = _document_class()(harmless(text), code_theme=theme, hyperlinks=False)
    return _BLANK.sub("", render(document, coloured=coloured, width=width)).strip("\n")


@lru_cache(maxsize=1)
def _document_class() -> Any:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.markdown import CodeBlock, Heading, Markdown
    from rich.syntax import Syntax

    class Code(CodeBlock):
        """Highlighted, but without background and margins: it is copied as it is."""

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            code = str(self.text).rstrip("\n")
            yield Syntax(
                code, self.lexer_name, theme=self.theme, word_wrap=True,
                background_color="default",
            )  # fmt: skip

    class LeftHeading(Heading):
        LEVEL_ALIGN: ClassVar[dict[str, Any]] = {**Heading.LEVEL_ALIGN, "h1": "left"}

    class Document(Markdown):
        """rich's Markdown, read by our parser, with line breaks where the text has them."""

        elements: ClassVar[dict[str, Any]] = {
            **Markdown.elements,
            "fence": Code,
            "code_block": Code,
            "heading_open": LeftHeading,
        }

        def __init__(self, markup: str, code_theme: str, hyperlinks: bool) -> None:
            super().__init__("", code_theme=code_theme, hyperlinks=hyperlinks)
            self.markup = markup
            self.parsed = parser().parse(markup)
            for token in self.parsed:
                for child in token.children or ():
                    if child.type == "softbreak":
                        child.type, child.tag = "hardbreak", "br"

    return Document
