"""Ratings and the buffer: what is stored, what may be trained on, what can be taken back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shammah.errors import FeedbackError, StorageError
from shammah.feedback.exchanges import Exchange, ExchangeStore
from shammah.feedback.records import BufferState, Draft
from shammah.feedback.store import Feedback, FeedbackStore
from shammah.learning.lessons import lesson_from
from shammah.messages import assistant, system, user
from shammah.settings import FeedbackSettings
from shammah.storage.database import Database
from shammah.storage.schema import JobLessonRow, JobRow

Ask = Callable[..., Exchange]


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "shammah.db")
    yield database
    database.close()


@pytest.fixture
def exchanges(db: Database) -> ExchangeStore:
    return ExchangeStore(db)


@pytest.fixture
def store(db: Database) -> FeedbackStore:
    return FeedbackStore(db, FeedbackSettings())


@pytest.fixture
def ask(exchanges: ExchangeStore) -> Ask:
    return lambda query="What is a list?", response="A tree.", cut=False, session="s": (
        exchanges.add(
            session=session,
            messages=(system("Be brief."), user("Hi"), assistant("Hello."), user(query)),
            response=response,
            cut=cut,
            model="embedded",
            fingerprint="f" * 16,
            adapter="lora_adapter_20260206_143025",
            generation=3,
            settings={"temperature": 0.0, "seed": None},
        )
    )


def job(db: Database, status: str = "running") -> int:
    with db.write() as session:
        row = JobRow(
            status=status,
            reason="now",
            base_model="embedded",
            base_fingerprint="f",
            folder="1",
            created_at=datetime.now(UTC),
        )
        session.add(row)
    return row.id


# Exchanges


def test_exchange_comes_back_whole(exchanges: ExchangeStore, ask: Ask) -> None:
    added = ask("Wie heißt du? 👋\n```py\nx\n```", session="a")
    later = ask("later", session="b")
    assert exchanges.get(added.id) == added
    assert added.query.startswith("Wie heißt")
    assert exchanges.latest("a") == added
    assert exchanges.latest("nowhere") is None
    assert exchanges.list(10) == [later, added]
    assert exchanges.list(1) == [later]
    assert exchanges.list(session="a") == [added]
    assert exchanges.count() == 2
    assert exchanges.uses() == {"lora_adapter_20260206_143025": 2}


def test_exchange_with_undecodable_bytes_is_stored(exchanges: ExchangeStore, ask: Ask) -> None:
    added = ask("bad \udcff byte", response="half \ud83d")
    assert exchanges.get(added.id) == added
    assert added.query == "bad ? byte"


def test_missing_exchange_and_wrong_prompt(exchanges: ExchangeStore) -> None:
    with pytest.raises(FeedbackError, match="no exchange 7"):
        exchanges.get(7)
    with pytest.raises(FeedbackError, match="ends with a message of the user"):
        exchanges.add(
            session="s",
            messages=(user("a"), assistant("b")),
            response="",
            cut=False,
            model="m",
            fingerprint="f",
            adapter=None,
            generation=0,
            settings={},
        )


# Rating


def test_good_rating_teaches_the_answer(store: FeedbackStore, ask: Ask) -> None:
    exchange = ask()
    recorded = store.rate(exchange.id, "good", note=" nice ")
    feedback = recorded.feedback
    assert (feedback.rating, feedback.weight, feedback.note) == ("good", 1.0, "nice")
    assert (feedback.target, feedback.status) == ("A tree.", "buffered")
    assert (feedback.messages, feedback.query) == (exchange.messages, exchange.query)
    assert (feedback.model, feedback.adapter) == (exchange.model, exchange.adapter)
    assert recorded.replaced is None and recorded.dropped == () and recorded.warnings == ()
    assert recorded.buffer == BufferState(1, 1.0, 10, "count", 100, 0)
    assert store.get(feedback.id) == feedback == store.of_exchange(exchange.id)


@pytest.mark.parametrize("rating", ["critical", "medium"])
def test_condemned_answer_is_never_a_target(store: FeedbackStore, ask: Ask, rating: str) -> None:
    exchange = ask()
    weight = {"critical": 10.0, "medium": 3.0}[rating]
    condemned = store.rate(exchange.id, rating, note="wrong").feedback  # type: ignore[arg-type]
    assert (condemned.target, condemned.status) == (None, "buffered")
    assert lesson_from(condemned).objective == "revise"
    assert lesson_from(store.edit(condemned.id, note="").feedback).objective == "avoid"
    assert store.state() == BufferState(1, weight, 10, "count", 100, 0)
    corrected = store.edit(condemned.id, correction="A row of things.").feedback
    assert (corrected.target, corrected.status) == ("A row of things.", "buffered")
    lesson = lesson_from(corrected)
    assert (lesson.objective, lesson.rejected) == ("prefer", "A tree.")
    assert corrected.weight == weight


def test_second_rating_replaces_the_first(store: FeedbackStore, ask: Ask) -> None:
    exchange = ask()
    first = store.rate(exchange.id, "good", note="fine").feedback
    second = store.rate(exchange.id, "critical", note="no, wrong")
    assert second.replaced == first
    assert second.feedback.id == first.id
    assert second.feedback.note == "no, wrong"
    assert store.list() == [second.feedback]
    third = store.rate(exchange.id, "medium")
    assert third.feedback.note is None, "a note about another rating does not stay"
    assert third.feedback.weight == 3.0


def test_correction_keeps_or_implies_a_bad_rating(store: FeedbackStore, ask: Ask) -> None:
    plain = store.rate(ask().id, None, correction="Right.\n").feedback
    assert (plain.rating, plain.weight, plain.target) == ("critical", 10.0, "Right.")
    exchange = ask()
    store.rate(exchange.id, "medium", note="too long")
    kept = store.rate(exchange.id, None, correction="Short.").feedback
    assert (kept.rating, kept.note, kept.target) == ("medium", "too long", "Short.")
    assert store.rate(exchange.id, "critical").feedback.target == "Short."
    assert store.rate(exchange.id, "good").feedback.target == "Short."
    assert store.rate(exchange.id, "good", correction=" ").feedback.target == "A tree."
    good = ask()
    store.rate(good.id, "good")
    assert store.rate(good.id, None, correction="Better.").feedback.rating == "critical"


def test_what_cannot_be_rated(store: FeedbackStore, ask: Ask) -> None:
    exchange = ask()
    with pytest.raises(FeedbackError, match="no exchange 99 to rate"):
        store.rate(99, "good")
    with pytest.raises(FeedbackError, match="'awful' is no rating"):
        store.rate(exchange.id, "awful")  # type: ignore[arg-type]
    with pytest.raises(FeedbackError, match="neither a rating nor a correction"):
        store.rate(exchange.id, None, note="hm", correction="  ")
    assert store.list() == []


def test_good_rating_of_an_empty_answer_teaches_nothing(store: FeedbackStore, ask: Ask) -> None:
    recorded = store.rate(ask(response=" \n").id, "good")
    assert (recorded.feedback.target, recorded.feedback.status) == (None, "waiting")


def test_an_answer_tried_again_and_rated_good_is_preferred(store: FeedbackStore, ask: Ask) -> None:
    first, second, third = (ask(response=text) for text in ("A tree.", "A bush.", "A row."))
    assert store.rate(second.id, "good").feedback.preferred_over == "A tree."
    done = store.rate(third.id, "good").feedback
    assert done.preferred_over is None, "the one before was good as well"
    store.rate(second.id, "medium")
    lesson = lesson_from(store.rate(third.id, "good").feedback)
    assert (lesson.objective, lesson.target, lesson.rejected) == ("prefer", "A row.", "A bush.")
    assert store.rate(first.id, "good").feedback.preferred_over is None
    other = ask(session="another", response="A tree.")
    assert store.rate(other.id, "good").feedback.preferred_over is None


def test_a_revision_is_taught_until_it_is_refused(store: FeedbackStore, ask: Ask) -> None:
    number = store.rate(ask().id, "critical", note="more exact").feedback.id
    with pytest.raises(FeedbackError, match="has no revision"):
        store.decide(number, True)
    proposed = store.propose(number, "An ordered row.").feedback
    assert (proposed.target, proposed.revision_accepted) == ("An ordered row.", None)
    assert lesson_from(proposed).objective == "towards"
    assert store.decide(number, True).feedback.revision_accepted is True
    refused = store.decide(number, False).feedback
    assert (refused.target, lesson_from(refused).objective) == (None, "avoid")
    assert store.undo() is not None
    assert store.get(number).target == "An ordered row."
    assert store.edit(number, note="less exact").feedback.revision is None, "it was of another note"
    good = store.rate(ask().id, "good", note="fine").feedback
    with pytest.raises(FeedbackError, match="needs no revision"):
        store.propose(good.id, "An ordered row.")


def test_warnings(store: FeedbackStore, ask: Ask) -> None:
    cut = ask(cut=True)
    assert "cut short" in store.rate(cut.id, "good").warnings[0]
    assert store.rate(cut.id, None, correction="All of it.").warnings == ()
    leaked = store.rate(ask().id, None, correction="Use password = 'c0rrect-horse9'")
    assert "holds a secret (password)" in leaked.warnings[0]


KILLED = """
import sys, time
from pathlib import Path
from shammah.feedback.store import FeedbackStore
from shammah.settings import FeedbackSettings
from shammah.storage.database import Database
store = FeedbackStore(Database(Path(sys.argv[1])), FeedbackSettings())
recorded = store.rate(int(sys.argv[2]), "critical", note="wrong", correction="Right.")
print(recorded.feedback.id, flush=True)
time.sleep(60)
"""


def test_kill_right_after_the_acknowledgement_loses_nothing(
    tmp_path: Path, store: FeedbackStore, ask: Ask
) -> None:
    exchange = ask()
    command = [sys.executable, "-c", KILLED, str(tmp_path / "shammah.db"), str(exchange.id)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        feedback_id = int(child.stdout.readline())
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait(timeout=10) == -signal.SIGKILL
    feedback = store.get(feedback_id)
    assert (feedback.rating, feedback.note, feedback.target) == ("critical", "wrong", "Right.")
    assert store.state().label == "1/10 (10.0)"


def test_ratings_from_many_threads_end_as_one(store: FeedbackStore, ask: Ask) -> None:
    exchange = ask()
    with ThreadPoolExecutor(8) as pool:
        recorded = list(
            pool.map(lambda i: store.rate(exchange.id, "medium", note=f"n{i}"), range(16))
        )
    assert [f.id for f in store.list()] == [recorded[0].feedback.id]
    assert sum(r.replaced is None for r in recorded) == 1
    for _ in range(15):
        assert store.undo() is not None
    assert store.list() == [next(r.feedback for r in recorded if r.replaced is None)]


# Buffer


@pytest.mark.parametrize(
    ("count", "weight", "by", "threshold", "reached", "label"),
    [
        (8, 42.0, "count", 10, False, "8/10 (42.0)"),
        (10, 10.0, "count", 10, True, "10/10 (10.0)"),
        (8, 42.0, "weight", 50, False, "42.0/50 (8)"),
        (8, 50.0, "weight", 50, True, "50.0/50 (8)"),
        (100, 100.0, "count", 500, True, "100/500 (100.0)"),
        (0, 0.0, "count", 0.5, False, "0/0.5 (0.0)"),
    ],
)
def test_threshold(
    count: int, weight: float, by: str, threshold: float, reached: bool, label: str
) -> None:
    state = BufferState(count, weight, threshold, by, 100, 0)  # type: ignore[arg-type]
    assert (state.reached, state.label) == (reached, label)


def test_full_buffer_drops_the_lightest_then_the_oldest(
    db: Database, exchanges: ExchangeStore, ask: Ask
) -> None:
    store = FeedbackStore(db, FeedbackSettings(capacity=3))
    heavy = store.rate(ask().id, None, correction="x").feedback
    old, new = (store.rate(ask().id, "good").feedback for _ in range(2))
    fourth = store.rate(ask().id, "medium", correction="y")
    assert [f.id for f in fourth.dropped] == [old.id]
    assert fourth.dropped[0].status == "dropped"
    assert fourth.buffer.count == 3
    assert [f.id for f in store.buffer()] == [heavy.id, new.id, fourth.feedback.id]
    assert [f.id for f in store.list("dropped")] == [old.id]
    # The newcomer may be the lightest itself; rated anew, a dropped one is back.
    store.rate(ask().id, None, correction="z")
    light = store.rate(ask().id, "good")
    assert light.feedback.status == "dropped" and light.dropped == (light.feedback,)
    assert old.exchange_id is not None
    back = store.rate(old.exchange_id, "critical", correction="w")
    assert back.feedback.status == "buffered"
    assert store.state().count == 3


# Training


def teach(store: FeedbackStore, ask: Ask, count: int = 3) -> list[Feedback]:
    return [store.rate(ask(f"q{i}").id, None, correction=f"a{i}").feedback for i in range(count)]


def test_way_through_a_job(db: Database, store: FeedbackStore, ask: Ask) -> None:
    lessons = teach(store, ask)
    number = job(db)
    taken = store.begin_training([f.id for f in lessons] + [999], number)
    assert [(f.id, f.status, f.job_id) for f in taken] == [
        (f.id, "training", number) for f in lessons
    ]
    assert store.state().count == 0
    assert store.begin_training([lessons[0].id], job(db)) == [], "a lesson is in one job only"
    done = store.finish_training(number, [lessons[0].id])
    assert [(f.status, f.learned) for f in done] == [
        ("trained", True),
        ("trained", False),
        ("trained", False),
    ]
    assert store.lessons_trained() == done
    assert store.counts() == {"trained": 3}
    with db.read() as session:
        found = session.get_one(JobLessonRow, (number, lessons[1].id))
    assert found.learned is False


def test_failed_job_gives_its_lessons_back(db: Database, store: FeedbackStore, ask: Ask) -> None:
    lessons = teach(store, ask)
    number = job(db)
    store.begin_training([f.id for f in lessons], number)
    assert store.return_to_buffer(number) == lessons == store.buffer()


def test_job_and_its_lessons_are_one_transaction(
    db: Database, store: FeedbackStore, ask: Ask
) -> None:
    lessons = teach(store, ask)
    number = job(db)
    with pytest.raises(RuntimeError), db.write() as session:
        store.begin_training([f.id for f in lessons], number, session=session)
        assert store.buffer(session=session) == []
        assert store.state(session=session).count == 0
        raise RuntimeError("the folder could not be written")
    assert store.buffer() == lessons


def test_what_changes_during_training_is_not_taken_for_trained(
    db: Database, store: FeedbackStore, ask: Ask
) -> None:
    corrected, deleted, noted, plain = teach(store, ask, 4)
    number = job(db)
    store.begin_training([f.id for f in (corrected, deleted, noted, plain)], number)
    assert corrected.exchange_id is not None
    again = store.rate(corrected.exchange_id, "critical", correction="better").feedback
    assert (again.status, again.job_id) == ("buffered", None)
    store.delete(deleted.id)
    assert store.edit(noted.id, note="because").feedback.status == "training"
    done = store.finish_training(number, [f.id for f in (corrected, deleted, noted, plain)])
    assert [f.id for f in done] == [plain.id, noted.id]
    assert store.get(corrected.id).status == "buffered"
    assert store.get(deleted.id).status == "deleted"


def test_trained_feedback_rated_anew_is_taught_again(
    db: Database, store: FeedbackStore, ask: Ask
) -> None:
    (lesson,) = teach(store, ask, 1)
    number = job(db)
    store.begin_training([lesson.id], number)
    (trained,) = store.finish_training(number, [lesson.id])
    assert store.edit(lesson.id, note="only a note").feedback.status == "trained"
    again = store.edit(lesson.id, correction="new")
    assert (again.feedback.status, again.feedback.learned) == ("buffered", None)
    store.undo()
    assert store.undo() == trained


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("running", "training"),
        ("interrupted", "training"),
        ("done", "trained"),
        ("failed", "buffered"),
    ],
)
def test_undo_of_a_change_made_during_training(
    db: Database, store: FeedbackStore, ask: Ask, status: str, expected: str
) -> None:
    (lesson,) = teach(store, ask, 1)
    number = job(db)
    store.begin_training([lesson.id], number)
    store.delete(lesson.id)
    with db.write() as session:
        session.get_one(JobRow, number).status = status
    if status == "done":
        store.finish_training(number, [lesson.id])
    back = store.undo()
    assert back is not None and (back.status, back.target) == (expected, lesson.target)
    assert back.learned is (True if status == "done" else None)


def test_undo_after_training_moved_on(db: Database, store: FeedbackStore, ask: Ask) -> None:
    (lesson,) = teach(store, ask, 1)
    store.edit(lesson.id, note="a")
    store.edit(lesson.id, correction="b")
    number = job(db)
    store.begin_training([lesson.id], number)
    store.finish_training(number, [lesson.id])
    back = store.undo()
    assert back is not None
    assert (back.target, back.status) == ("a0", "buffered"), "another text than was trained"
    removed = (store.undo(), store.undo())[-1]
    assert removed is not None and removed.status == "deleted"
    assert store.undo() is None


# Editing and taking back


def test_edit_and_delete_errors(store: FeedbackStore, ask: Ask) -> None:
    lesson = store.add((user("q"),), "r", None, None, None, "c", "m").feedback
    with pytest.raises(FeedbackError, match="neither a rating nor a correction left"):
        store.edit(lesson.id, correction="")
    assert store.get(lesson.id) == lesson
    for call in (store.edit, store.delete, store.get):
        with pytest.raises(FeedbackError, match="no feedback 77"):
            call(77)
    assert store.delete(lesson.id) == lesson
    for call in (store.edit, store.delete):
        with pytest.raises(FeedbackError, match="was deleted"):
            call(lesson.id)
    assert store.list() == []
    assert [f.id for f in store.list("deleted")] == [lesson.id]
    assert store.undo() == lesson


def test_deleted_feedback_does_not_colour_a_new_rating(store: FeedbackStore, ask: Ask) -> None:
    exchange = ask()
    first = store.rate(exchange.id, "critical", note="bad", correction="x").feedback
    store.delete(first.id)
    assert store.of_exchange(exchange.id) is None
    second = store.rate(exchange.id, "good")
    assert second.replaced is None
    assert (second.feedback.note, second.feedback.correction) == (None, None)
    removed = store.undo()
    assert removed is not None and removed.status == "deleted"
    assert store.undo() == first


def test_import_is_one_action(store: FeedbackStore, ask: Ask) -> None:
    kept = store.rate(ask().id, "good").feedback
    store.settings = FeedbackSettings(capacity=2)
    drafts = [Draft((user(f"q{i}"),), correction="c") for i in range(3)]
    recorded = store.add_all(drafts)
    assert [f.id for f in recorded[-1].dropped] == [kept.id, recorded[0].feedback.id]
    assert recorded[0].feedback.status == "dropped"
    assert recorded[-1].feedback.weight == 10.0 and recorded[-1].feedback.rating is None
    assert [f.status for f in store.undo_all()] == ["deleted"] * 3
    assert store.list() == [kept]
    with pytest.raises(FeedbackError, match="neither a response nor a correction"):
        store.add_all([*drafts, Draft((user("q"),), rating="good")])
    assert store.list() == [kept]
    assert store.add_all([]) == []


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), 1e7])
def test_weights_that_are_none(store: FeedbackStore, weight: float) -> None:
    with pytest.raises(FeedbackError, match="weight"):
        store.add((user("q"),), "r", "good", weight, None, None, "m")


ACTIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("rate"),
            st.integers(0, 3),
            st.sampled_from(["critical", "medium", "good", None]),
            st.sampled_from([None, "n1", "n2", ""]),
            st.sampled_from([None, "c1", "c2", ""]),
        ),
        st.tuples(
            st.just("edit"),
            st.integers(0, 5),
            st.sampled_from(["critical", "medium", "good", None]),
            st.sampled_from([None, "n3", ""]),
            st.sampled_from([None, "c3", ""]),
        ),
        st.tuples(st.just("add"), st.integers(1, 3), *[st.none()] * 3),
        st.tuples(st.just("delete"), st.integers(0, 5), *[st.none()] * 3),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(actions=ACTIONS)
def test_undo_walks_back_through_any_history(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, int, str, str, str]]
) -> None:
    db = Database(tmp_path_factory.mktemp("undo") / "shammah.db")
    store = FeedbackStore(db, FeedbackSettings(capacity=3))
    exchanges = ExchangeStore(db)
    for i in range(4):
        exchanges.add(
            session="s",
            messages=(user(f"q{i}"),),
            response=f"r{i}",
            cut=False,
            model="m",
            fingerprint="f",
            adapter=None,
            generation=0,
            settings={},
        )
    history = [store.list()]
    for kind, number, rating, note, correction in actions:
        try:
            if kind == "rate":
                store.rate(number + 1, rating, note, correction)  # type: ignore[arg-type]
            elif kind == "edit":
                store.edit(number + 1, note=note, correction=correction, rating=rating)  # type: ignore[arg-type]
            elif kind == "add":
                store.add_all([Draft((user("q"),), "r", "good") for _ in range(number)])
            else:
                store.delete(number + 1)
        except FeedbackError:
            assert store.list() == history[-1], "what is refused changes nothing"
            continue
        rows = store.list()
        history.append(rows)
        # The state, counted the slow way.
        buffered = [f for f in rows if f.status == "buffered"]
        state = store.state()
        assert state.count == len(buffered) <= 3
        assert state.weight == sum(f.weight for f in buffered)
        assert state.waiting == sum(f.status == "waiting" for f in rows)
        for feedback in rows:
            assert feedback.teaches == (feedback.status != "waiting")
            assert feedback.target != feedback.response or feedback.rating == "good"
    for earlier in history[-2::-1]:
        assert store.undo() is not None
        assert store.list() == earlier
    assert store.undo() is None
    db.close()


def test_damaged_row_is_named(db: Database, store: FeedbackStore, ask: Ask) -> None:
    feedback = store.rate(ask().id, "good").feedback
    with db.write() as session:
        session.connection().exec_driver_sql("UPDATE feedback SET rating = 'superb'")
    with pytest.raises(StorageError, match=f"Feedback {feedback.id} is damaged"):
        store.get(feedback.id)
    with db.write() as session:
        session.connection().exec_driver_sql("UPDATE feedback SET messages = '[{'")
    with pytest.raises(StorageError, match="not JSON"):
        store.list()
