"""Line by line: JSON Lines (one object a line) and plain text (one row a line).

Holds one line at a time, so that a file may be of any size.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from shammah.datasets.readers import MAX_LINE, open_bytes
from shammah.errors import InputError
from shammah.ports.dataset_store import BadRows, Origin, Row

_BOM = b"\xef\xbb\xbf"
Parse = Callable[[bytes], dict[str, Any] | None]
"""A line, with its end, to a row's values; None for a line that is none. Raises InputError."""


def jsonl_rows(path: Path, bad: BadRows) -> Iterator[Row]:
    """The objects of a JSON Lines file; empty lines are passed over."""
    return _rows(path, bad, jsonl_line)


def text_rows(path: Path, bad: BadRows) -> Iterator[Row]:
    """The lines of a UTF-8 text file as `{"text": line}`, without their ends; empty ones too."""
    return _rows(path, bad, text_line)


def jsonl_line(line: bytes) -> dict[str, Any] | None:
    """The object in a line.

    Raises:
        InputError: there is another thing in it; the message is the reason.
    """
    try:
        text = line.decode()
        value, end = _SCAN(text, 0)
        # Anything out of the ordinary goes the slow way, which says what it is.
        if (
            type(value) is dict
            and text[end:].isspace()
            # Looking for one byte costs next to nothing, for three as much as all the rest.
            and (b"\\" not in line or (b"\\ud" not in line and b"\\uD" not in line))
        ):
            return value
    except (StopIteration, ValueError, RecursionError):
        pass
    return parse_object(line) if line.strip() else None


def text_line(line: bytes) -> dict[str, Any]:
    """The text in a line.

    Raises:
        InputError: it is not UTF-8.
    """
    try:
        return {"text": line.decode().removesuffix("\n").removesuffix("\r")}
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 (byte {error.start + 1})") from None


def parse_object(line: bytes) -> dict[str, Any]:
    """One JSON object, by Python's own parser; the reference for the fast way.

    Raises:
        InputError: it is not one; the message is the reason.
    """
    try:
        # Without its end, or an error there would be said to be in the next line.
        value = json.loads(line.decode().rstrip(), parse_constant=not_a_number)
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 (byte {error.start + 1})") from None
    except RecursionError:
        raise InputError("not JSON: nested too deeply") from None
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error.msg} at column {error.colno}") from None
    except ValueError as error:
        raise InputError(f"not JSON: {error}") from None
    return checked_object(value)


def checked_object(value: Any) -> dict[str, Any]:
    """The value, if it is an object of whole characters.

    Raises:
        InputError: it is not; the message is the reason.
    """
    if not isinstance(value, dict):
        raise InputError(f"not an object but {kind(value)}")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InputError("not UTF-8: it holds half a character (a lone surrogate)") from None
    return value


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {list: "a list", str: "a text", bool: "true or false", dict: "an object"}
    return names.get(type(value), "null" if value is None else "a number")


def not_a_number(name: str) -> NoReturn:
    """For `parse_constant`: NaN and the infinities are not JSON."""
    raise ValueError(f"{name} is no number")


class LineAccess:
    """Any line of several files by number: their offsets, 8 bytes each, and open files."""

    def __init__(self, paths: list[Path], parse: Parse) -> None:
        self._parse = parse
        self._origins = [Origin(str(path)) for path in paths]
        self._ends: list[int] = []  # lines up to the end of each file
        self._offsets = array("Q")
        self._files: list[IO[bytes]] = []
        self._numbers = array("Q")
        for path in paths:
            self._files.append(path.open("rb"))
            for number, offset in _offsets(self._files[-1], parse is text_line):
                self._offsets.append(offset)
                self._numbers.append(number)
            self._ends.append(len(self._offsets))

    def __len__(self) -> int:
        return len(self._offsets)

    def read(self, index: int, bad: BadRows) -> Row | None:
        which = bisect_right(self._ends, index)
        file, origin, number = self._files[which], self._origins[which], self._numbers[index]
        file.seek(self._offsets[index])
        return _row(file.readline(MAX_LINE + 1), origin, number, bad, self._parse)

    def close(self) -> None:
        for file in self._files:
            file.close()


# An attribute that the type stubs leave out: the scanner without the search for white space.
_SCAN = cast(Any, json.JSONDecoder(parse_constant=not_a_number)).scan_once


def _rows(path: Path, bad: BadRows, parse: Parse) -> Iterator[Row]:
    origin = Origin(str(path))
    with open_bytes(path) as stream:
        read, number = stream.readline, 0
        while line := read(MAX_LINE + 1):
            number += 1
            if number == 1:
                line = line.removeprefix(_BOM)
            row = _row(line, origin, number, bad, parse)
            while len(line) > MAX_LINE and not line.endswith(b"\n"):
                line = read(MAX_LINE + 1)
            if row is not None:
                yield row


def _row(line: bytes, origin: Origin, number: int, bad: BadRows, parse: Parse) -> Row | None:
    try:
        if len(line) > MAX_LINE:
            raise InputError(f"longer than {MAX_LINE:,} bytes")
        values = parse(line)
    except InputError as error:
        bad.add(origin, number, error.message)
        return None
    return None if values is None else Row.of(values, origin, number)


def _offsets(stream: IO[bytes], empty: bool) -> Iterator[tuple[int, int]]:
    """Number and offset of each line; of empty ones only if wanted."""
    offset = number = 0
    if stream.read(3) == _BOM:
        offset = 3
    stream.seek(offset)
    begins = True
    while line := stream.readline(MAX_LINE + 1):
        if begins:
            number += 1
            if empty or not line.isspace():
                yield number, offset
        offset += len(line)
        begins = line.endswith(b"\n")
