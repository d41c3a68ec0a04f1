"""Data sets: what is written is what is read, in flat memory, and a bad row is named."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shammah.datasets import LazyDataset, open_dataset
from shammah.datasets.huggingface import HuggingFaceDatasets
from shammah.datasets.local_files import LocalFiles
from shammah.datasets.readers import json_values, lines
from shammah.errors import DatasetError, InputError, UsageError
from shammah.ports.dataset_store import Dataset, DatasetStore

WRITES = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False,
    allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
OBJECTS = st.lists(st.dictionaries(TEXT, VALUES, max_size=4), max_size=8)
EACH = ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.parquet", "a.jsonl.gz", "a.csv.gz"]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Rows of text columns in the format of the name."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist(list(rows)), path, row_group_size=100)
        return path
    if name.endswith(".jsonl"):
        content = "".join(json.dumps(row) + "\n" for row in rows)
    elif name.endswith(".json"):
        content = json.dumps(rows, indent=1)
    elif name.endswith(".txt"):
        content = "".join(row["text"] + "\n" for row in rows)
    else:
        plain = path.with_name("plain")
        with plain.open("w", newline="", encoding="utf-8") as stream:
            table = csv.DictWriter(
                stream, list(rows[0]), delimiter="," if ".csv" in path.name else "\t"
            )
            table.writeheader()
            table.writerows(rows)
        content = plain.read_bytes().decode()
    packed = gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode()
    path.write_bytes(packed)
    return path


def texts(count: int) -> list[dict[str, Any]]:
    return [{"text": f"row {number}"} for number in range(count)]


def numbered(path: Path, count: int) -> LazyDataset:
    """A JSONL data set of `{"n": 0}`, `{"n": 1}`, ..."""
    path.write_text("".join(f'{{"n": {number}}}\n' for number in range(count)))
    return open_dataset(path)


def numbers(dataset: LazyDataset) -> list[int]:
    return [row["n"] for row in dataset]


@pytest.mark.parametrize("name", EACH)
async def test_every_format_says_the_same_and_where_it_was(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, rows := texts(1000))
    store: DatasetStore = LocalFiles()
    dataset: Dataset = await store.load(str(path))
    assert await dataset.to_list() == rows == list(dataset) == [r async for r in dataset.stream()]
    assert dataset.splits == ("train",)
    third = list(dataset.take(3))[2]
    counts = "parquet" not in name
    line = 4 if ".csv" in name or ".tsv" in name else 8 if name == "a.json" else 3
    assert third.place == (f"{path}:{line}" if counts else f"{path}, row 3")


@WRITES
@given(rows=OBJECTS, ascii=st.booleans(), indent=st.sampled_from([None, 0, 2]))
def test_json_and_jsonl_round_trip(
    tmp_path: Path, rows: list[dict[str, Any]], ascii: bool, indent: int | None
) -> None:
    whole, array, after = (tmp_path / name for name in ("a.jsonl", "a.json", "b.json"))
    whole.write_text("\r\n\n".join(json.dumps(row, ensure_ascii=ascii) for row in rows))
    array.write_text(json.dumps(rows, ensure_ascii=ascii, indent=indent), encoding="utf-8-sig")
    after.write_text("\n".join(json.dumps(row, indent=indent) for row in rows))
    for path in (whole, array, after):
        assert list(open_dataset(path)) == rows


@WRITES
@given(rows=OBJECTS, block=st.integers(1, 40), indent=st.sampled_from([1, 30]))
def test_a_json_array_may_be_cut_anywhere_while_it_is_read(
    tmp_path: Path, rows: list[dict[str, Any]], block: int, indent: int
) -> None:
    path = tmp_path / "a.json"
    path.write_text(content := json.dumps(rows, ensure_ascii=False, indent=indent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_values, "BLOCK", block)
        read = list(open_dataset(path))
    assert read == rows
    begins = [
        n for n, line in enumerate(content.split("\n"), 1) if line.startswith(" " * indent + "{")
    ]
    assert [row.number for row in read] == begins


@WRITES
@given(
    rows=st.lists(st.tuples(TEXT, TEXT), max_size=8),
    tabs=st.booleans(),
)
def test_csv_round_trips_with_line_numbers(
    tmp_path: Path, rows: list[tuple[str, str]], tabs: bool
) -> None:
    path = tmp_path / ("a.tsv" if tabs else "a.csv")
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, delimiter="\t" if tabs else ",", quoting=csv.QUOTE_ALL)
        table.writerows([("one", "two"), *rows])
    read = list(open_dataset(path))
    assert [tuple(row.values()) for row in read] == rows
    assert not read or (list(read[0]) == ["one", "two"] and read[0].number == 2)


@WRITES
@given(rows=st.lists(TEXT.filter(lambda text: not set(text) & set("\r\n\ufeff")), max_size=8))
def test_text_round_trips(tmp_path: Path, rows: list[str]) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("".join(row + "\n" for row in rows).encode())
    assert [row["text"] for row in open_dataset(path)] == rows


@given(line=st.one_of(VALUES.map(json.dumps), TEXT, st.just('{"a": "\\ud83d\\ude00"}')))
@settings(deadline=None)
def test_the_fast_line_equals_the_slow_one(line: str) -> None:
    def outcome(parse: Callable[[bytes], Any]) -> tuple[str, Any]:
        try:
            return "read", parse(line.encode())
        except InputError as error:
            return "bad", error.message

    if line.strip():
        assert outcome(lines.jsonl_line) == outcome(lines.parse_object)


BAD = {
    "a.jsonl": (b'{"n": 1}\n[2]\n\n{"n": NaN}\n{"n": 5}\n{"n"\n"\xff"\n{"n": "\\ud800"}\n{"n": 9}',
                [2, 4, 6, 7, 8], ["a list", "NaN", "column 5", "UTF-8", "half a character"]),
    "b.csv": (b'n,m\n1,2\n3\n"4\n",5\n6,\xff\n7,"8"x\n9,10\n', [3, 6, 7],
              ["1 cells, but there are 2", "UTF-8", "expected after"]),
    "c.json": (b'[{"n": 1},\n7,\n{"n": "\\udc00"}, {"n": 4}]', [2, 3],
               ["a number", "half a character"]),
    "d.txt": (b"one\n\xff\nthree\n", [2], ["UTF-8"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_an_error_that_names_its_line_or_is_counted(tmp_path: Path, name: str) -> None:
    content, bad, reasons = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match="skip") as caught:
        list(open_dataset(path))
    assert caught.value.message.startswith(f"{path}:{bad[0]}: ")
    dataset = open_dataset(path, on_bad="skip")
    for _ in range(2):  # each pass counts anew
        assert len(list(dataset)) == (3 if name in ("a.jsonl", "b.csv") else 2)
        assert dataset.bad_rows.count == len(bad)
        assert [row.place for row in dataset.bad_rows.first] == [f"{path}:{n}" for n in bad]
        for row, reason in zip(dataset.bad_rows.first, reasons, strict=True):
            assert reason in row.reason


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ('[{"n": 1},\n{"n": x}]', 2, "Expecting value"),
        ('[{"n": 1}\n{"n": 2}]', 2, "no comma"),
        ('[{"n": 1},\n\n{"n": 2}', 3, "does not end"),
        ('[{"n": 1}]\n{}', 2, "more after the end"),
        ('{"n": 1}\n{"n": "2}', 2, "Unterminated string"),
    ],
)
def test_broken_json_ends_the_reading(tmp_path: Path, content: str, line: int, words: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=words) as caught:
        list(open_dataset(tmp_path / "a.json", on_bad="skip"))
    assert f"a.json:{line}: " in caught.value.message


def test_a_line_without_end_is_a_bad_row_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_LINE", 1000)
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": 1}\n{"n": "' + "x" * 5000 + '"}\n{"n": 3}\n')
    dataset = open_dataset(path, on_bad="skip")
    assert [(row["n"], row.number) for row in dataset] == [(1, 1), (3, 3)]
    assert dataset.bad_rows.first[0].place == f"{path}:2"
    with pytest.raises(InputError, match="longer than 1,000"):
        list(open_dataset(path).shuffle(1, exact=True))


@given(count=st.integers(0, 60), buffer=st.integers(1, 80), seed=st.integers(0, 99))
@settings(WRITES)
def test_a_shuffle_is_a_permutation_and_repeats(
    tmp_path: Path, count: int, buffer: int, seed: int
) -> None:
    dataset = numbered(tmp_path / "a.jsonl", count)
    mixed = dataset.shuffle(seed, buffer=buffer)
    order = numbers(mixed)
    assert sorted(order) == list(range(count))
    assert order == numbers(mixed) == numbers(dataset.shuffle(seed, buffer=buffer))
    # Nothing comes earlier than the buffer allows.
    assert all(value - place < buffer for place, value in enumerate(order))
    # By offsets, by holding every row, and by a buffer that they fit into: one and the same order.
    exact = numbers(dataset.shuffle(seed, exact=True))
    assert exact == numbers(dataset.filter(lambda row: True).shuffle(seed, exact=True))
    assert exact == numbers(dataset.shuffle(seed, buffer=max(1, count)))


def test_shuffles_differ_by_seed_and_large_rows_are_held_in_smaller_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = numbered(tmp_path / "a.jsonl", 500)
    assert numbers(dataset.shuffle(1)) != numbers(dataset.shuffle(2)) != list(range(500))
    monkeypatch.setattr("shammah.datasets.dataset.BUFFER_CHARACTERS", 1000)
    order = numbers(dataset.shuffle(1))
    assert sorted(order) == list(range(500))
    assert max(value - place for place, value in enumerate(order)) < 100


def test_an_exact_shuffle_reads_several_files_and_passes_over_what_is_bad(tmp_path: Path) -> None:
    (tmp_path / "train-0.jsonl").write_text('\ufeff{"n": 0}\n\n{"n": 1}\n')
    (tmp_path / "train-1.jsonl").write_text('{"n": 2}\nbad\n{"n": 3}')
    dataset = open_dataset(tmp_path, on_bad="skip").shuffle(3, exact=True)
    rows = list(dataset)
    assert sorted(row["n"] for row in rows) == [0, 1, 2, 3]
    assert {row["n"]: row.place.rpartition("/")[2] for row in rows} == {
        0: "train-0.jsonl:1", 1: "train-0.jsonl:3", 2: "train-1.jsonl:1", 3: "train-1.jsonl:3",
    }  # fmt: skip
    assert dataset.bad_rows.first[0].place.endswith("train-1.jsonl:2")


def test_operations_are_lazy_and_in_order(tmp_path: Path) -> None:
    dataset = numbered(tmp_path / "a.jsonl", 20)
    even = dataset.filter(lambda row: row["n"] % 2 == 0)
    assert numbers(even.skip(2).take(3)) == [4, 6, 8]
    assert numbers(even.take(3).skip(2)) == [4]
    assert numbers(dataset.select([3, 4, 9])) == [3, 4, 9]
    assert numbers(even.select([5, 0, 5])) == [10, 0, 10]
    assert numbers(dataset.select([])) == []
    assert set(numbers(dataset.shuffle(1).take(5))) < set(range(20))
    with pytest.raises(InputError, match="Row 20 was selected, but there are only 20"):
        list(dataset.select([20]))
    with pytest.raises(UsageError, match="take"):
        dataset.take(-1)
    # Nothing beyond what is taken is read.
    (tmp_path / "b.jsonl").write_text('{"n": 0}\n{"n": 1}\nbad\n')
    assert numbers(open_dataset(tmp_path / "b.jsonl").take(2)) == [0, 1]


def test_splits_are_by_the_words_in_names(tmp_path: Path) -> None:
    for name in ("claims_train-00000", "claims_train-00001", "claims_dev", "test", "corpus"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"in": name}) + "\n")
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(DatasetError, match="has the splits train, validation, test") as caught:
        open_dataset(tmp_path)
    assert (caught.value.port, caught.value.backend) == ("DatasetStore", "local files")
    train = open_dataset(tmp_path, split="train")
    assert [row["in"] for row in train] == ["claims_train-00000", "claims_train-00001"]
    assert [row["in"] for row in train.take(1).get_split("dev")] == ["claims_dev"]
    assert [row["in"] for row in open_dataset(tmp_path / "c*.jsonl")] == [
        "claims_dev", "claims_train-00000", "claims_train-00001", "corpus",
    ]  # fmt: skip
    with pytest.raises(DatasetError, match="no split 'extra'"):
        train.get_split("extra")


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_text("")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"n": 1}\n' * 99)[:-9])
    (tmp_path / "a.parquet").write_text("no")
    for name, words in (
        ("none.jsonl", "no file or folder"),
        ("a.docx", "no known format"),
        ("*.csv", "no file or folder"),
        ("a.jsonl.gz", "ended before"),
        ("a.parquet", "Parquet"),
    ):
        with pytest.raises(DatasetError, match=words):
            list(open_dataset(tmp_path / name))


def test_a_missing_library_is_named_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"")
    for source in ("owner/name", tmp_path / "a.parquet"):
        with pytest.raises(DatasetError, match=r"pip install 'shammah\[data\]'"):
            list(open_dataset(source))


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library `datasets`, without a network, on a cache of its own."""
    library = pytest.importorskip("datasets", reason="the extra `data` is not installed")
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return library


@pytest.mark.parametrize("streaming", [True, False])
async def test_hugging_face_opens_folders(tmp_path: Path, offline: Any, streaming: bool) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "train.jsonl", texts(300))
    write(folder / "test.jsonl", texts(10))
    store: DatasetStore = HuggingFaceDatasets(streaming=streaming)
    dataset = await store.load(f"hf:{folder}", split="train")
    assert dataset.splits == ("train", "test")
    assert await dataset.to_list() == texts(300)
    assert [row["text"] for row in dataset.get_split("test").take(1)] == ["row 0"]
    exact = list(dataset.shuffle(5, exact=True))
    assert exact == list(open_dataset(folder, split="train").shuffle(5, exact=True))
    assert exact[0].place == f"hf:{folder}[train], row {int(exact[0]['text'][4:]) + 1}"
    with pytest.raises(DatasetError, match="has the splits train, test"):
        await store.load(f"hf:{folder}")


def test_hugging_face_opens_what_it_saved_and_says_what_it_cannot(
    tmp_path: Path, offline: Any
) -> None:
    made = offline.Dataset.from_list(texts(50))
    made.save_to_disk(str(tmp_path / "one"))
    offline.DatasetDict({"a": made, "b": made}).save_to_disk(str(tmp_path / "two"))
    assert list(open_dataset(tmp_path / "one")) == texts(50)
    assert list(open_dataset(tmp_path / "two", split="b").take(2)) == texts(2)
    for source, words in (
        ("owner/nothing", "owner/nothing cannot be opened"),
        ("hf:no thing", "neither a folder nor a name"),
    ):
        with pytest.raises(DatasetError, match=words) as caught:
            open_dataset(source)
        assert (caught.value.port, caught.value.backend) == (
            "DatasetStore",
            HuggingFaceDatasets.name,
        )
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "train.jsonl").write_text('{"n": 1}\n{"n": \n')
    with pytest.raises(DatasetError, match="cannot be read"):
        list(open_dataset(f"hf:{tmp_path / 'bad'}"))


MEMORY = """
import resource, sys
from shammah.datasets import open_dataset
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
sum(1 for _ in open_dataset(sys.argv[1]).take(2000))
before = peak()
rows = sum(1 for _ in open_dataset(sys.argv[1]).shuffle(1, buffer=1000))
print(rows, peak() - before)
"""


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.parquet"])
def test_memory_is_flat(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    rows = 60_000
    line = "x" * 900
    if name.endswith(".parquet"):
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        table = arrow.table({"text": [f"{n} {line}" for n in range(rows // 12)]})
        with parquet.ParquetWriter(path, table.schema, compression="none") as writer:
            for _ in range(12):
                writer.write_table(table, row_group_size=1000)
    else:
        with path.open("w") as stream:
            stream.write({"a.json": "[", "a.csv": "text\n"}.get(name, ""))
            for number in range(rows):
                text = f"{number} {line}"
                if "json" in name:
                    comma = "," if name == "a.json" and number else ""
                    text = f'{comma}{{"text": "{text}"}}'
                stream.write(text + "\n")
            stream.write("]" if name == "a.json" else "")
    assert path.stat().st_size > 50_000_000
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(path)], capture_output=True, text=True, check=True
    )
    read, grown = map(int, done.stdout.split())
    assert read == rows
    assert grown < 20, f"{grown} MB more after 55 MB of {name}"
