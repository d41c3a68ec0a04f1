"""A `VectorStore` in one SQLite file; sqlite-vec computes the cosines.

A query reads every vector of its collection (about 1 ms for a thousand of 384), so that its answer
is exact whatever the filter. Comes with a SQLite of its own (apsw), since many builds of Python
cannot load extensions into theirs. Knows vectors, no texts' meaning.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from shammah.errors import StorageError, VectorStoreError
from shammah.files import private_folder
from shammah.ports.vector_store import (
    Collection,
    Scalar,
    VectorHit,
    VectorRecord,
    check_metadata,
    check_vector,
)

Result = TypeVar("Result")

FORMAT = 1
"""`user_version` of the file."""
WAIT_MS = 10_000
"""How long a change waits for another process's."""

_COLLECTIONS = """
create table if not exists collections(
    number integer primary key, name text not null unique, dimension integer not null
)"""
_COLLECTION = """
create table vectors_{0}(
    row integer primary key, id text not null unique, vector blob not null, text text not null
);
create table metadata_{0}(
    row integer not null, key text not null, value, truth integer not null,
    primary key(row, key)
) without rowid;
create index metadata_{0}_values on metadata_{0}(key, value, row);
"""


class SqliteVectors:
    """The port on one file, which several processes may have open.

    Args:
        path: the file; made (0600) where it is missing.

    Raises:
        VectorStoreError: the file is no store of this format, or the extra is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path).expanduser().absolute()
        self._lock = threading.Lock()
        try:
            self._database = _open(self._path)
        except ImportError as error:
            raise VectorStoreError(
                f"{error.name} is not installed.",
                backend=self.name,
                hint="Run `pip install shammah[vectors]`.",
            ) from error
        except StorageError as error:
            raise VectorStoreError(error.message, backend=self.name, hint=error.hint) from error
        except Exception as error:
            raise VectorStoreError(f"it cannot be opened: {error}", backend=self.name) from error

    @property
    def name(self) -> str:
        return str(self._path)

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._database.close()

    async def create(self, collection: str, dimension: int) -> Collection:
        """The port's `create`."""

        def make() -> Collection:
            if dimension < 1:
                raise VectorStoreError(f"{dimension} is no dimension.", backend=self.name)
            row = self._database.execute(
                "insert into collections(name, dimension) values(?, ?) "
                "on conflict do nothing returning number",
                (collection, dimension),
            ).fetchone()
            if row is not None:
                self._database.execute(_COLLECTION.format(row[0]))
                return Collection(collection, dimension, 0)
            number, there = self._find(collection)
            if there != dimension:
                raise VectorStoreError(
                    f"{collection} holds vectors of {there} dimensions, not {dimension}.",
                    backend=self.name,
                    hint="Drop it first, or choose another name.",
                )
            return Collection(collection, there, self._size(number))

        return await self._change(make)

    async def collections(self) -> tuple[Collection, ...]:
        """The port's `collections`."""

        def read() -> tuple[Collection, ...]:
            rows = list(
                self._database.execute("select name, dimension, number from collections order by 1")
            )
            return tuple(
                Collection(name, dimension, self._size(number)) for name, dimension, number in rows
            )

        return await self._read(read)

    async def drop(self, collection: str) -> None:
        """The port's `drop`."""

        def remove() -> None:
            number, _ = self._find(collection)
            self._database.execute(
                f"drop table vectors_{number}; drop table metadata_{number}; "
                "delete from collections where number = ?",
                (number,),
            )

        await self._change(remove)

    async def add(self, collection: str, records: Sequence[VectorRecord]) -> None:
        """The port's `add`."""

        def keep() -> None:
            number, dimension = self._find(collection)
            for record in records:
                vector = check_vector(record.vector, dimension, backend=self.name)
                metadata = check_metadata(record.metadata, backend=self.name)
                row = self._database.execute(
                    f"insert into vectors_{number}(id, vector, text) values(?, ?, ?) "
                    "on conflict(id) do update set vector = excluded.vector, text = excluded.text "
                    "returning row",
                    (record.id, vector.tobytes(), record.text),
                ).fetchall()[0][0]
                self._database.execute(f"delete from metadata_{number} where row = ?", (row,))
                self._database.executemany(
                    f"insert into metadata_{number} values(?, ?, ?, ?)",
                    [(row, key, value, value is True or value is False)
                     for key, value in metadata.items()],
                )  # fmt: skip

        await self._change(keep)

    async def get(
        self, collection: str, ids: Sequence[str] | None = None
    ) -> tuple[VectorRecord, ...]:
        """The port's `get`."""

        def read() -> tuple[VectorRecord, ...]:
            number, _ = self._find(collection)
            select = f"select row, id, vector, text from vectors_{number}"
            if ids is None:
                rows = self._database.execute(f"{select} order by row").fetchall()
            else:
                rows = [
                    row
                    for id in ids
                    for row in self._database.execute(f"{select} where id = ?", (id,)).fetchall()
                ]
            return tuple(
                VectorRecord(id, np.frombuffer(blob, np.float32), text, self._metadata(number, row))
                for row, id, blob, text in rows
            )

        return await self._read(read)

    async def delete(self, collection: str, ids: Sequence[str]) -> int:
        """The port's `delete`."""

        def remove() -> int:
            number, _ = self._find(collection)
            count = 0
            for id in ids:
                for (row,) in self._database.execute(
                    f"delete from vectors_{number} where id = ? returning row", (id,)
                ).fetchall():
                    count += 1
                    self._database.execute(f"delete from metadata_{number} where row = ?", (row,))
            return count

        return await self._change(remove)

    async def query(
        self,
        collection: str,
        vector: ArrayLike,
        n: int = 10,
        *,
        where: Mapping[str, Scalar] | None = None,
    ) -> tuple[VectorHit, ...]:
        """The port's `query`."""

        def find() -> tuple[VectorHit, ...]:
            number, dimension = self._find(collection)
            asked = check_vector(vector, dimension, backend=self.name)
            wanted = check_metadata(where or {}, backend=self.name)
            among = " and ".join(
                f"row in (select row from metadata_{number} where key = ? and value is ?)"
                for _ in wanted
            )
            nearest = self._database.execute(
                f"select id, text, row, distance from vectors_{number} join (select row as found, "
                f"vec_distance_cosine(vector, ?) as distance from vectors_{number} "
                f"where {among or 'true'} order by distance, row limit ?) on row = found "
                "order by distance, row",
                (asked.tobytes(), *(part for pair in wanted.items() for part in pair), max(n, 0)),
            ).fetchall()
            return tuple(
                VectorHit(id, max(-1.0, 1.0 - distance), text, self._metadata(number, row))
                for id, text, row, distance in nearest
            )

        return await self._read(find)

    def _find(self, collection: str) -> tuple[int, int]:
        found = self._database.execute(
            "select number, dimension from collections where name = ?", (collection,)
        ).fetchall()
        if not found:
            raise VectorStoreError(
                f"there is no collection {collection!r}.",
                backend=self.name,
                hint="Create it first.",
            )
        number, dimension = found[0]
        return number, dimension

    def _size(self, number: int) -> int:
        (count,) = self._database.execute(f"select count(*) from vectors_{number}").fetchall()[0]
        return int(count)

    def _metadata(self, number: int, row: int) -> dict[str, Scalar]:
        found = self._database.execute(
            f"select key, value, truth from metadata_{number} where row = ?", (row,)
        ).fetchall()
        return {key: bool(value) if truth else value for key, value, truth in found}

    async def _read(self, work: Callable[[], Result]) -> Result:
        return await asyncio.to_thread(self._locked, "deferred", work)

    async def _change(self, work: Callable[[], Result]) -> Result:
        return await asyncio.to_thread(self._locked, "immediate", work)

    def _locked(self, mode: str, work: Callable[[], Result]) -> Result:
        """The work in one transaction; errors as the port's."""
        with self._lock, self._told():
            self._database.execute(f"begin {mode}")
            try:
                result = work()
                self._database.execute("commit")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("rollback")
                raise
            return result

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except VectorStoreError:
            raise
        except Exception as error:  # apsw has a class for each of SQLite's codes
            raise VectorStoreError(f"{type(error).__name__}: {error}", backend=self.name) from error


def _open(path: Path) -> Any:
    import apsw
    import sqlite_vec

    private_folder(path.parent)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    database = apsw.Connection(str(path))
    try:
        database.set_busy_timeout(WAIT_MS)
        database.enable_load_extension(True)
        database.load_extension(sqlite_vec.loadable_path())
        database.enable_load_extension(False)
        version = database.pragma("user_version")
        tables = database.execute("select count(*) from sqlite_master").fetchall()[0][0]
        if version != FORMAT and (version or tables):
            raise ValueError(f"it is no vector store of format {FORMAT}")
        database.execute("pragma journal_mode = wal; pragma synchronous = full")
        database.execute(f"begin immediate; {_COLLECTIONS}; pragma user_version = {FORMAT}; commit")
    except BaseException:
        database.close()
        raise
    return database
