"""The vector store in a file, against a search by numpy."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shammah.errors import VectorStoreError
from shammah.ports.vector_store import Scalar, VectorRecord, VectorStore

pytest.importorskip("apsw", reason="apsw is not installed (pip install shammah[vectors])")
pytest.importorskip("sqlite_vec", reason="sqlite-vec is not installed (shammah[vectors])")

from shammah.backends.sqlite_vectors import SqliteVectors


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "store" / "vectors.db"


@pytest.fixture
def store(file: Path) -> Iterator[SqliteVectors]:
    made = SqliteVectors(file)
    yield made
    made.close()


def record(id: str, *values: float, text: str = "", **metadata: Scalar) -> VectorRecord:
    return VectorRecord(id, np.array(values, np.float32), text, metadata)


async def test_records_come_back_as_they_were_also_from_another_process(
    store: VectorStore, file: Path
) -> None:
    await store.create("facts", 3)
    kept = record("a", 3, 4, 0, text="Straße", n=1, f=0.1, yes=True, no=None, s="1")
    await store.add("facts", [kept, record("b", 0, 0, 1)])
    (back,) = await store.get("facts", ["none", "a"])
    assert (back.id, back.text, back.metadata) == ("a", kept.text, kept.metadata)
    assert back.metadata["yes"] is True
    assert back.vector.dtype == np.float32 and back.vector.tolist() == [3, 4, 0]
    assert await asyncio.to_thread(_elsewhere, file, [0, 1, 0]) == "['a', 'b']\n"
    assert (await asyncio.to_thread(file.stat)).st_mode & 0o777 == 0o600


def _elsewhere(file: Path, vector: list[float]) -> str:
    """The ids that another process finds."""
    code = """
import asyncio, json, sys
from shammah.backends.sqlite_vectors import SqliteVectors
store = SqliteVectors(sys.argv[1])
print([hit.id for hit in asyncio.run(store.query("facts", json.loads(sys.argv[2])))])
"""
    command = [sys.executable, "-c", code, str(file), str(vector)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


async def test_an_id_that_is_added_again_takes_the_place_of_the_first(store: VectorStore) -> None:
    await store.create("facts", 2)
    await store.add("facts", [record("a", 1, 0, text="old", x=1), record("b", 0, 1)])
    await store.add("facts", [record("a", 0, 2, text="new", y=2)])
    assert [r.id for r in await store.get("facts")] == ["a", "b"]
    hits = await store.query("facts", [0, 1])
    assert [(hit.id, hit.score, hit.text) for hit in hits] == [("a", 1, "new"), ("b", 1, "")]
    assert hits[0].metadata == {"y": 2}
    assert await store.query("facts", [0, 1], where={"x": 1}) == ()


async def test_collections_are_made_listed_and_dropped(store: VectorStore) -> None:
    assert (await store.create("b", 2)).size == 0
    await store.create("a'; drop table collections; --", 5)
    await store.add("b", [record("x", 1, 0)])
    assert (await store.create("b", 2)).size == 1
    assert [(c.name[0], c.dimension, c.size) for c in await store.collections()] == [
        ("a", 5, 0), ("b", 2, 1),
    ]  # fmt: skip
    assert await store.delete("b", ["x", "y"]) == 1
    assert await store.query("b", [1, 0]) == ()
    await store.drop("b")
    assert [c.dimension for c in await store.collections()] == [5]
    for call in (store.drop("b"), store.get("b"), store.query("b", [1, 0]), store.add("b", [])):
        with pytest.raises(VectorStoreError, match="no collection 'b'"):
            await call
    with pytest.raises(VectorStoreError, match="holds vectors of 5 dimensions, not 6"):
        await store.create("a'; drop table collections; --", 6)


async def test_what_does_not_fit_is_refused_whole(store: VectorStore) -> None:
    await store.create("facts", 2)
    broken: list[VectorRecord] = [
        record("x", 1, 2, 3),
        record("x", 0, 0),
        record("x", float("nan"), 1),
        record("x", 1e30, 1),
        record("x", 1, 0, bad=float("inf")),
        record("x", 1, 0, bad=1 << 63),
        VectorRecord("x", np.ones(2, np.float32), "", {"bad": [1]}),  # type: ignore[dict-item]
        VectorRecord("\ud800", np.ones(2, np.float32)),
    ]
    for wrong in broken:
        with pytest.raises(VectorStoreError) as told:
            await store.add("facts", [record("fine", 1, 0), wrong])
        assert told.value.port == "VectorStore" and told.value.backend == store.name
    assert await store.get("facts") == ()
    for vector in ([1, 2, 3], [0, 0], [[1, 2]], ["a", "b"]):
        with pytest.raises(VectorStoreError):
            await store.query("facts", vector)


def test_a_file_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    import sqlite3

    text = tmp_path / "text"
    text.write_text("not a database, but long enough to be taken for one" * 20)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as database:
        database.execute("create table mine(x)")
    database.close()
    for file in (text, other):
        before = file.read_bytes()
        with pytest.raises(VectorStoreError, match="cannot be opened"):
            SqliteVectors(file)
        assert file.read_bytes() == before


async def test_two_openers_write_at_once(store: SqliteVectors, file: Path) -> None:
    other = SqliteVectors(file)
    await store.create("facts", 2)
    await asyncio.gather(
        *(s.add("facts", [record(f"{name}{i}", 1, i)]) for i in range(20)
          for name, s in (("a", store), ("b", other)))
    )  # fmt: skip
    assert len(await other.get("facts")) == 40
    other.close()


VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from([0.1, 1.0, -0.5]),
    st.text(max_size=2),
)  # fmt: skip
METADATA = st.dictionaries(st.sampled_from(["a", "b", '"$']) | st.text(max_size=2), VALUES)
NUMBERS = st.floats(-100, 100, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)
VECTORS = st.lists(NUMBERS, min_size=4, max_size=4).filter(any)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.text(max_size=3), VECTORS, METADATA), max_size=12),
    asked=VECTORS,
    n=st.integers(0, 15),
    where=METADATA.map(lambda found: dict(list(found.items())[:2])) | st.none(),
)
def test_a_query_finds_what_a_search_by_numpy_finds(
    rows: list[tuple[str, list[float], dict[str, Scalar]]],
    asked: list[float],
    n: int,
    where: dict[str, Scalar] | None,
) -> None:
    kept = {id: (vector, metadata) for id, vector, metadata in rows}
    expected = sorted(
        (_cosine(vector, asked), id)
        for id, (vector, metadata) in kept.items()
        if all(key in metadata and metadata[key] == value for key, value in (where or {}).items())
    )[::-1]

    async def ask() -> None:
        store = SqliteVectors(Path(folder) / "v.db")
        await store.create("c", 4)
        await store.add(
            "c", [VectorRecord(id, np.array(v, np.float32), "", m) for id, v, m in rows]
        )
        hits = await store.query("c", asked, n, where=where)
        store.close()
        assert len(hits) == min(n, len(expected))
        truth = {id: score for score, id in expected}
        assert len({hit.id for hit in hits}) == len(hits)
        for hit, (score, _) in zip(hits, expected, strict=False):
            assert hit.score == pytest.approx(score, abs=1e-5)
            assert hit.score == pytest.approx(truth[hit.id], abs=1e-5)
            assert hit.metadata == kept[hit.id][1]

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(ask())


def _cosine(one: list[float], other: list[float]) -> float:
    a, b = np.array(one), np.array(other)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
