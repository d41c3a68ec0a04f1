"""Models from the Hugging Face Hub: the local cache first, then a download.

Knows how to get a folder; what is in it is for others to judge.
"""

from __future__ import annotations

import errno
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shammah.errors import ModelError, ModelNotFoundError, ShammahError, StorageError
from shammah.files import storage_error
from shammah.models.source import check_folder

_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "model*.safetensors"]
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def fetch(hub_id: str, on_progress: Callable[[str], None] | None = None) -> Path:
    """The folder of a model from the Hub, downloaded if it is not in the cache.

    A model that is complete in the cache needs no network.

    Args:
        on_progress: called with a line of text as the download goes on.

    Raises:
        ModelNotFoundError: no such model, no access to it, or no network.
        StorageError: the disk is full or cannot be written.
        ModelError: the model is only there as a pickle.
    """
    cached = _cached(hub_id)
    return cached if cached is not None else _download(hub_id, on_progress)


def _cached(hub_id: str) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        path = Path(snapshot_download(hub_id, allow_patterns=_FILES, local_files_only=True))
        check_folder(path)
    except (FileNotFoundError, ModelError):  # not there, or an interrupted download
        return None
    return path


def _download(hub_id: str, on_progress: Callable[[str], None] | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        planned = snapshot_download(
            hub_id, allow_patterns=_FILES, dry_run=True, tqdm_class=_progress_bar(hub_id, None)
        )
        _check_disk(hub_id, planned)
        path = Path(
            snapshot_download(
                hub_id,
                allow_patterns=_FILES,
                tqdm_class=_progress_bar(hub_id, on_progress),
            )
        )
    except ShammahError:
        raise
    except Exception as error:  # the HTTP library has errors of its own: no name, no route, ...
        raise _explain(hub_id, error) from error
    check_folder(path)
    return path


def _explain(hub_id: str, error: BaseException) -> ShammahError:
    from huggingface_hub.errors import DryRunError, GatedRepoError, RepositoryNotFoundError

    if isinstance(error, DryRunError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, GatedRepoError):
        return ModelNotFoundError(
            f"Access to {hub_id} must be granted first.",
            hint=f"Accept its terms at https://huggingface.co/{hub_id}, then run `hf auth login`.",
        )
    if isinstance(error, RepositoryNotFoundError):
        return ModelNotFoundError(
            f"There is no model {hub_id} on the Hub, or it is private.",
            hint="Check the name; for a private model run `hf auth login` first.",
        )
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return storage_error(error, _cache_folder())
    return ModelNotFoundError(
        f"{hub_id} is not in the local cache and the Hub cannot be reached.",
        hint="Connect and try again, or use a local folder or `embedded` as the model.",
    )


def _cache_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _check_disk(hub_id: str, planned: list[Any]) -> None:
    needed = sum(file.file_size or 0 for file in planned if file.will_download)
    folder = _cache_folder()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"{hub_id} needs {needed / 1e9:.1f} GB on disk and {folder} has {free / 1e9:.1f} GB.",
            hint="Free some space, or point HF_HOME to a larger disk.",
        )


def _progress_bar(hub_id: str, on_progress: Callable[[str], None] | None) -> type[Any]:
    """A tqdm class that reports bytes to the callback and prints nothing."""
    from tqdm.std import tqdm

    class Progress(tqdm):  # type: ignore[type-arg, misc, unused-ignore]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            kwargs.update(file=io.StringIO(), mininterval=0.5, disable=False)
            super().__init__(*args, **kwargs)

        def display(self, *args: Any, **kwargs: Any) -> bool:
            if on_progress is not None and self.unit == "B" and self.total:
                done, total = self.n / 1e6, self.total / 1e6
                on_progress(f"downloading {hub_id}: {done:.0f} of {total:.0f} MB")
            return True

    return Progress
