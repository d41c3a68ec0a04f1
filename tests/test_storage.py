"""The database: durable, shared, migrated, and clear about what is wrong with a file."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select, text

from shammah.errors import StorageError
from shammah.storage.database import Database
from shammah.storage.migrations import APPLICATION_ID, MIGRATIONS
from shammah.storage.schema import ActivationRow, Base, StateRow


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "shammah.db"


def remember(db: Database, key: str, value: object) -> None:
    with db.write() as session:
        session.merge(StateRow(key=key, value=value))


def recall(db: Database, key: str) -> object:
    with db.read() as session:
        return session.scalar(select(StateRow.value).where(StateRow.key == key))


def test_new_file_is_private_durable_and_shared(path: Path) -> None:
    db = Database(path)
    remember(db, "greeting", {"text": "grüß dich 👋"})
    remember(db, "numbers", [1.0, 2**70, None])
    remember(db, "large", 2**70)
    remember(db, "nothing", None)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    for name in (f"{path.name}-wal", f"{path.name}-shm"):
        assert (path.parent / name).stat().st_mode & 0o777 == 0o600
    with db.read() as session:
        values = [
            session.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    assert values == ["wal", 2, 1, 10_000]
    db.close()
    again = Database(path)
    assert recall(again, "greeting") == {"text": "grüß dich 👋"}
    assert recall(again, "numbers") == [1.0, 2**70, None]
    assert recall(again, "large") == 2**70
    with again.read() as session:
        assert session.get_one(StateRow, "nothing").value is None
    again.close()


def shape(connection: sqlite3.Connection) -> dict[str, object]:
    """Columns, foreign keys and indexed columns of every table, as SQLite reports them."""
    tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
    found: dict[str, object] = {}
    for (table,) in tables:
        if not table.startswith("sqlite_"):
            indexes = connection.execute(f"PRAGMA index_list({table})").fetchall()
            found[table] = (
                connection.execute(f"PRAGMA table_info({table})").fetchall(),
                sorted(row[2:] for row in connection.execute(f"PRAGMA foreign_key_list({table})")),
                sorted(
                    (unique, connection.execute(f"PRAGMA index_info({name})").fetchall())
                    for _, name, unique, *_ in indexes
                ),
            )
    return found


def test_migrations_make_what_the_mapped_classes_expect(path: Path, tmp_path: Path) -> None:
    Database(path).close()
    mapped = tmp_path / "mapped.db"
    Base.metadata.create_all(create_engine(f"sqlite:///{mapped}"))
    assert shape(sqlite3.connect(path)) == shape(sqlite3.connect(mapped))


def test_older_file_is_migrated_after_a_backup(path: Path) -> None:
    old = Database(path)
    remember(old, "kept", 1)

    def add_column(connection: sqlite3.Connection) -> None:
        connection.execute("ALTER TABLE state ADD COLUMN colour TEXT DEFAULT 'blue'")

    # The old one stays open: its log, not yet in the file itself, must be in the backup too.
    new = Database(path, migrations=(*MIGRATIONS, add_column))
    with new.read() as session:
        assert session.execute(text("SELECT value, colour FROM state")).all() == [("1", "blue")]
        assert session.execute(text("PRAGMA user_version")).scalar() == len(MIGRATIONS) + 1
    new.close()
    old.close()
    backups = list(path.parent.glob("*.bak"))
    assert [b.name.split("-")[0] for b in backups] == [f"shammah.db.v{len(MIGRATIONS)}"]
    assert backups[0].stat().st_mode & 0o777 == 0o600
    restored = path.with_name("restored.db")
    shutil.copy(backups[0], restored)
    db = Database(restored)
    assert recall(db, "kept") == 1
    db.close()


def test_failed_migration_leaves_the_old_file_whole(path: Path) -> None:
    db = Database(path)
    remember(db, "kept", 1)
    db.close()

    def break_down(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM state")
        connection.execute("SELECT * FROM nowhere")

    with pytest.raises(StorageError, match="nowhere"):
        Database(path, migrations=(*MIGRATIONS, break_down))
    again = Database(path)
    assert recall(again, "kept") == 1
    again.close()


def test_newer_file_is_refused_and_untouched(path: Path) -> None:
    Database(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StorageError, match=r"newer version .*\(schema 99") as caught:
        Database(path)
    assert "Update shammah" in str(caught.value)
    assert sqlite3.connect(path).execute("PRAGMA user_version").fetchone() == (99,)


def test_what_is_no_database_of_ours_is_refused(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"this is a diary, not a database. " * 200)
    with pytest.raises(StorageError, match=r"shammah\.db is damaged or not a SQLite") as caught:
        Database(path)
    assert caught.value.hint is not None and "Move it away" in caught.value.hint
    assert path.read_bytes().startswith(b"this is a diary")

    path.unlink()
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE recipes (name)")
    other.close()
    with pytest.raises(StorageError, match="another program"):
        Database(path)


def test_damaged_page_is_named(path: Path) -> None:
    db = Database(path)
    remember(db, "kept", "x" * 20_000)
    db.close()
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"damaged"):
        broken = Database(path)
        recall(broken, "kept")


def test_full_disk_is_said_and_leaves_things_as_they_were(path: Path) -> None:
    db = Database(path)
    remember(db, "small", 1)
    with db.read() as session:
        pages = session.execute(text("PRAGMA page_count")).scalar_one()
        session.execute(text(f"PRAGMA max_page_count = {pages + 2}"))
    with pytest.raises(StorageError, match="disk is full"):
        remember(db, "large", "x" * 100_000)
    assert recall(db, "small") == 1
    assert recall(db, "large") is None
    remember(db, "small", 2)
    db.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="cannot be written"):
        Database(tmp_path / "shammah.db")


def test_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        Database(tmp_path)


def test_times_are_utc(path: Path) -> None:
    db = Database(path)
    east = datetime(2026, 2, 6, 14, 30, 25, 123456, tzinfo=timezone(timedelta(hours=3)))
    with db.write() as session:
        session.add(ActivationRow(base_fingerprint="f", adapter=None, previous_id=None, at=east))
    with db.read() as session:
        stored = session.scalars(select(ActivationRow.at)).one()
    assert stored == east and stored.tzinfo is UTC
    with pytest.raises(Exception, match="without a zone"), db.write() as session:
        session.add(
            ActivationRow(
                base_fingerprint="f", adapter=None, previous_id=None, at=datetime(2026, 2, 6)
            )
        )
    db.close()


def test_writes_of_threads_do_not_interleave(path: Path) -> None:
    db = Database(path)
    remember(db, "count", 0)

    def count_up() -> None:
        for _ in range(25):
            with db.write() as session:
                row = session.get_one(StateRow, "count")
                row.value = row.value + 1

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recall(db, "count") == 100
    db.close()


OPEN_AND_COUNT = """
import sys
from pathlib import Path
from shammah.storage.database import Database
from shammah.storage.schema import StateRow
db = Database(Path(sys.argv[1]))
for _ in range(25):
    with db.write() as session:
        row = session.get(StateRow, "count")
        if row is None:
            session.add(StateRow(key="count", value=1))
        else:
            row.value = row.value + 1
"""


def test_processes_that_open_a_new_file_at_once(path: Path) -> None:
    command = [sys.executable, "-c", OPEN_AND_COUNT, str(path)]
    children = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    assert [child.communicate(timeout=60)[1] for child in children] == [b""] * 3
    db = Database(path)
    assert recall(db, "count") == 75
    db.close()


def test_data_version_tells_of_any_commit(path: Path) -> None:
    ours, theirs = Database(path), Database(path)
    first = ours.data_version()
    assert ours.data_version() == first
    remember(theirs, "news", 1)
    second = ours.data_version()
    assert second != first
    remember(ours, "news", 2)
    assert ours.data_version() != second
    ours.close()
    theirs.close()


def test_error_inside_a_write_rolls_it_back(path: Path) -> None:
    db = Database(path)
    with pytest.raises(KeyError), db.write() as session:
        session.add(StateRow(key="half", value=1))
        session.flush()
        raise KeyError("half-way")
    assert recall(db, "half") is None
    with db.read() as session:
        session.add(StateRow(key="read", value=1))
        session.flush()
    assert recall(db, "read") is None
    db.close()


def test_the_file_says_whose_it_is(path: Path) -> None:
    Database(path).close()
    assert sqlite3.connect(path).execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
