"""The log file: standard `logging` into a rotating file that only its owner can read.

Several processes write into it, each a line at a time: the chat, commands, the worker. What
`telemetry` tells of is logged too. Above the level `debug` no word of a conversation is written:
nothing that is logged holds one on purpose, and an error's own words, which may quote what they are
about, lose what stands in quotation marks. What looks like a key or password is left out at every
level by the function that the caller gives.
"""

from __future__ import annotations

import json
import logging
import os
import re
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from shammah.errors import ShammahError
from shammah.files import private_folder
from shammah.tracking import telemetry

__all__ = ["start_logging", "stop_logging"]

HANDLER = "log"
LONGEST = 300
"""Letters of an error's own words."""
_QUOTED = re.compile(r"(?<!\w)(['\"`]).*?(?:\1(?!\w)|$)")

EVENTS: Mapping[str, int] = {
    "training.start": logging.INFO,
    "training.progress": logging.DEBUG,
    "training.step": logging.DEBUG,
    "training.epoch": logging.DEBUG,
    "training.checkpoint": logging.INFO,
    "training.eval": logging.DEBUG,
    "training.gradients": logging.DEBUG,
    "training.issue": logging.WARNING,
    "training.complete": logging.INFO,
    "training.failed": logging.ERROR,
    "workflow.start": logging.INFO,
    "workflow.stop": logging.INFO,
    "workflow.exception": logging.ERROR,
    "stage.start": logging.DEBUG,
    "stage.stop": logging.INFO,
    "stage.exception": logging.ERROR,
    "adapter.published": logging.INFO,
    "adapter.activated": logging.INFO,
    "adapter.rejected": logging.WARNING,
    "feedback.recorded": logging.INFO,
    "generation.complete": logging.INFO,
}
"""Every event, with the level that it is logged at."""
WORKER = (
    "workflow.start", "workflow.stop", "workflow.exception",
    "stage.start", "stage.stop", "stage.exception",
    "training.epoch", "training.eval",
)  # fmt: skip
"""What a worker logs itself; the rest is relayed to the process that started it."""
TOLD = (
    "job", "workflow", "stage", "adapter", "rating", "reason", "model", "error", "kind", "stopped",
)  # fmt: skip
"""Metadata that is logged: names and words of ours, no texts."""

log = logging.getLogger("shammah")
_handler: logging.Handler | None = None


def start_logging(
    path: Path,
    *,
    level: str = "info",
    format: str = "text",
    max_bytes: int = 1_000_000,
    files: int = 2,
    redact: Callable[[str], str] = lambda text: text,
    worker: bool = False,
) -> None:
    """Log into a file from now on, instead of where this process logged to before. Where the file
    cannot be written there is no log.

    Args:
        path: the file (0600); its folder is made if missing.
        level: `debug`, `info`, `warning` or `error`, of what this package says; other packages say
            their warnings, and with `debug` their information.
        format: `text`, or `json` for one object a line.
        max_bytes: a file that is larger is renamed to `.1`, and a new one begun.
        files: how many of the renamed ones are kept.
        redact: is given what is to be written, and gives it without secrets.
        worker: leave out what the process that started this one is told and logs.
    """
    global _handler
    stop_logging()
    number = logging.getLevelNamesMapping()[level.upper()]
    made: logging.Handler
    try:
        private_folder(path.parent)
        made = _PrivateFile(path, max_bytes, files)
    except (OSError, ShammahError):
        made = logging.NullHandler()
    full = number <= logging.DEBUG
    made.setFormatter(_Json(redact, full) if format == "json" else _Text(redact, full))
    _handler = made
    logging.captureWarnings(True)
    root = logging.getLogger()
    root.addHandler(made)
    root.setLevel(logging.INFO if full else max(number, logging.WARNING))
    log.setLevel(number)
    names = WORKER if worker else EVENTS
    telemetry.attach_many(HANDLER, [name for name in names if EVENTS[name] >= number], _told)


def stop_logging() -> None:
    """Log no further."""
    global _handler
    telemetry.detach(HANDLER)
    if _handler is not None:
        logging.getLogger().removeHandler(_handler)
        _handler.close()
        _handler = None


def _told(name: str, measured: Mapping[str, int | float], about: Mapping[str, Any]) -> None:
    fields = {key: about[key] for key in TOLD if key in about} | dict(measured)
    fields.pop("time", None)  # every line has its own
    shown = " ".join(f"{key}={_short(value)}" for key, value in fields.items())
    log.log(EVENTS[name], "%s %s", name, shown, extra={"event": name, "fields": fields})


def _short(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


class _PrivateFile(RotatingFileHandler):
    """A rotating file that is made 0600, and that several processes may write and rotate."""

    def __init__(self, path: Path, max_bytes: int, files: int) -> None:
        super().__init__(
            path, maxBytes=max_bytes, backupCount=files, encoding="utf-8", errors="backslashreplace"
        )

    def _open(self) -> TextIOWrapper:
        number = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with suppress(OSError):  # one that was there may be open to others
            Path(self.baseFilename).chmod(0o600)
        return os.fdopen(number, "a", encoding=self.encoding, errors=self.errors)

    def shouldRollover(self, record: logging.LogRecord) -> bool:
        self._follow()
        return bool(super().shouldRollover(record))

    def doRollover(self) -> None:
        from filelock import FileLock, Timeout

        # A full file that cannot be renamed now (another process does, or has it open on Windows)
        # is written on.
        with suppress(Timeout, OSError), FileLock(f"{self.baseFilename}.lock", 1, mode=0o600):
            before = self._place()
            self._follow()
            if self._place() == before:
                super().doRollover()
        if self.stream is None:
            self.stream = self._open()

    def _follow(self) -> None:
        """Write into the file of our name, where another process has begun a new one."""
        with suppress(OSError):
            path = Path(self.baseFilename)
            found = path.stat() if path.exists() else None
            if found is None or (found.st_dev, found.st_ino) != self._place():
                if self.stream is not None:
                    self.stream.close()
                self.stream = self._open()

    def _place(self) -> tuple[int, int] | None:
        if self.stream is None:
            return None
        found = os.fstat(self.stream.fileno())
        return found.st_dev, found.st_ino


class _Careful(logging.Formatter):
    """Errors without what they may quote, unless everything is wanted."""

    def __init__(self, redact: Callable[[str], str], full: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s[%(process)d]: %(message)s")
        self._redact = redact
        self._full = full

    def formatException(self, ei: Any) -> str:
        if self._full:
            return super().formatException(ei)
        return "\n".join(_chain(ei[1]))


class _Text(_Careful):
    def format(self, record: logging.LogRecord) -> str:
        record.exc_text = None  # another handler may have put its own there
        text = self._redact(super().format(record))
        record.exc_text = None
        return text


class _Json(_Careful):
    def format(self, record: logging.LogRecord) -> str:
        shown: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": self._redact(record.getMessage()),
        }
        if hasattr(record, "event"):
            shown = {**getattr(record, "fields", {}), **shown, "event": record.event}
        if record.exc_info:
            shown["exception"] = self._redact(self.formatException(record.exc_info))
        return json.dumps(shown, ensure_ascii=False, default=str)


def _chain(error: BaseException | None) -> list[str]:
    """An error and what it came from: where each was raised, and what may be told of it."""
    lines: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        where = "".join(traceback.format_tb(error.__traceback__)).rstrip("\n")
        told = f"{type(error).__module__}.{type(error).__qualname__}: {_words(error)}"
        lines = [*([where] if where else []), told, *(["which led to:"] if lines else []), *lines]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return lines


def _words(error: BaseException) -> str:
    if isinstance(error, OSError | ImportError):
        return str(error)
    first = (str(error).strip().splitlines() or [""])[0]
    return _QUOTED.sub("'…'", first)[:LONGEST]
