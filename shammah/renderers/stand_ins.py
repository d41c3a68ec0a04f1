"""Characters of nobody's that stand for something else while a chat template runs.

A template is given text and gives text back, so that what it did with a piece is seen only by what
is in the piece. Private-use characters that occur nowhere else are taken for that: one for each
look-alike of a special token, which comes out as the text it was, and others as marks around what a
message says. Knows nothing about messages.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from shammah.renderers.tokenization import TextTokenizer

_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


class StandIns:
    """The stand-ins in one conversation.

    Args:
        text: the tokenizer, which knows what a look-alike is.
        whole: all the text there is, so that no stand-in occurs in it.
    """

    def __init__(self, text: TextTokenizer, whole: str) -> None:
        self._text = text
        used = {character for character in whole if ord(character) >= _PRIVATE_USE[0].start}
        codes = chain.from_iterable(_PRIVATE_USE)
        self._free: Iterator[str] = (chr(code) for code in codes if chr(code) not in used)
        self._by_text: dict[str, str] = {}

    def guard(self, text: str, *, all_steering: bool) -> str:
        """The text with a stand-in for each look-alike; `all_steering` as in TextTokenizer."""
        pieces, position = [], 0
        for start, end in self._text.look_alikes(text, all_steering=all_steering):
            look_alike = text[start:end]
            if look_alike not in self._by_text:
                self._by_text[look_alike] = next(self._free)
            pieces += [text[position:start], self._by_text[look_alike]]
            position = end
        return "".join([*pieces, text[position:]])

    def guard_all(self, value: Any) -> Any:
        """JSON with each text in it guarded."""
        if isinstance(value, str):
            return self.guard(value, all_steering=True)
        if isinstance(value, Mapping):
            return {self.guard_all(key): self.guard_all(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.guard_all(inner) for inner in value]
        return value

    def mark(self) -> str:
        """A character that has not been given out."""
        return next(self._free)

    def parts(self, written: str) -> list[tuple[str, bool]]:
        """What was written, with the look-alikes as the literal text they were."""
        if not self._by_text:
            return [(written, False)] if written else []
        literal = {character: text for text, character in self._by_text.items()}
        pieces = re.split("([" + "".join(literal) + "])", written)
        return [(literal.get(piece, piece), piece in literal) for piece in pieces if piece]

    def positions(self, written: str, positions: Sequence[int]) -> list[int]:
        """Where places in `written` are in the joined text of its `parts`."""
        longer = {character: len(text) - 1 for text, character in self._by_text.items()}
        found = [at for at, character in enumerate(written) if character in longer]
        added = [0]
        for at in found:
            added.append(added[-1] + longer[written[at]])
        return [position + added[bisect_left(found, position)] for position in positions]
