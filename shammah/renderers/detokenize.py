"""Text from tokens as they come, never a part of a character.

Knows a function from tokens to text. Each token costs the decoding of a short window, so that an
answer of n tokens costs O(n) altogether.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER = 8
"""Tokens to wait for the rest of a character; no UTF-8 character has more bytes than 4."""


class Detokenizer:
    """Gives the text that each token adds.

    Args:
        decode: text of a sequence of tokens.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._context = 0
        self._text = ""

    def push(self, token: int) -> str:
        """The text that is now certain: empty while a character is incomplete."""
        self._window.append(token)
        waiting = len(self._window) - self._context
        text = self._decode(self._window)
        if text.endswith(_REPLACEMENT) and waiting < _LONGEST_CHARACTER:
            return ""
        return self._advance(text)

    def finish(self) -> str:
        """What is left at the end, with a replacement character for half a character."""
        if len(self._window) == self._context:
            return ""
        return self._advance(self._decode(self._window))

    def _advance(self, text: str) -> str:
        added = text[len(self._text) :]
        # The tokens just given stay as the context of the next ones: some vocabularies write a
        # token differently at the beginning of a text.
        self._window = self._window[self._context :]
        self._context = len(self._window)
        self._text = self._decode(self._window)
        return added


class StopTexts:
    """Holds back text that may be the beginning of a stop text, and ends at a stop text.

    Args:
        stops: texts that end the answer and are not part of it.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._longest = max((len(stop) for stop in self._stops), default=0)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that is certain now, and whether a stop text was reached."""
        if not self._stops:
            return text, False
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = next(
            (
                size
                for size in range(min(self._longest - 1, len(text)), 0, -1)
                if any(stop.startswith(text[-size:]) for stop in self._stops)
            ),
            0,
        )
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def finish(self) -> str:
        """What was held back and turned out to be no stop text."""
        held, self._held = self._held, ""
        return held
