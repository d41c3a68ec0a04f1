"""Data sets of the Hugging Face Hub, and folders in that library's own formats, by `datasets`.

Imports it only when a data set is opened. Rows come as the library gives them.
"""

from __future__ import annotations

import asyncio
import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shammah.datasets.dataset import LazyDataset, RandomAccess
from shammah.errors import DatasetError
from shammah.ports.dataset_store import BadRows, OnBad, Origin, Row

BACKEND = "Hugging Face datasets"
PREFIX = "hf:"

_ID = re.compile(r"(?P<id>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, slots=True)
class HuggingFaceRows:
    """One split of what the library opened; a `RowSource`."""

    source: str
    name: str
    by_split: Mapping[str, Any]

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.by_split)

    def split(self, name: str) -> HuggingFaceRows:
        if name not in self.by_split:
            raise DatasetError(
                f"{self.source} has no split {name!r}.",
                backend=BACKEND,
                hint=f"It has {', '.join(self.by_split)}.",
            )
        return HuggingFaceRows(self.source, name, self.by_split)

    def rows(self, bad: BadRows) -> Iterator[Row]:
        origin, number = self._origin(), 0
        rows = iter(self.by_split[self.name])
        while True:
            try:
                values = next(rows, None)
            except Exception as error:  # pyarrow's, fsspec's, the network's: it wraps them little
                raise _failed(f"{origin.place(number + 1)} cannot be read", error) from error
            if values is None:
                return
            number += 1
            yield Row.of(values, origin, number)

    def random_access(self) -> RandomAccess | None:
        rows = self.by_split[self.name]
        return _Prepared(rows, self._origin()) if hasattr(rows, "__len__") else None

    def _origin(self) -> Origin:
        return Origin(f"{self.source}[{self.name}]", "row")


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Any row of a data set that lies prepared on disk."""

    data: Any
    origin: Origin

    def __len__(self) -> int:
        return len(self.data)

    def read(self, index: int, bad: BadRows) -> Row | None:
        return Row.of(self.data[index], self.origin, index + 1)

    def close(self) -> None:
        pass


class HuggingFaceDatasets:
    """A `DatasetStore` of Hub ids and local folders."""

    name = BACKEND

    def __init__(self, *, streaming: bool = True) -> None:
        """Args:
        streaming: read rows as they come over the network. Without it a data set is downloaded and
            prepared first, which costs disk, not memory, and makes an exact shuffle cheap.
        """
        self.streaming = streaming

    async def load(
        self, source: str, *, split: str | None = None, on_bad: OnBad = "raise"
    ) -> LazyDataset:
        return await asyncio.to_thread(self.open, source, split=split, on_bad=on_bad)

    def open(
        self, source: str, *, split: str | None = None, on_bad: OnBad = "raise"
    ) -> LazyDataset:
        """`load`, for callers that do not wait.

        Args:
            source: `owner/name`, `owner/name:config`, either with `@revision`, or a folder: one
                that `save_to_disk` wrote, or one that `load_dataset` takes. `hf:` before it is
                passed over.

        Raises:
            DatasetError: as the port says.
        """
        library = _library()
        try:
            opened = self._opened(library, source.removeprefix(PREFIX))
        except DatasetError:
            raise
        except Exception as error:  # it raises its own, huggingface_hub's, pyarrow's and builtins
            raise _failed(f"{source} cannot be opened", error) from error
        by_split = dict(opened) if isinstance(opened, dict) else {opened.split or "train": opened}
        by_split = {str(name): rows for name, rows in by_split.items()}
        if split is None and len(by_split) > 1:
            raise DatasetError(
                f"{source} has the splits {', '.join(by_split)}.",
                backend=BACKEND,
                hint="Name one of them: split=, --split.",
            )
        rows = HuggingFaceRows(source, "", by_split).split(split or next(iter(by_split)))
        return LazyDataset(rows, on_bad=on_bad)

    def _opened(self, library: Any, source: str) -> Any:
        folder = Path(source).expanduser()
        if folder.is_dir():
            if is_saved(folder):
                return library.load_from_disk(str(folder))
            return library.load_dataset(str(folder), streaming=self.streaming)
        found = _ID.fullmatch(source)
        if found is None:
            raise DatasetError(
                f"{source!r} is neither a folder nor a name of the Hub.",
                backend=BACKEND,
                hint="Names are owner/name, with :config and @revision where wanted.",
            )
        return library.load_dataset(
            found["id"], found["config"], revision=found["revision"], streaming=self.streaming
        )


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def is_hub_id(source: str) -> bool:
    """Whether it reads `owner/name`, with config or revision or not."""
    found = _ID.fullmatch(source)
    return found is not None and "/" in found["id"]


def _library() -> Any:
    try:
        library = importlib.import_module("datasets")
    except ImportError as error:
        raise DatasetError(
            "the library is not installed.",
            backend=BACKEND,
            hint="Install it: pip install 'shammah[data]'.",
        ) from error
    library.disable_progress_bars()
    return library


def _failed(what: str, error: Exception) -> DatasetError:
    said = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return DatasetError(
        f"{what}: {said.rstrip('.')}.",
        backend=BACKEND,
        hint="Is the name right, and the Hub reachable?"
        if isinstance(error, OSError)
        else str(error).partition("\n")[2].strip()[:400] or None,
    )
