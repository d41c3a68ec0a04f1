"""Phrasings written as alternations: `{how do i|how can i} {flip|reverse} a list`.

`{a|b|}` is a choice (an empty branch makes it optional), choices nest, and a backslash makes
the next character literal. Knows nothing about questions, answers or topics.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

_WORD = re.compile(r"(?<![a-z<])[a-z]{3,14}(?![a-z>])")
_SPACES = re.compile(r" {2,}")
_SPECIAL = frozenset("{|}\\")


class GrammarError(ValueError):
    """Raised when an alternation is not closed, or closed without being opened."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """One parsed phrasing: a sequence of literal strings and choices between sequences."""

    parts: tuple[str | tuple[Grammar, ...], ...]

    def sample(self, rng: random.Random) -> str:
        """One phrasing, each choice drawn evenly."""
        return tidy(self._draw(rng))

    def expand(self) -> Iterator[str]:
        """Every phrasing. The number can be large: see `count`."""
        return (tidy(text) for text in self._walk(0))

    def count(self) -> int:
        """How many phrasings `expand` yields."""
        total = 1
        for part in self.parts:
            if not isinstance(part, str):
                total *= sum(branch.count() for branch in part)
        return total

    def matches(self, text: str) -> bool:
        """Whether `text` is one of the phrasings; case and blanks do not count."""
        bare = text.lower().replace(" ", "")
        return len(bare) in self._ends(bare, {0})

    def _ends(self, text: str, starts: set[int]) -> set[int]:
        """Where a phrasing may end that begins at one of `starts`; `text` without blanks."""
        for part in self.parts:
            if isinstance(part, str):
                bare = part.lower().replace(" ", "")
                starts = {at + len(bare) for at in starts if text.startswith(bare, at)}
            else:
                starts = {end for branch in part for end in branch._ends(text, starts)}
            if not starts:
                break
        return starts

    def words(self) -> set[str]:
        """The words that it may yield, in lower case; of three letters to fourteen."""
        found: set[str] = set()
        for part in self.parts:
            if isinstance(part, str):
                found.update(_WORD.findall(part.lower()))
            else:
                found.update(*(branch.words() for branch in part))
        return found

    def _draw(self, rng: random.Random) -> str:
        return "".join(
            part if isinstance(part, str) else part[rng.randrange(len(part))]._draw(rng)
            for part in self.parts
        )

    def _walk(self, start: int) -> Iterator[str]:
        if start == len(self.parts):
            yield ""
            return
        part = self.parts[start]
        heads = (
            iter((part,))
            if isinstance(part, str)
            else (text for branch in part for text in branch._walk(0))
        )
        for head in heads:
            for tail in self._walk(start + 1):
                yield head + tail


@lru_cache(maxsize=65536)
def parse(text: str) -> Grammar:
    """Parse one phrasing.

    Raises:
        GrammarError: a brace is missing, or one too many is there.
    """
    grammar, end = _sequence(text, 0, nested=False)
    if end != len(text):
        raise GrammarError(f"unexpected {text[end]!r} at position {end} in {text!r}")
    return grammar


def escape(text: str) -> str:
    """Text in which every special character stands for itself."""
    return "".join("\\" + char if char in _SPECIAL else char for char in text)


def tidy(text: str) -> str:
    """Blanks that an empty branch left doubled, or at the ends, are removed."""
    return _SPACES.sub(" ", text).strip().replace(" ?", "?").replace(" ,", ",")


def _sequence(text: str, at: int, *, nested: bool) -> tuple[Grammar, int]:
    parts: list[str | tuple[Grammar, ...]] = []
    literal: list[str] = []

    def flush() -> None:
        if literal:
            parts.append("".join(literal))
            literal.clear()

    while at < len(text):
        char = text[at]
        if char == "\\" and at + 1 < len(text):
            literal.append(text[at + 1])
            at += 2
        elif char == "{":
            flush()
            branches, at = _choice(text, at + 1)
            parts.append(branches)
        elif char in "|}" and nested:
            break
        elif char == "}":
            raise GrammarError(f"'}}' without '{{' at position {at} in {text!r}")
        else:
            literal.append(char)
            at += 1
    flush()
    return Grammar(tuple(parts)), at


def _choice(text: str, at: int) -> tuple[tuple[Grammar, ...], int]:
    branches = []
    while True:
        branch, at = _sequence(text, at, nested=True)
        branches.append(branch)
        if at >= len(text):
            raise GrammarError(f"'{{' is never closed in {text!r}")
        at += 1
        if text[at - 1] == "}":
            return tuple(branches), at
