"""Parquet, by pyarrow: some hundred rows at a time, so that memory holds one block of one group."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shammah.datasets.readers import BACKEND
from shammah.errors import DatasetError
from shammah.ports.dataset_store import BadRows, Origin, Row

BATCH = 256


def parquet_rows(path: Path, bad: BadRows) -> Iterator[Row]:
    """The rows of a Parquet file. A damaged one fails as a whole: there are no bad rows.

    Raises:
        DatasetError: it cannot be read, or pyarrow is not installed.
    """
    arrow, parquet = _pyarrow(path)
    origin = Origin(str(path), "row")
    number = 0
    try:
        with parquet.ParquetFile(path, memory_map=False, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=BATCH, use_threads=False):
                for values in batch.to_pylist():
                    number += 1
                    yield Row.of(values, origin, number)
    except (OSError, arrow.ArrowException) as error:
        raise DatasetError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.", backend=BACKEND
        ) from error


def _pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise DatasetError(
            f"{path} is Parquet, and pyarrow is not installed.",
            backend=BACKEND,
            hint="Install it: pip install 'shammah[data]'.",
        ) from error
