"""The folder of a model from the Hub: the local cache first, then a download.

Knows which files a model is made of; the transfer is `huggingface`'s work.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shammah.errors import HubError, ModelError, ModelNotFoundError, ShammahError, StorageError
from shammah.models.huggingface import DISK_ERRORS, HuggingFaceHub
from shammah.models.source import check_folder

FILES = ("*.json", "*.jinja", "*.model", "*.txt", "model*.safetensors")


def fetch(
    hub_id: str,
    on_progress: Callable[[str], None] | None = None,
    *,
    revision: str | None = None,
) -> Path:
    """The folder of a model from the Hub, downloaded if it is not in the cache.

    A model that is complete in the cache needs no network.

    Args:
        on_progress: called with a line of text as the download goes on.
        revision: a branch, a tag or a commit; None is the Hub's default branch.

    Raises:
        ModelNotFoundError: no such model, no access to it, or no network.
        StorageError: the disk is full or cannot be written.
        ModelError: the model is only there as a pickle.
    """
    hub = HuggingFaceHub()
    try:
        path = hub.blocking_snapshot(hub_id, revision=revision, allow=FILES, cached=True)
        check_folder(path)
        return path
    except (HubError, ModelError):  # not there, or an interrupted download
        pass

    def report(done: int, total: int) -> None:
        if on_progress is not None:
            megabytes = f"{done / 1e6:.0f} of {total / 1e6:.0f} MB"
            on_progress(f"downloading {hub_id}: {megabytes}")

    try:
        path = hub.blocking_snapshot(hub_id, revision=revision, allow=FILES, on_progress=report)
    except HubError as error:
        raise _as_model_error(error) from error
    check_folder(path)
    return path


def _as_model_error(error: HubError) -> ShammahError:
    """The hub's error in the words of one who loads a model."""
    message = error.message.removeprefix(f"{error.backend}: ")
    if isinstance(error.__cause__, OSError) and error.__cause__.errno in DISK_ERRORS:
        return StorageError(message, hint=error.hint)
    return ModelNotFoundError(message, hint=error.hint)
