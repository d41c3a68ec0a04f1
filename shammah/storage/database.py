"""One SQLite file, opened safely: durable commits, threads, several processes, old versions.

Knows how to open, migrate and lend sessions. What is in the tables is the business of the rooms
that use them.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import filelock
from sqlalchemy import URL, Connection, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from shammah.errors import StorageError
from shammah.files import private_folder, storage_error
from shammah.storage.migrations import Migration, migrate

BUSY_SECONDS = 10.0
"""How long a write waits for another process before it gives up."""

SETUP_SECONDS = 60.0
"""How long opening waits for another process that is migrating."""


class Database:
    """A SQLite file in WAL mode. Sessions may be opened from any thread.

    Every commit is on disk when `write()` returns (`synchronous=FULL`): a process killed after
    that loses nothing.
    """

    def __init__(self, path: Path, *, migrations: Sequence[Migration] | None = None) -> None:
        """Open the file, make it if it is missing, migrate it if it is older.

        Raises:
            StorageError: not a database, damaged, of another program, or of a newer version; the
                folder cannot be written.
        """
        self.path = path
        private_folder(path.parent)
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            path.chmod(0o600)
        except OSError as error:
            raise storage_error(error, path) from error
        self._set_up(migrations)
        self._watch_lock = threading.Lock()
        self._watcher = _connect(path)
        self.engine = create_engine(
            URL.create("sqlite", database=str(path)),
            creator=partial(_connect, path),
            hide_parameters=True,  # they hold conversations, and errors are logged
        )
        event.listen(self.engine, "begin", _begin)
        self._writer = self.engine.execution_options(shammah_begin="BEGIN IMMEDIATE")

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that holds the write lock from its start and commits at its end.

        Two of them never interleave, in one process or in two: what is read inside is still true
        when it is written. An exception inside rolls everything back.

        Raises:
            StorageError: the disk is full, the file is damaged, or another process holds the lock
                for longer than `BUSY_SECONDS`.
        """
        with self._translated(), Session(self._writer, expire_on_commit=False) as session:
            yield session
            session.commit()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one moment of the database. Nothing done in it is kept.

        Raises:
            StorageError: the file cannot be read.
        """
        with (
            self._translated(),
            Session(self.engine, expire_on_commit=False, autoflush=False) as session,
        ):
            yield session

    session = write
    """The session to use when in doubt."""

    def data_version(self) -> int:
        """A number that changes when anyone commits, this process or another. Costs microseconds.

        Only differences mean something, and only within one `Database`.
        """
        with self._watch_lock, self._translated():
            return int(self._watcher.execute("PRAGMA data_version").fetchone()[0])

    def close(self) -> None:
        """Give the file back. Sessions must not be used after it."""
        with self._watch_lock:
            self._watcher.close()
        self.engine.dispose()

    def _set_up(self, migrations: Sequence[Migration] | None) -> None:
        # Switching to WAL and migrating need the file alone, and SQLite's own waiting does not
        # cover the first: two first starts at once would see "database is locked".
        lock = filelock.FileLock(f"{self.path}.lock", timeout=SETUP_SECONDS, mode=0o600)
        try:
            with lock, self._translated():
                connection = _connect(self.path)
                try:
                    connection.execute("PRAGMA journal_mode = WAL")
                    migrate(connection, self.path, migrations)
                finally:
                    connection.close()
        except filelock.Timeout as error:
            raise StorageError(
                f"{self.path} is being set up by another process that does not finish.",
                hint="End the other shammah and try again.",
            ) from error
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise storage_error(error, Path(lock.lock_file)) from error

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            if isinstance(error.orig, sqlite3.IntegrityError):
                raise
            raise _storage_error(error.orig or error, self.path) from error
        except sqlite3.Error as error:
            raise _storage_error(error, self.path) from error


def _connect(path: Path) -> sqlite3.Connection:
    # isolation_level=None hands transactions to SQLAlchemy's "begin" event: the driver's own
    # deferred BEGIN could fail half-way, when a reader turns writer.
    connection = sqlite3.connect(
        path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    connection.exec_driver_sql(options.get("shammah_begin", "BEGIN"))


def _storage_error(error: BaseException, path: Path) -> StorageError:
    """The user's words for what SQLite reports."""
    name = str(getattr(error, "sqlite_errorname", ""))
    if name.startswith("SQLITE_FULL"):
        return StorageError(
            f"The disk is full: nothing was written to {path}.",
            hint="Free some space and try again.",
        )
    if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
        return StorageError(
            f"{path} is damaged or not a SQLite database ({error}).",
            hint="Move it away to start afresh; copies from before an update end in .bak beside "
            f"it. `sqlite3 {path.name} .recover` may save what is readable.",
        )
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return StorageError(
            f"{path} is held by another process for more than {BUSY_SECONDS:g} seconds.",
            hint="End the other program that writes to it and try again.",
        )
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")):
        return StorageError(
            f"{path} cannot be written: {error}.",
            hint="Check the permissions, or set SHAMMAH_HOME to a folder of yours.",
        )
    if name.startswith("SQLITE_IOERR"):
        return StorageError(
            f"Reading or writing {path} failed ({name}).", hint="Check the disk and its free space."
        )
    return StorageError(f"{path}: {error} ({name or type(error).__name__}).")
