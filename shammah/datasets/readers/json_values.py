"""JSON files that are not one object a line: an array of objects, or objects one after the other.

Holds one object and one block of text at a time. Where an object begins is known only from where
the one before it ends, so bad JSON ends the reading; a value that is no object is one bad row.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from shammah.datasets.readers import MAX_LINE, open_bytes
from shammah.datasets.readers.lines import checked_object, not_a_number
from shammah.errors import InputError
from shammah.ports.dataset_store import BadRows, Origin, Row

BLOCK = 1 << 18
_SPACE = " \t\r\n"
_MARGIN = 16
"""An error so near to the end of what was read may only mean that more is to come."""


def json_rows(path: Path, bad: BadRows) -> Iterator[Row]:
    """The objects of a JSON file, with the lines they begin on.

    Raises:
        InputError: it is not JSON, whether or not bad rows are skipped.
    """
    origin = Origin(str(path))
    with open_bytes(path) as stream:
        for value, line, plain in _Values(stream, origin):
            try:
                values = value if plain and type(value) is dict else checked_object(value)
                row = Row.of(values, origin, line)
            except InputError as error:
                bad.add(origin, line, error.message)
            else:
                yield row


class _Values:
    """Values, the lines they begin on, and whether they are plain: without an escape such as those
    that half a character is written with."""

    def __init__(self, stream: IO[bytes], origin: Origin) -> None:
        self._read = stream.read
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._parse = json.JSONDecoder(parse_constant=not_a_number).raw_decode
        self._origin = origin
        self._text, self._at, self._line = "", 0, 1
        self._ended = False

    def __iter__(self) -> Iterator[tuple[Any, int, bool]]:
        array = self._next() == "["
        if array:
            self._move(self._at + 1)
        first = True
        while True:
            character = self._next()
            if array and character == "]":
                self._move(self._at + 1)
                if self._next():
                    raise self._error("there is more after the end of the list")
                return
            if not character:
                if array:
                    raise self._error("the list does not end")
                return
            if array and not first:
                if character != ",":
                    raise self._error("not JSON: no comma between two values of the list")
                self._move(self._at + 1)
                self._next()
            first = False
            line = self._line
            value, plain = self._value()
            yield value, line, plain

    def _next(self) -> str:
        """The character after white space; empty at the end."""
        while True:
            text, at = self._text, self._at
            while at < len(text) and text[at] in _SPACE:
                at += 1
            self._move(at)
            if at < len(text):
                return text[at]
            if not self._more():
                return ""

    def _value(self) -> tuple[Any, bool]:
        block = BLOCK
        while True:
            try:
                value, end = self._parse(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string")
                cut = cut or error.pos >= len(self._text) - _MARGIN
                if not cut or not self._more(block):
                    self._move(min(error.pos, len(self._text)))
                    raise self._error(f"not JSON: {error.msg}") from None
            except RecursionError:
                raise self._error("not JSON: nested too deeply") from None
            except ValueError as error:
                raise self._error(f"not JSON: {error}") from None
            else:
                # A number at the end of what was read may go on.
                if end < len(self._text) or not self._more(block):
                    # The backslash alone is looked for first, which costs next to nothing.
                    where = self._text.find("\\", self._at, end)
                    plain = where < 0 or self._text.find("\\u", where, end) < 0
                    self._move(end)
                    return value, plain
            block *= 2  # so that a long value is not parsed too often
            if len(self._text) - self._at > MAX_LINE:
                raise self._error(f"a value of more than {MAX_LINE:,} characters")

    def _more(self, size: int = BLOCK) -> bool:
        if self._ended:
            return False
        try:
            part = self._read(size)
            self._ended = not part
            self._text = self._text[self._at :] + self._decode(part, final=self._ended)
        except UnicodeDecodeError as error:
            raise self._error(f"not UTF-8: {error.reason}") from None
        self._at = 0
        return not self._ended

    def _move(self, to: int) -> None:
        self._line += self._text.count("\n", self._at, to)
        self._at = to

    def _error(self, reason: str) -> InputError:
        return InputError(
            f"{self._origin.place(self._line)}: {reason}",
            hint="The file cannot be read beyond this; JSON Lines (.jsonl) can be.",
        )
