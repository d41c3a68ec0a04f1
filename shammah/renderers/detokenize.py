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
