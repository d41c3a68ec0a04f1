"""CSV and TSV: the first line names the columns, every value is text.

Holds one row at a time. A cell may hold line ends; a row's number is that of its first line.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from shammah.datasets.readers import MAX_LINE, open_bytes
from shammah.errors import InputError
from shammah.ports.dataset_store import BadRows, Origin, Row


def csv_rows(path: Path, bad: BadRows) -> Iterator[Row]:
    """The rows of a table with commas between the cells; lines without any cell are passed over.

    Raises:
        InputError: the first line does not name columns.
    """
    return _rows(path, bad, ",")


def tsv_rows(path: Path, bad: BadRows) -> Iterator[Row]:
    """The same with tabs between the cells."""
    return _rows(path, bad, "\t")


def _rows(path: Path, bad: BadRows, delimiter: str) -> Iterator[Row]:
    origin = Origin(str(path))
    # The limit is the module's, not the reader's; ours only ever raises it.
    csv.field_size_limit(max(MAX_LINE, csv.field_size_limit()))
    with open_bytes(path) as stream:
        # Bytes that are not UTF-8 become lone surrogates, so that only their row is rejected.
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        lines = csv.reader(text, delimiter=delimiter, strict=True)
        columns = _columns(lines, origin)
        while True:
            number = lines.line_num + 1
            try:
                cells = next(lines, None)
                if cells is None:
                    return
                if not cells:
                    continue
                _check(cells, columns)
            except (csv.Error, InputError) as error:
                bad.add(origin, number, str(error))
            else:
                yield Row.of(dict(zip(columns, cells, strict=True)), origin, number)


def _columns(lines: Iterator[list[str]], origin: Origin) -> list[str]:
    try:
        columns = next(lines, [])
        "".join(columns).encode()
    except (csv.Error, UnicodeEncodeError) as error:
        raise InputError(f"{origin.place(1)}: the first line cannot be read: {error}") from None
    twice = {name for name in columns if columns.count(name) > 1}
    if twice:
        raise InputError(
            f"{origin.place(1)}: several columns are called {', '.join(sorted(map(repr, twice)))}.",
            hint="The first line must give every column a name of its own.",
        )
    return columns


def _check(cells: list[str], columns: list[str]) -> None:
    if len(cells) != len(columns):
        raise InputError(f"{len(cells)} cells, but there are {len(columns)} columns")
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        raise InputError("not UTF-8") from None
