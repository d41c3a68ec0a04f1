"""From the names in the settings to loggers at work. Each tool's client is imported when its logger
is opened, in that logger's thread."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

from shammah.errors import TrackingError
from shammah.tracking.loggers.base import RunIdentity, RunLogger
from shammah.tracking.loggers.jsonl import JsonlLogger
from shammah.tracking.loggers.multiplexer import CAPACITY, Multiplexer
from shammah.tracking.loggers.store import StoreLogger

_OWN: dict[str, Callable[[RunIdentity], RunLogger]] = {}
LOGGERS: dict[str, str] = {
    "tensorboard": "TensorBoardLogger",
    "wandb": "WandbLogger",
    "mlflow": "MlflowLogger",
    "neptune": "NeptuneLogger",
    "trackio": "TrackioLogger",
    "otel": "OtelLogger",
}
"""The class of each tool, in the module of its name; the extra has that name too."""
FOREGROUND = ("rich",)
"""Loggers that belong to the terminal where somebody waits, not to the process that trains."""


def register(name: str, make: Callable[[RunIdentity], RunLogger]) -> None:
    """Give a logger of one's own a name.

    Args:
        make: opens it for a run, in the thread that will use it; such as its class.

    Raises:
        TrackingError: the name is taken.
    """
    if name in LOGGERS or name in FOREGROUND or name in _OWN:
        raise TrackingError(f"there is a logger {name!r} already.")
    _OWN[name] = make


def known() -> list[str]:
    """The names that a logger can be chosen by."""
    return [*LOGGERS, *_OWN, *FOREGROUND]


def open_loggers(
    names: Sequence[str],
    run: RunIdentity,
    *,
    tell: Callable[[str], object] = lambda text: None,
    capacity: int = CAPACITY,
) -> Multiplexer:
    """The run's own files, the store of all runs, and the tools that were chosen, as one logger.
    Never fails: what cannot be opened is told in a line and left out.

    Args:
        names: of `LOGGERS` or registered ones; those of the foreground are passed over.
    """
    queued: dict[str, Callable[[], RunLogger]] = {"runs": lambda: StoreLogger(run)}
    for name in dict.fromkeys(names):
        if name not in FOREGROUND:
            queued[name] = _opener(name, run)
    return Multiplexer([JsonlLogger(run)], queued, tell=tell, capacity=capacity)


def open_logger(name: str, run: RunIdentity) -> RunLogger:
    """One tool's logger.

    Raises:
        TrackingError: there is no such logger, or its package is missing or too old.
        Exception: whatever the tool's client raises where it cannot begin.
    """
    if name in _OWN:
        return _OWN[name](run)
    if name not in LOGGERS:
        raise TrackingError(
            f"there is no logger {name!r}.",
            hint=f"There are {', '.join([*LOGGERS, *_OWN])} and rich.",
        )
    try:
        module = importlib.import_module(f"shammah.tracking.loggers.{name}")
        made: RunLogger = getattr(module, LOGGERS[name])(run)
    except ImportError as error:
        raise TrackingError(
            f"{error.name or name} is not installed.", hint=f"Run `pip install shammah[{name}]`."
        ) from error
    return made


def _opener(name: str, run: RunIdentity) -> Callable[[], RunLogger]:
    return lambda: open_logger(name, run)
