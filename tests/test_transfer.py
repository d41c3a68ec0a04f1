"""JSONL in and out: bad lines are named, good ones kept, nothing is lost on the way."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shammah.errors import FeedbackError, InputError
from shammah.feedback.records import Draft
from shammah.feedback.store import FeedbackStore, check_draft
from shammah.feedback.transfer import MAX_LINE, export_jsonl, import_jsonl
from shammah.messages import Message, user
from shammah.settings import FeedbackSettings
from shammah.storage.database import Database


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "shammah.db")
    yield database
    database.close()


@pytest.fixture
def store(db: Database) -> FeedbackStore:
    return FeedbackStore(db, FeedbackSettings())


def lines(*rows: object) -> io.StringIO:
    return io.StringIO("".join(json.dumps(row) + "\n" for row in rows))


def test_every_kind_of_row(store: FeedbackStore) -> None:
    report = import_jsonl(
        store,
        lines(
            {"query": "q1", "response": "r1", "rating": "good"},
            {"query": "q2", "response": "r2", "rating": "Critical", "feedback": "wrong"},
            {"query": "q3", "response": "r3", "rating": "medium", "correction": "c3", "note": "n"},
            {"query": "q4", "correction": "c4"},
            {"query": "q5", "correction": "c5", "weight": 2.5},
            {"query": "q6", "response": "r6", "weight": 1},
            {"query": "q7", "response": "r7", "weight": 10, "feedback": "no", "more": ["ignored"]},
            {"query": "q8", "response": "r8", "rating": "good", "weight": 4},
            {
                "messages": [
                    {"role": "system", "content": "s"},
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b"},
                    {"role": "user", "content": "q9"},
                ],
                "response": "r9",
                "rating": "good",
            },
        ),
        model="elsewhere",
    )
    assert (report.taken, report.rejected) == (9, [])
    rows = [r.feedback for r in report.recorded]
    assert [(f.query, f.rating, f.weight, f.target, f.status) for f in rows] == [
        ("q1", "good", 1.0, "r1", "buffered"),
        ("q2", "critical", 10.0, None, "buffered"),
        ("q3", "medium", 3.0, "c3", "buffered"),
        ("q4", None, 10.0, "c4", "buffered"),
        ("q5", None, 2.5, "c5", "buffered"),
        ("q6", "good", 1.0, "r6", "buffered"),
        ("q7", "critical", 10.0, None, "buffered"),
        ("q8", "good", 4.0, "r8", "buffered"),
        ("q9", "good", 1.0, "r9", "buffered"),
    ]
    assert [f.note for f in rows[:3]] == [None, "wrong", "n"]
    assert len(rows[8].messages) == 4
    assert {f.model for f in rows} == {"elsewhere"}
    assert report.recorded[-1].buffer == store.state()


BAD = [
    ('{"query": "q", ', "not JSON: Expecting property name"),
    ('["q"]', "not an object but a list"),
    ("null", "not an object but null"),
    ("[" * 100_000, "not JSON: nested too deeply"),
    ('{"response": "r", "rating": "good"}', "no query"),
    ('{"query": " ", "response": "r", "rating": "good"}', "no query"),
    ('{"query": "q", "response": "r", "rating": "awful"}', "rating 'awful' is none of critical"),
    ('{"query": "q", "response": "r", "rating": 3}', "rating 3 is none of"),
    ('{"query": "q", "correction": "c", "weight": -1}', "weight '-1' is no number above 0"),
    ('{"query": "q", "correction": "c", "weight": 0}', "weight '0' is no number above 0"),
    ('{"query": "q", "correction": "c", "weight": true}', "weight 'True' is no number"),
    ('{"query": "q", "correction": "c", "weight": "10"}', "weight '10' is no number"),
    ('{"query": "q", "correction": "c", "weight": NaN}', "NaN is no number"),
    ('{"query": "q", "correction": "c", "weight": 1e999}', "weight 'inf' is no number"),
    ('{"query": "q", "correction": "c", "weight": 1' + "0" * 400 + "}", "weight '1000"),
    ('{"query": "q", "response": "r", "weight": 7}', "weight 7 alone does not say"),
    ('{"query": "q", "response": "r"}', "neither a rating nor a correction"),
    ('{"query": "q", "rating": "good"}', "neither a response nor a correction"),
    ('{"query": "q", "response": " ", "rating": "good"}', "neither a response nor a correction"),
    ('{"query": 5, "response": "r", "rating": "good"}', "query: input should be a valid string"),
    ('{"query": "q", "correction": "c", "note": "a", "feedback": "b"}', "note and feedback differ"),
    ('{"query": "q", "correction": "half \\ud83d"}', "not UTF-8"),
    ('{"messages": [], "correction": "c"}', "no query"),
    ('{"messages": [{"role": "robot", "content": "x"}], "correction": "c"}', "role 'robot'"),
    (
        '{"messages": [{"role": "assistant", "content": "x"}], "correction": "c"}',
        "do not end with the user's",
    ),
    (
        '{"query": "q", "messages": [{"role": "user", "content": "x"}], "correction": "c"}',
        "query differs",
    ),
]


@pytest.mark.parametrize(("line", "reason"), BAD)
def test_bad_line_is_named_and_the_others_are_taken(
    store: FeedbackStore, line: str, reason: str
) -> None:
    good = '{"query": "q", "correction": "c"}'
    text = f"{good}\n\n{line}\n{good}"
    report = import_jsonl(store, io.StringIO(text))
    assert report.taken == 2
    assert [number for number, _ in report.rejected] == [3]
    assert reason in report.rejected[0][1]
    assert store.state().count == 2


def test_strict_takes_all_or_none(store: FeedbackStore) -> None:
    good, bad = {"query": "q", "correction": "c"}, {"query": "q"}
    report = import_jsonl(store, lines(good, bad, good, bad), strict=True)
    assert (report.taken, [n for n, _ in report.rejected]) == (0, [2, 4])
    assert store.list() == []
    assert import_jsonl(store, lines(good, good), strict=True).taken == 2
    assert len(store.undo_all()) == 2
    assert store.list() == []


def test_files_as_they_come(store: FeedbackStore, tmp_path: Path) -> None:
    path = tmp_path / "feedback.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"query": "q1", "correction": "c"}\r\n'
        b"  \r\n"
        b'{"query": "caf\xe9", "correction": "c"}\r\n'
        + '{"query": "café \u2028 q2", "correction": "c"}'.encode()
    )
    report = import_jsonl(store, path)
    assert report.taken == 2
    assert report.rejected == [(3, "not UTF-8 (byte 15)")]
    assert [f.query for f in store.buffer()] == ["q1", "café \u2028 q2"]
    with pytest.raises(InputError, match=r"missing\.jsonl cannot be read: No such file"):
        import_jsonl(store, tmp_path / "missing.jsonl")
    with path.open(encoding="utf-8") as stream, pytest.raises(InputError, match="not UTF-8 text"):
        import_jsonl(store, stream)
    empty = import_jsonl(store, io.StringIO(""))
    assert (empty.taken, empty.rejected) == (0, [])


def test_huge_line_is_rejected_and_passed_over(store: FeedbackStore) -> None:
    good = '{"query": "q", "correction": "c"}\n'
    huge = '{"query": "q", "correction": "' + "x" * (3 * MAX_LINE) + '"}\n'
    report = import_jsonl(store, io.StringIO(good + huge + good))
    assert report.taken == 2
    assert report.rejected == [(2, "longer than 4,000,000 characters")]


def test_large_import_is_quick_and_bounded_by_capacity(store: FeedbackStore) -> None:
    report = import_jsonl(
        store, lines(*({"query": f"q{i}", "correction": "c"} for i in range(3000)))
    )
    assert report.taken == 3000
    assert store.state().count == 100
    assert len(report.recorded[-1].dropped) == 2900


def test_secrets_are_pointed_out(store: FeedbackStore) -> None:
    report = import_jsonl(store, lines({"query": "q", "correction": "password = 'abcd1234'"}))
    assert "password" in report.recorded[0].warnings[0]


def test_export_by_status(store: FeedbackStore) -> None:
    rows = [
        {"query": "q1", "correction": "c"},
        {"query": "q2", "response": " ", "rating": "medium", "correction": "c"},
    ]
    import_jsonl(store, lines(*rows))
    store.edit(2, correction=" ")
    deleted = store.add((user("gone"),), None, None, None, None, "c", "").feedback
    store.delete(deleted.id)
    out = io.StringIO()
    assert export_jsonl(store, out, "waiting") == 1
    empty = {"query": "q2", "response": " ", "rating": "medium", "weight": 3.0}
    assert json.loads(out.getvalue()) == empty
    out = io.StringIO()
    assert export_jsonl(store, out) == 2
    assert json.loads(out.getvalue().splitlines()[0]) == {**rows[0], "weight": 10.0}


TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
MESSAGE = st.builds(Message, st.sampled_from(["system", "user", "assistant"]), TEXT)


def acceptable(draft: Draft) -> bool:
    try:
        check_draft(draft)
    except FeedbackError:
        return False
    return bool(draft.messages[-1].content.strip())


DRAFTS = st.builds(
    Draft,
    messages=st.tuples(st.lists(MESSAGE, max_size=3), TEXT).map(
        lambda parts: (*parts[0], user(parts[1]))
    ),
    response=st.none() | TEXT,
    rating=st.sampled_from(["critical", "medium", "good", None]),
    weight=st.none() | st.floats(min_value=1e-6, max_value=1e6),
    note=st.none() | TEXT,
    correction=st.none() | TEXT,
    preferred_over=st.none() | TEXT,
).filter(acceptable)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(drafts=st.lists(DRAFTS, max_size=6))
def test_export_and_import_lose_nothing(
    tmp_path_factory: pytest.TempPathFactory, drafts: list[Draft]
) -> None:
    folder = tmp_path_factory.mktemp("transfer")
    first, second = Database(folder / "first.db"), Database(folder / "second.db")
    source = FeedbackStore(first, FeedbackSettings())
    copy = FeedbackStore(second, FeedbackSettings())
    source.add_all(drafts)
    path = folder / "feedback.jsonl"
    with path.open("w", encoding="utf-8") as stream:
        assert export_jsonl(source, stream) == len(drafts)
    report = import_jsonl(copy, path, strict=True)
    assert (report.taken, report.rejected) == (len(drafts), [])
    of_the_format = ("messages", "response", "rating", "weight", "note", "correction", "target")
    for ours, theirs in zip(source.list(), copy.list(), strict=True):
        for field in (*of_the_format, "preferred_over", "status"):
            assert getattr(ours, field) == getattr(theirs, field), field
    first.close()
    second.close()
