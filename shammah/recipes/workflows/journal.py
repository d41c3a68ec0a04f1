"""What a run has done, on disk: a line for each thing that is finished or was decided.

    journal.jsonl   the first line says of which workflow, the others what happened

A line counts once it is there whole and synced, so that a kill loses at most the stage that was
running; what a crash left of a last line is cut off. Knows paths and texts, and runs nothing.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shammah.errors import StorageError, WorkflowError
from shammah.files import private_folder, storage_error, write_atomic
from shammah.recipes.workflows.branch import Changes
from shammah.recipes.workflows.records import (
    Decision,
    Ended,
    Event,
    Failed,
    Finished,
    Header,
    Item,
    Items,
    RolledBack,
    StreamEnd,
    Undone,
    event_of,
)

__all__ = ["JOURNAL", "Done", "Journal"]

JOURNAL = "journal.jsonl"


@dataclass(frozen=True)
class Done:
    """A stage that is finished, and its number among those."""

    number: int
    seconds: float
    changes: Changes


@dataclass
class Journal:
    """What a run has done; in memory alone where `path` is None.

    Made by `begun` and `found`.
    """

    header: Header
    path: Path | None = None
    done: dict[str, Done] = field(default_factory=dict)
    """Finished stages by path, in the order in which they were finished."""
    decisions: dict[str, bool] = field(default_factory=dict)
    items: dict[str, Items] = field(default_factory=dict)
    streamed: dict[str, Item] = field(default_factory=dict)
    """By path and place, `stream[3]`."""
    stream_ends: dict[str, int] = field(default_factory=dict)
    failed: Failed | None = None
    undone: dict[str, str | None] = field(default_factory=dict)
    """By path what went wrong, None where nothing did."""
    rolled_back: bool = False
    ended: bool = False
    elapsed: float = 0.0
    _file: int | None = None

    @classmethod
    def begun(cls, header: Header, folder: Path | None) -> Journal:
        """A new one, in place of one that is there.

        Raises:
            StorageError: it cannot be written.
        """
        if folder is None:
            return cls(header)
        path = private_folder(folder) / JOURNAL
        write_atomic(path, header.line())
        return cls(header, path)

    @classmethod
    def found(cls, folder: Path) -> Journal | None:
        """The one in a folder, without what a crash left of a last line; None if there is none.

        Raises:
            StorageError: it cannot be read.
            WorkflowError: it is broken other than by a crash.
        """
        path = folder / JOURNAL
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}.") from error
        lines = content.split(b"\n")
        torn = lines.pop()
        end = len(content) - len(torn)
        try:
            journal = cls(Header.model_validate(json.loads(lines[0])), path)
        except (ValueError, IndexError) as error:
            raise _broken(path, 1) from error
        for number, line in enumerate(lines[1:], start=2):
            try:
                journal._count(event_of(line))
            except ValueError as error:
                if number < len(lines):
                    raise _broken(path, number) from error
                # Lengths may be on disk before what is in them.
                end -= len(line) + 1
        if end < len(content):
            try:
                os.truncate(path, end)
            except OSError as error:
                raise storage_error(error, path) from error
        return journal

    def finish(self, path: str, seconds: float, elapsed: float, changes: Changes) -> None:
        """A stage is done, with what it changed."""
        values: dict[str, dict[str, Any]] = {}
        for (kind, name), text in changes.set.items():
            values.setdefault(kind, {})[name] = json.loads(text)
        removed = list(changes.removed)
        self._keep(
            Finished(path=path, seconds=seconds, elapsed=elapsed, set=values, removed=removed)
        )

    def decide(self, path: str, value: bool) -> None:
        """A conditional has chosen."""
        self._keep(Decision(path=path, value=value))

    def know(self, items: Items) -> None:
        """A loop knows what it goes over."""
        self._keep(items)

    def stream(self, path: str, digest: str, value: Any) -> None:
        """A stream has given an item; on disk for sure with the line that follows."""
        self._keep(Item(path=path, digest=digest, value=value), sync=False)

    def end_stream(self, path: str, count: int) -> None:
        """A stream has no more."""
        self._keep(StreamEnd(path=path, count=count))

    def fail(self, path: str, message: str, begun: list[str]) -> None:
        """Something failed; what ran is going to be undone."""
        self._keep(Failed(path=path, message=message, begun=begun))

    def undo(self, path: str, error: str | None) -> None:
        """A stage is undone, or could not be."""
        self._keep(Undone(path=path, error=error))

    def roll_back(self) -> None:
        """All that ran is undone: whoever resumes begins anew."""
        self._keep(RolledBack())

    def end(self, elapsed: float) -> None:
        """The run is over."""
        self._keep(Ended(elapsed=elapsed))

    def close(self) -> None:
        """Nothing more comes."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _keep(self, event: Event, *, sync: bool = True) -> None:
        if self.path is not None:
            self._write(event.line(), sync)
        self._count(event)

    def _write(self, line: bytes, sync: bool) -> None:
        assert self.path is not None
        end = 0
        try:
            if self._file is None:
                self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            end = os.lseek(self._file, 0, os.SEEK_END)
            written = 0
            while written < len(line):
                written += os.write(self._file, line[written:])
            if sync:
                os.fsync(self._file)
        except OSError as error:
            if self._file is not None:
                os.ftruncate(self._file, end)
            raise storage_error(error, self.path) from error

    def _count(self, event: Event) -> None:
        match event:
            case Finished():
                changes = Changes(
                    {
                        (kind, name): json.dumps(value, separators=(",", ":"))
                        for kind, values in event.set.items()
                        for name, value in values.items()
                    },
                    tuple(event.removed),
                )
                self.done[event.path] = Done(len(self.done), event.seconds, changes)
                self.elapsed = event.elapsed
            case Decision():
                self.decisions[event.path] = event.value
            case Items():
                self.items[event.path] = event
            case Item():
                self.streamed[event.path] = event
            case StreamEnd():
                self.stream_ends[event.path] = event.count
            case Failed():
                self.failed = event
            case Undone():
                self.undone[event.path] = event.error
            case RolledBack():
                self.rolled_back = True
            case Ended():
                self.ended = True
                self.elapsed = event.elapsed


def _broken(path: Path, number: int) -> WorkflowError:
    return WorkflowError(
        f"{path} is broken in line {number}.", hint="Run the workflow anew in another folder."
    )
