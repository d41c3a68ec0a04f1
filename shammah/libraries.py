"""The libraries of the extra `eval`, imported when something that needs one is made."""

from __future__ import annotations

import importlib
from typing import Any

from shammah.errors import UsageError


def library(module: str, what: str) -> Any:
    """A module of a library.

    Args:
        module: by its path, such as `sklearn.metrics`.
        what: what needs it, for the message.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"{what} needs {module.partition('.')[0]}, which cannot be imported: {error}.",
            hint="Install it: pip install 'shammah[eval]'.",
        ) from error
