"""One door to every store: what a source's name means."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path

from shammah.datasets.dataset import LazyDataset
from shammah.datasets.huggingface import PREFIX, HuggingFaceDatasets, is_hub_id, is_saved
from shammah.datasets.local_files import LocalFiles, is_data_file, is_pattern
from shammah.ports.dataset_store import OnBad


def open_dataset(
    source: str | PathLike[str], *, split: str | None = None, on_bad: OnBad = "raise"
) -> LazyDataset:
    """A lazy handle on rows: `open_dataset("train.jsonl").shuffle(7).take(100).examples("gsm8k")`.

    Args:
        source: a file, folder or pattern on this machine, a folder written by `save_to_disk`, or
            a data set of the Hub (`owner/name`, or `hf:` and a name; what lies here goes first).
        split: which split, where there are several.
        on_bad: an error at the first bad row, or a count of them (`.bad_rows`).

    Raises:
        DatasetError: there is no such source or split, it has several splits and none is named, or
            a library it needs is missing.
    """
    name = fspath(source)
    return store_for(name).open(name, split=split, on_bad=on_bad)


def store_for(source: str) -> LocalFiles | HuggingFaceDatasets:
    """The store that a source's name belongs to."""
    path = Path(source).expanduser()
    if source.startswith(PREFIX) or (path.is_dir() and is_saved(path)):
        return HuggingFaceDatasets()
    if path.exists() or is_pattern(source) or is_data_file(path) or not is_hub_id(source):
        return LocalFiles()
    return HuggingFaceDatasets()
