"""The folder of one evaluation run: what was asked of whom, and a line for each example.

    run.json      the data set, the model, the adapter, the scorers
    rows.jsonl    one row an example, in the order in which they were done
    report.json   the figures, once all are done

A row is appended by one write and belongs to the file at once: a killed process loses none it
wrote. What a crash left of a last line is cut off before the run goes on, so that each example is
there exactly once. Knows files and rows, no models.
"""

from __future__ import annotations

import json
import os
import time
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from shammah.errors import InputError, StorageError, UsageError
from shammah.evaluation.report import Report
from shammah.evaluation.results import Results
from shammah.evaluation.rows import EvaluationRow, read_row
from shammah.evaluation.scorer import Scorer
from shammah.files import private_folder, replacing, storage_error, sync, write_atomic

SETTINGS, ROWS, REPORT = "run.json", "rows.jsonl", "report.json"
SYNC_SECONDS = 2.0
"""After so long at most a power failure loses nothing either."""


class RunSettings(BaseModel):
    """What makes two runs the same: a run goes on only with all of it as it was."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: dict[str, Any]
    """The source, its split and format, and how much of it."""
    model: dict[str, Any]
    """Its name and fingerprint."""
    adapter: dict[str, Any] | None = None
    """Its name and checksum; None is the base model."""
    scorers: list[Any]
    sampling: dict[str, Any] = {}
    """How answers are drawn, and the system message."""
    version: int = 1

    def differences(self, other: RunSettings) -> list[str]:
        """What is not the same, in words: `scorers: [...] instead of [...]`."""
        # Through JSON, for one of them may come from a file.
        mine, theirs = (json.loads(each.model_dump_json()) for each in (self, other))
        return [
            f"{name}: {json.dumps(mine[name])} instead of {json.dumps(theirs[name])}"
            for name in mine
            if mine[name] != theirs[name]
        ]


class RunFolder:
    """A run that is being done; nobody else may write to its folder until `close`.

    Args:
        folder: made where it is missing.
        settings: what is run.
        scorers: the scorers, or their names.
        group: a metadata key to tell groups of examples by.
        resume: go on with the run that is there, if there is one.
        retry_errors: of that run, ask those examples again that ended with an error.

    Raises:
        UsageError: there is a run and it is not to be resumed, it has other settings, or another
            process is at it.
        InputError: its files are broken other than by a crash.
        StorageError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        settings: RunSettings,
        scorers: Sequence[Scorer | str],
        *,
        group: str | None = None,
        resume: bool = False,
        retry_errors: bool = False,
    ) -> None:
        from filelock import FileLock, Timeout

        self.folder = private_folder(folder)
        self.settings = settings
        self._lock = FileLock(folder / ".lock", timeout=0, mode=0o600)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise UsageError(
                f"Another process is evaluating into {folder}.",
                hint="Wait for its end, or name another folder.",
            ) from error
        try:
            self._begin(resume)
            self.results = Results(scorers, group)
            """The rows so far."""
            self.asked = array("I")
            """By index the checksum of what was asked, 0 for what was not yet."""
            if retry_errors:
                self._drop_errors()
            self._recall()
            self._file = os.open(self.folder / ROWS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            self._lock.release()
            raise storage_error(error, self.folder / ROWS) from error
        except BaseException:
            self._lock.release()
            raise
        self._synced = time.monotonic()

    def append(self, row: EvaluationRow) -> None:
        """Keep a row, and count it.

        Raises:
            StorageError: it cannot be written; the file is as it was.
        """
        line = row.to_line()
        end = os.lseek(self._file, 0, os.SEEK_END)
        try:
            written = 0
            while written < len(line):
                written += os.write(self._file, line[written:])
            if time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self._file)
                self._synced = time.monotonic()
        except OSError as error:
            os.ftruncate(self._file, end)
            raise storage_error(error, self.folder / ROWS) from error
        self._count(row)

    def write_report(self, report: dict[str, Any]) -> None:
        """Keep the figures.

        Raises:
            StorageError: they cannot be written.
        """
        write_atomic(self.folder / REPORT, json.dumps(report, indent=2, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Let others at the folder."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise storage_error(error, self.folder / ROWS) from error
        finally:
            os.close(self._file)
            self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def _begin(self, resume: bool) -> None:
        if not (self.folder / SETTINGS).exists():
            if (self.folder / ROWS).exists():
                raise InputError(f"{self.folder} has rows, but no {SETTINGS} to say of what.")
            write_atomic(self.folder / SETTINGS, self.settings.model_dump_json(indent=2) + "\n")
            return
        before = settings_of(self.folder)
        if not resume:
            raise UsageError(
                f"{self.folder} holds a run already.",
                hint="--resume goes on with it; or name another folder.",
            )
        if differences := self.settings.differences(before):
            raise UsageError(
                f"The run in {self.folder} is another one. {'; '.join(differences)}.",
                hint="Ask for the same, or name another folder.",
            )

    def _recall(self) -> None:
        """Count the rows that are there, and cut off what a crash left of a last one."""
        path = self.folder / ROWS
        if not path.exists():
            return
        end = 0
        for number, (line, whole) in enumerate(_lines(path), start=1):
            if not whole:
                break
            row = _row(path, number, line)
            if row.index < len(self.asked) and self.asked[row.index]:
                raise InputError(f"{path}:{number}: example {row.index} is there twice.")
            self._count(row)
            end += len(line)
        if end < path.stat().st_size:
            os.truncate(path, end)
            sync(path)

    def _drop_errors(self) -> None:
        path = self.folder / ROWS
        if not path.exists():
            return
        with replacing(path) as temporary, temporary.open("wb") as kept:
            for number, (line, whole) in enumerate(_lines(path), start=1):
                if whole and _row(path, number, line).error is None:
                    kept.write(line)

    def _count(self, row: EvaluationRow) -> None:
        if row.index >= len(self.asked):
            self.asked.extend([0] * max(1024, row.index + 1 - len(self.asked)))
        checksum = row.checksum
        self.asked[row.index] = checksum or 1
        self.results.add(row, checksum)


def settings_of(folder: Path) -> RunSettings:
    """What the run in a folder is.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    path = folder / SETTINGS
    try:
        return RunSettings.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{folder} holds no evaluation: there is no {SETTINGS}.") from error
    except ValidationError as error:
        raise InputError(f"{path} cannot be read: {error.errors()[0]['msg']}.") from error


def report_of(folder: Path) -> Report | None:
    """The figures of the run in a folder; None where it is not done yet.

    Raises:
        InputError: the file is no report.
    """
    path = folder / REPORT
    try:
        return Report.from_dict(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error


def rows_of(folder: Path) -> Iterator[EvaluationRow]:
    """The rows of a run, one at a time, without what a crash left of a last one.

    Raises:
        InputError: one is broken.
    """
    path = folder / ROWS
    if path.exists():
        for number, (line, whole) in enumerate(_lines(path), start=1):
            if whole:
                yield _row(path, number, line)


def results_of(folder: Path, scorers: Sequence[Scorer | str] = ()) -> Results:
    """The scores of a run.

    Args:
        scorers: those whose figures of the whole data set are wanted.

    Raises:
        InputError: there is no run, or it is broken.
    """
    settings_of(folder)
    results = Results(scorers)
    for row in rows_of(folder):
        results.add(row)
    return results


def _lines(path: Path) -> Iterator[tuple[bytes, bool]]:
    """The lines, and of each whether it is whole: the last one may not be."""
    try:
        with path.open("rb") as file:
            before = None
            for line in file:
                if before is not None:
                    yield before, True
                before = line
            if before is not None:
                yield before, before.endswith(b"\n") and _is_json(before)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}.") from error


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _row(path: Path, number: int, line: bytes) -> EvaluationRow:
    try:
        return read_row(line)
    except InputError as error:
        raise InputError(f"{path}:{number}: {error.message}.") from error
