"""Schema versions: numbered steps from an empty file to today's tables.

A step is never changed once released; a new one is added at the end. Works on the bare `sqlite3`
connection and knows nothing of the mapped classes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from shammah.errors import StorageError
from shammah.files import write_atomic

Migration = Callable[[sqlite3.Connection], None]

APPLICATION_ID = 0x5368616D
"""`PRAGMA application_id` of our files ("Sham"): tells them from another program's database."""


def version_1(connection: sqlite3.Connection) -> None:
    """Exchanges, feedback, jobs, activations, state."""
    for statement in _VERSION_1.split(";"):
        if statement.strip():
            connection.execute(statement)


def version_2(connection: sqlite3.Connection) -> None:
    """Feedback knows revisions and answers tried again; a bad answer alone teaches something."""
    for column in ("preferred_over TEXT", "revision TEXT", "revision_accepted BOOLEAN"):
        connection.execute(f"ALTER TABLE feedback ADD COLUMN {column}")
    connection.execute(
        "UPDATE feedback SET status = 'buffered' "
        "WHERE status = 'waiting' AND rating IS NOT NULL AND trim(response) != ''"
    )


def migrate(
    connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration] | None = None
) -> int:
    """Bring a database up to date, each step in a transaction of its own.

    An older file is copied to `<name>.v<version>-<time>.bak` first. The caller holds a lock, and
    the connection is in autocommit mode (`isolation_level=None`).

    Returns:
        The version it had before (0: it was empty).

    Raises:
        StorageError: the file was written by a newer version, or by another program.
    """
    steps = MIGRATIONS if migrations is None else tuple(migrations)
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    application = int(connection.execute("PRAGMA application_id").fetchone()[0])
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if application != APPLICATION_ID and (tables or version or application):
        raise StorageError(
            f"{path} is the database of another program.",
            hint="Move it away, or set SHAMMAH_HOME to a folder of its own.",
        )
    if version > len(steps):
        raise StorageError(
            f"{path} was written by a newer version of shammah "
            f"(schema {version}, this one knows {len(steps)}).",
            hint="Update shammah, or set SHAMMAH_HOME to another folder.",
        )
    if 0 < version < len(steps):
        back_up(connection, path, version)
    # Rebuilding a table would otherwise trip over, or cascade through, what refers to it.
    connection.execute("PRAGMA foreign_keys = OFF")
    for number, step in enumerate(steps[version:], start=version + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            step(connection)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {number}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    connection.execute("PRAGMA foreign_keys = ON")
    return version


def back_up(connection: sqlite3.Connection, path: Path, version: int) -> Path:
    """Copy the database, with what is still in its log, beside itself."""
    stamp = datetime.now(UTC).strftime("%Y%m%d_%H%M%S")
    copy = path.with_name(f"{path.name}.v{version}-{stamp}.bak")

    def fill(temporary: Path) -> None:
        target = sqlite3.connect(temporary)
        try:
            connection.backup(target)
        finally:
            target.close()

    write_atomic(copy, fill)
    return copy


_VERSION_1 = """
CREATE TABLE exchanges (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    session TEXT NOT NULL,
    messages TEXT NOT NULL,
    response TEXT NOT NULL,
    cut BOOLEAN NOT NULL,
    model TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    adapter TEXT,
    generation INTEGER NOT NULL,
    settings TEXT NOT NULL,
    created_at DATETIME NOT NULL
);
CREATE INDEX ix_exchanges_session ON exchanges (session);
CREATE INDEX ix_exchanges_adapter ON exchanges (adapter);

CREATE TABLE jobs (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    status TEXT NOT NULL,
    reason TEXT NOT NULL,
    base_model TEXT NOT NULL,
    base_fingerprint TEXT NOT NULL,
    folder TEXT NOT NULL,
    created_at DATETIME NOT NULL,
    started_at DATETIME,
    finished_at DATETIME,
    owner_pid INTEGER,
    owner_started DOUBLE,
    worker_pid INTEGER,
    attempts INTEGER DEFAULT 0 NOT NULL,
    error TEXT,
    adapter TEXT,
    examples INTEGER DEFAULT 0 NOT NULL,
    final_loss DOUBLE,
    learned INTEGER
);
CREATE INDEX ix_jobs_status ON jobs (status);

CREATE TABLE feedback (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    exchange_id INTEGER UNIQUE REFERENCES exchanges (id) ON DELETE SET NULL,
    messages TEXT NOT NULL,
    response TEXT,
    rating TEXT,
    weight DOUBLE NOT NULL,
    note TEXT,
    correction TEXT,
    model TEXT NOT NULL,
    adapter TEXT,
    status TEXT NOT NULL,
    learned BOOLEAN,
    job_id INTEGER REFERENCES jobs (id) ON DELETE SET NULL,
    created_at DATETIME NOT NULL,
    updated_at DATETIME NOT NULL
);
CREATE INDEX ix_feedback_status ON feedback (status, updated_at);

CREATE TABLE feedback_actions (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    batch INTEGER NOT NULL,
    kind TEXT NOT NULL,
    feedback_id INTEGER NOT NULL REFERENCES feedback (id) ON DELETE CASCADE,
    before TEXT,
    after TEXT NOT NULL,
    dropped TEXT NOT NULL,
    at DATETIME NOT NULL,
    undone_at DATETIME
);
CREATE INDEX ix_feedback_actions_batch ON feedback_actions (batch);

CREATE TABLE job_lessons (
    job_id INTEGER NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    feedback_id INTEGER NOT NULL REFERENCES feedback (id) ON DELETE CASCADE,
    learned BOOLEAN,
    PRIMARY KEY (job_id, feedback_id)
);
CREATE INDEX ix_job_lessons_feedback_id ON job_lessons (feedback_id);

CREATE TABLE activations (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    base_fingerprint TEXT NOT NULL,
    adapter TEXT,
    previous_id INTEGER REFERENCES activations (id),
    at DATETIME NOT NULL
);
CREATE INDEX ix_activations_base_fingerprint ON activations (base_fingerprint);

CREATE TABLE state (
    key TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);
"""

MIGRATIONS: tuple[Migration, ...] = (version_1, version_2)
"""Step n leads from schema n-1 to schema n. The last one is today's."""
