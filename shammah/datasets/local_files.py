"""Files on this machine as a data set: one file, several by a pattern, or a folder with splits.

Knows which reader a name stands for and which split it belongs to, not how a format is read.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from shammah.datasets.dataset import LazyDataset, RandomAccess
from shammah.datasets.readers import BACKEND, Reader
from shammah.datasets.readers.csv_table import csv_rows, tsv_rows
from shammah.datasets.readers.json_values import json_rows
from shammah.datasets.readers.lines import (
    LineAccess,
    Parse,
    jsonl_line,
    jsonl_rows,
    text_line,
    text_rows,
)
from shammah.datasets.readers.parquet import parquet_rows
from shammah.errors import DatasetError
from shammah.ports.dataset_store import BadRows, OnBad, Row

READERS: Mapping[str, Reader] = {
    ".jsonl": jsonl_rows,
    ".ndjson": jsonl_rows,
    ".json": json_rows,
    ".csv": csv_rows,
    ".tsv": tsv_rows,
    ".parquet": parquet_rows,
    ".txt": text_rows,
}
"""By ending; all but Parquet also with `.gz` after it."""

SPLITS: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""Words in a file's name and the split they stand for; a split may be asked for by any of them."""

_LINES: Mapping[Reader, Parse] = {jsonl_rows: jsonl_line, text_rows: text_line}
_PATTERN = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class FileRows:
    """Some files, read one after the other; a `RowSource`."""

    source: str
    files: tuple[Path, ...]
    by_split: Mapping[str, tuple[Path, ...]]

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.by_split)

    def split(self, name: str) -> FileRows:
        files = self.by_split.get(SPLITS.get(name, name))
        if files is None:
            raise DatasetError(
                f"{self.source} has no split {name!r}.",
                backend=BACKEND,
                hint=f"It has {', '.join(self.by_split)}.",
            )
        return FileRows(self.source, files, self.by_split)

    def rows(self, bad: BadRows) -> Iterator[Row]:
        for path in self.files:
            yield from _reader(path)(path, bad)

    def random_access(self) -> RandomAccess | None:
        parsers = {_LINES.get(_reader(path)) for path in self.files}
        parse = parsers.pop()
        if parse is None or parsers or any(path.suffix == ".gz" for path in self.files):
            return None
        try:
            return LineAccess(list(self.files), parse)
        except OSError as error:
            raise DatasetError(
                f"{self.source} cannot be read: {error.strerror or error}.", backend=BACKEND
            ) from error


class LocalFiles:
    """JSON, JSON Lines, CSV, TSV, Parquet and text, as a `DatasetStore`."""

    name = BACKEND

    async def load(
        self, source: str, *, split: str | None = None, on_bad: OnBad = "raise"
    ) -> LazyDataset:
        return await asyncio.to_thread(self.open, source, split=split, on_bad=on_bad)

    def open(
        self, source: str, *, split: str | None = None, on_bad: OnBad = "raise"
    ) -> LazyDataset:
        """`load`, for callers that do not wait.

        A file belongs to the split whose word is in its name: `train.jsonl`, `claims_dev.jsonl`,
        `train-00000-of-00002.parquet`. In a folder (and its `data` folder) those that have none are
        left out where others have one. Otherwise, where one has none, all are the split `train`.

        Args:
            source: a file, a folder, or a pattern such as `data/*.jsonl`.

        Raises:
            DatasetError: as the port says.
        """
        files = _files(source)
        named = {path: _split_of(path) for path in files}
        folder = Path(source).expanduser().is_dir()
        if not any(named.values()) or (not folder and not all(named.values())):
            named = dict.fromkeys(files, "train")
        by_split: dict[str, tuple[Path, ...]] = {}
        for word in dict.fromkeys((*SPLITS.values(), *filter(None, named.values()))):
            found = tuple(path for path, name in named.items() if name == word)
            if found:
                by_split[word] = found
        rows = FileRows(source, (), by_split)
        if split is None and len(by_split) > 1:
            raise DatasetError(
                f"{source} has the splits {', '.join(by_split)}.",
                backend=BACKEND,
                hint="Name one of them: split=, --split.",
            )
        return LazyDataset(rows.split(split or next(iter(by_split))), on_bad=on_bad)


def is_data_file(path: Path) -> bool:
    """Whether the name ends as one that can be read."""
    return _ending(path) in READERS


def is_pattern(source: str) -> bool:
    return bool(_PATTERN.search(source))


def _files(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_dir():
        files = [each for place in (path, path / "data") for each in _in(place)]
        if not files:
            raise DatasetError(f"There is no data file in {source}.", backend=BACKEND, hint=_KNOWN)
        return files
    if path.exists():
        if not is_data_file(path):
            raise DatasetError(f"{source} is of no known format.", backend=BACKEND, hint=_KNOWN)
        return [path]
    if is_pattern(source):
        root = Path(path.anchor) if path.is_absolute() else Path()
        pattern = str(path.relative_to(path.anchor)) if path.is_absolute() else str(path)
        files = sorted(each for each in root.glob(pattern) if is_data_file(each))
        if files:
            return files
    raise DatasetError(
        f"There is no file or folder {source}.",
        backend=BACKEND,
        hint="A data set of the Hub is written as hf:owner/name.",
    )


def _in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file() and is_data_file(path))


def _reader(path: Path) -> Reader:
    return READERS[_ending(path)]


def _ending(path: Path) -> str:
    endings = [ending.lower() for ending in path.suffixes]
    if endings[-1:] == [".gz"] and endings[-2:-1] != [".parquet"]:
        endings.pop()
    return endings[-1] if endings else ""


def _split_of(path: Path) -> str | None:
    words = re.split(r"[^a-z]+", path.name.lower())
    found = {SPLITS[word] for word in words if word in SPLITS}
    return found.pop() if len(found) == 1 else None


_KNOWN = f"Known endings: {', '.join(READERS)}, also packed as .gz (but Parquet)."
