"""A run's story: what happened, in scopes within scopes, to be read rather than drawn.

    story = StoryWriter(folder / "story.jsonl")
    with story.scope("evaluation"):
        story.text("Twenty questions.")
        story.table(("metric", "value"), [("exact", 0.5)])
        story.conversation(messages, reward=1.0)

Each call appends one line to the file by one call of the system, so that a killed process leaves
all it had told; what it had not closed is read as not ended. A run that goes on appends to the same
file. The scope is that of the task or thread that tells, so that rollouts beside one another do not
mix. Holds conversations: the file is private (0600) and stays in the run's own folder. Knows
messages; not what runs, nor how a story is shown.
"""

from __future__ import annotations

import contextvars
import itertools
import json
import logging
import math
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from shammah.errors import StorageError
from shammah.files import private_folder, storage_error
from shammah.messages import Message, to_dicts

__all__ = [
    "STORY", "Scope", "StoryWriter", "Table", "Talk", "Text", "read_story", "scope_record",
]  # fmt: skip

log = logging.getLogger("shammah")

STORY = "story.jsonl"
"""What the file is called in a run's folder."""

Cell = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Text:
    """Something to read."""

    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells, under a heading for each column."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation. `messages` are as `messages.to_dicts` writes them; `reward` is what its last
    answer was worth."""

    title: str
    messages: tuple[Mapping[str, Any], ...]
    reward: float | None = None


@dataclass(slots=True)
class Scope:
    """A part of a story with all that was told in it, in order.

    `began` and `ended` are seconds since 1970; `ended` is None where the process was killed or is
    still at it, `error` the kind of error that ended it.
    """

    title: str
    began: float
    ended: float | None = None
    error: str | None = None
    entries: list[Text | Table | Talk | Scope] = field(default_factory=list)

    @property
    def seconds(self) -> float | None:
        return None if self.ended is None else self.ended - self.began


class StoryWriter:
    """Tells a story into a file. Where that fails the log says so, and the run goes on without.

    Args:
        path: of the file, which is appended to; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._within: contextvars.ContextVar[int] = contextvars.ContextVar("story", default=0)
        self._file: int | None = None
        if path is not None:
            self._open(path)

    @contextmanager
    def scope(self, title: str) -> Iterator[None]:
        """What is told until the block ends belongs to a scope within the one that is open."""
        number = next(self._numbers)
        self._write("open", scope=number, title=title, time=time.time())
        token = self._within.set(number)
        error: str | None = None
        try:
            yield
        except BaseException as raised:
            error = type(raised).__name__
            raise
        finally:
            self._within.reset(token)
            self._write("close", scope=number, time=time.time(), error=error)

    def text(self, text: str) -> None:
        """Something to read."""
        self._write("text", text=text)

    def table(
        self, columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = ""
    ) -> None:
        """Rows of cells: numbers, words, None for nothing; what is something else by `str`."""
        cells = [[_cell(cell) for cell in row] for row in rows]
        if any(len(row) != len(columns) for row in cells):
            raise ValueError(f"The table {title!r} has rows of other than {len(columns)} cells.")
        self._write("table", title=title, columns=list(columns), rows=cells)

    def conversation(
        self,
        messages: Iterable[Message | Mapping[str, Any]],
        *,
        reward: float | None = None,
        title: str = "",
    ) -> None:
        """A conversation, such as a rollout with its reward or a sample."""
        written = [
            to_dicts([message])[0] if isinstance(message, Message) else dict(message)
            for message in messages
        ]
        if reward is not None and not math.isfinite(reward):
            reward = None
        self._write("talk", title=title, messages=written, reward=reward)

    def close(self) -> None:
        """Tell nothing further."""
        with self._lock:
            file, self._file = self._file, None
            if file is not None:
                os.close(file)

    def _open(self, path: Path) -> None:
        try:
            private_folder(path.parent)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            size = os.fstat(self._file).st_size
            if size:
                os.lseek(self._file, size - 1, os.SEEK_SET)
                if os.read(self._file, 1) != b"\n":
                    os.write(self._file, b"\n")  # the last line was torn
        except (OSError, StorageError) as error:
            log.warning("no story is written to %s: %s", path, error)
        self._write("begin", format=1, time=time.time())

    def _write(self, kind: str, **values: Any) -> None:
        if self._path is None:
            return
        record = {"kind": kind, "within": self._within.get(), **values}
        data = (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        with self._lock:
            if self._file is None:
                return
            try:
                os.write(self._file, data)
            except OSError as error:
                log.warning("the story %s is not told further: %s", self._path, error)
                os.close(self._file)
                self._file = None


# --- reading


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    within: int


class _Begin(_Record):
    kind: Literal["begin"]
    format: Literal[1]
    time: float


class _Open(_Record):
    kind: Literal["open"]
    scope: int
    title: str
    time: float


class _Close(_Record):
    kind: Literal["close"]
    scope: int
    time: float
    error: str | None


class _Text(_Record):
    kind: Literal["text"]
    text: str


class _Table(_Record):
    kind: Literal["table"]
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


class _Talk(_Record):
    kind: Literal["talk"]
    title: str
    messages: tuple[dict[str, Any], ...]
    reward: float | None


_LINE: TypeAdapter[_Begin | _Open | _Close | _Text | _Table | _Talk] = TypeAdapter(
    Annotated[_Begin | _Open | _Close | _Text | _Table | _Talk, Field(discriminator="kind")]
)


def read_story(path: Path) -> tuple[Scope, ...]:
    """The outermost scopes of a story, in order; of a run that went on there are several. What was
    told outside of any is in a scope without a title. Lines that are torn are passed over.

    Raises:
        StorageError: the file cannot be read.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise storage_error(error, path) from error
    outermost: list[Scope] = []
    scopes: dict[int, Scope] = {}
    for line in lines:
        try:
            record = _LINE.validate_json(line)
        except ValidationError:
            continue
        if isinstance(record, _Begin):
            scopes = {0: Scope("", record.time)}
            outermost.append(scopes[0])
            continue
        holder = scopes.get(record.within) or scopes.get(0)
        if holder is None:
            continue
        match record:
            case _Open():
                scopes[record.scope] = Scope(record.title, record.time)
                holder.entries.append(scopes[record.scope])
            case _Close():
                if (closed := scopes.get(record.scope)) is not None:
                    closed.ended, closed.error = record.time, record.error
            case _Text():
                holder.entries.append(Text(record.text))
            case _Table():
                holder.entries.append(Table(record.title, record.columns, record.rows))
            case _Talk():
                holder.entries.append(Talk(record.title, record.messages, record.reward))
    return tuple(itertools.chain.from_iterable(map(_unwrapped, outermost)))


def scope_record(scope: Scope) -> dict[str, Any]:
    """A scope with all within it as JSON takes it."""
    return {
        "title": scope.title,
        "began": scope.began,
        "ended": scope.ended,
        "error": scope.error,
        "entries": [_entry_record(entry) for entry in scope.entries],
    }


def _entry_record(entry: Text | Table | Talk | Scope) -> dict[str, Any]:
    match entry:
        case Scope():
            return {"scope": scope_record(entry)}
        case Text():
            return {"text": entry.text}
        case Table():
            rows = [list(row) for row in entry.rows]
            return {"table": {"title": entry.title, "columns": list(entry.columns), "rows": rows}}
        case Talk():
            talk = {"title": entry.title, "reward": entry.reward, "messages": list(entry.messages)}
            return {"conversation": talk}


def _unwrapped(session: Scope) -> list[Scope]:
    """The scopes of one process, and what it told outside of them."""
    scopes = [entry for entry in session.entries if isinstance(entry, Scope)]
    loose: list[Text | Table | Talk | Scope] = [
        entry for entry in session.entries if not isinstance(entry, Scope)
    ]
    return [Scope("", session.began, session.began, None, loose), *scopes] if loose else scopes


def _cell(value: object) -> Cell:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)
