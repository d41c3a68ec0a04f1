"""The queue of training jobs: one job for each lesson, whoever asks and however often."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from shammah.errors import TrainingError
from shammah.feedback.store import FeedbackStore
from shammah.learning.job import Complete, JobSpec, LessonOutcome, LoraRecord
from shammah.learning.lessons import lesson_from
from shammah.learning.queue import JobQueue
from shammah.messages import user
from shammah.paths import Paths
from shammah.settings import FeedbackSettings, Settings
from shammah.storage.database import Database
from shammah.storage.schema import JobRow

SETTINGS = Settings(feedback=FeedbackSettings(threshold=3))


class Store:
    """A data folder with a buffer that is full at three lessons."""

    def __init__(self, folder: Path) -> None:
        self.paths = Paths(folder, folder).ensure()
        self.database = Database(self.paths.database)
        self.feedback = FeedbackStore(self.database, SETTINGS.feedback)
        self.queue = JobQueue(self.database, self.paths, self.feedback)

    def teach(self, count: int, start: int = 0) -> None:
        for number in range(start, start + count):
            self.feedback.add(
                (user(f"question {number}"),), "wrong", "critical", None, None, f"a {number}", "m"
            )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path)
    yield made
    made.database.close()


def complete(learned: list[int], not_learned: list[int]) -> Complete:
    return Complete(
        sha256="0",
        tensors=2,
        parameters=10,
        lora=LoraRecord(rank=1, alpha=1, dropout=0, target_modules=("q_proj",), rslora=False),
        model="embedded",
        fingerprint="f",
        outcomes=tuple(
            LessonOutcome(feedback_id=id, learned=id in learned) for id in learned + not_learned
        ),
        final_loss=0.5,
        examples=len(learned) + len(not_learned),
        replayed=0,
        steps=4,
        epochs=2,
        tokens=100,
        seconds=1.0,
    )


def test_a_threshold_queues_one_job_once(store: Store) -> None:
    store.teach(2)
    assert store.queue.enqueue_if_due(SETTINGS) is None
    store.teach(1, start=2)
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda _: store.queue.enqueue_if_due(SETTINGS), range(16)))
    queued = [job for job in jobs if job is not None]
    assert len(queued) == 1
    assert len(store.queue.list()) == 1
    assert queued[0].examples == 3
    assert store.feedback.state().count == 0
    spec = JobSpec.read(queued[0].folder)
    assert [lesson.target for lesson in spec.lessons] == ["a 0", "a 1", "a 2"]
    assert spec.fingerprint == queued[0].base_fingerprint != ""


def test_further_feedback_does_not_start_a_second_job(store: Store) -> None:
    store.teach(3)
    first = store.queue.enqueue_if_due(SETTINGS)
    store.teach(1, start=3)
    assert store.queue.enqueue_if_due(SETTINGS) is None
    assert store.queue.current() == first


def test_now_takes_whatever_there_is_and_refuses_nothing(store: Store) -> None:
    with pytest.raises(TrainingError, match="nothing to train on"):
        store.queue.enqueue(SETTINGS, reason="now")
    store.teach(1)
    job = store.queue.enqueue(SETTINGS, reason="now")
    assert job.examples == 1
    # What is on its way already is the answer to asking again.
    assert store.queue.enqueue(SETTINGS, reason="now").id == job.id


def test_a_condemned_answer_is_never_a_target(store: Store) -> None:
    store.feedback.add((user("q"),), "wrong", "critical", None, "no", None, "m")
    store.feedback.add((user("p"),), "right", "good", None, None, None, "m")
    job = store.queue.enqueue(SETTINGS, reason="now")
    condemned, praised = store.queue.lessons(job.id)
    assert (condemned.target, condemned.rejected) == (None, "wrong")
    assert (praised.target, praised.rejected) == ("right", None)
    store.feedback.add((user("e"),), " ", "good", None, None, "c", "m")
    empty = store.feedback.edit(3, correction="").feedback
    assert empty.status == "waiting"
    with pytest.raises(TrainingError, match="teaches nothing"):
        lesson_from(empty)


def test_a_finished_job_leaves_its_lessons_trained(store: Store) -> None:
    store.teach(3)
    store.queue.enqueue_if_due(SETTINGS)
    job = store.queue.claim()
    assert job is not None and job.status == "running" and job.attempts == 1
    assert store.queue.claim() is None
    done = store.queue.finish(job.id, "lora_adapter_x", complete([1, 2], [3]))
    assert (done.status, done.learned, done.adapter) == ("done", 2, "lora_adapter_x")
    trained = {row.id: row.learned for row in store.feedback.list("trained")}
    assert trained == {1: True, 2: True, 3: False}


def test_a_failed_job_gives_its_lessons_back_and_is_tried_again_ever_more_rarely(
    store: Store,
) -> None:
    store.teach(3)
    given = 3
    for further in (1, 2, 4):
        job = store.queue.enqueue_if_due(SETTINGS)
        assert job is not None
        store.queue.claim()
        store.queue.give_up(job.id, "failed", "out of memory")
        assert store.feedback.state().count == given
        for number in range(further):
            assert store.queue.enqueue_if_due(SETTINGS) is None, (further, number)
            store.teach(1, start=given)
            given += 1
    last = store.queue.enqueue_if_due(SETTINGS)
    assert last is not None and last.examples == given
    store.queue.give_up(last.id, "failed", "again")
    assert store.queue.enqueue_if_due(SETTINGS) is None
    with store.database.write() as session:
        session.execute(
            update(JobRow).values(finished_at=store.queue.get(last.id).created_at - timedelta(1))
        )
    assert store.queue.enqueue_if_due(SETTINGS) is not None


def test_a_cancelled_job_is_not_started_again_by_the_next_feedback(store: Store) -> None:
    store.teach(3)
    job = store.queue.enqueue_if_due(SETTINGS)
    assert job is not None
    store.queue.give_up(job.id, "cancelled", "by the user")
    store.teach(2, start=3)
    assert store.queue.enqueue_if_due(SETTINGS) is None
    store.teach(1, start=5)
    again = store.queue.enqueue_if_due(SETTINGS)
    assert again is not None and again.examples == 6


def test_an_interrupted_job_keeps_its_lessons_and_goes_first(store: Store) -> None:
    store.teach(1)
    job = store.queue.enqueue(SETTINGS, reason="now")
    store.queue.claim()
    store.queue.interrupt(job.id, "the chat ended")
    assert store.queue.resumable() == store.queue.get(job.id)
    assert store.feedback.state().count == 0
    store.teach(1, start=1)
    newer = store.queue.enqueue(SETTINGS, reason="now")
    claimed = store.queue.claim()
    assert claimed is not None and claimed.id == job.id < newer.id
    assert claimed.attempts == 2


def test_lessons_deleted_or_corrected_anew_leave_a_queued_job(store: Store) -> None:
    store.teach(3)
    job = store.queue.enqueue(SETTINGS, reason="now")
    store.feedback.delete(1)
    store.feedback.edit(2, correction="better")
    assert [lesson.feedback_id for lesson in store.queue.lessons(job.id)] == [3]
    assert [row.id for row in store.feedback.buffer()] == [2]


def test_a_rebuild_holds_every_lesson_that_stands(store: Store) -> None:
    with pytest.raises(TrainingError, match="no lesson"):
        store.queue.rebuild(SETTINGS)
    store.teach(3)
    job = store.queue.enqueue(SETTINGS, reason="now")
    with pytest.raises(TrainingError, match="queued, and holds lessons"):
        store.queue.rebuild(SETTINGS)
    store.queue.claim()
    store.queue.finish(job.id, "one", complete([1, 2, 3], []))
    assert not store.feedback.in_weights([store.feedback.get(1)][:0])
    gone = store.feedback.delete(1)
    assert store.feedback.in_weights([gone])
    store.teach(1, start=3)
    assert not store.feedback.in_weights(store.feedback.buffer())
    again = store.queue.rebuild(SETTINGS)
    spec = JobSpec.read(again.folder)
    assert [lesson.target for lesson in spec.lessons] == ["a 1", "a 2", "a 3"]
    assert spec.training.mode == "fresh" and again.reason == "rebuild"
    # What was trained and fails to be trained anew waits in the buffer, not nowhere.
    store.queue.claim()
    store.queue.give_up(again.id, "failed", "no memory")
    assert store.feedback.state().count == 3


def test_lessons_of_a_refused_adapter_are_set_aside(store: Store) -> None:
    store.teach(3)
    job = store.queue.enqueue(SETTINGS, reason="now")
    store.queue.claim()
    store.queue.finish(job.id, "one", complete([1, 2, 3], []), set_aside=True)
    assert store.feedback.lessons_trained() == []
    assert [row.status for row in store.feedback.list()] == ["dropped"] * 3
    assert store.queue.enqueue_if_due(SETTINGS) is None


def test_what_was_changed_while_a_refused_job_ran_waits_for_the_next(store: Store) -> None:
    store.teach(4)
    job = store.queue.enqueue(SETTINGS, reason="now")
    store.queue.claim()
    store.feedback.edit(2, correction="better")
    store.feedback.delete(3)
    store.queue.finish(job.id, "one", complete([1, 2, 3, 4], []), set_aside=True)

    def found() -> dict[int, tuple[str, str | None]]:
        rows = [store.feedback.get(number) for number in range(1, 5)]
        return {row.id: (row.status, row.target) for row in rows}

    rest = {1: ("dropped", "a 0"), 4: ("dropped", "a 3")}
    assert found() == rest | {2: ("buffered", "better"), 3: ("deleted", "a 2")}
    # Where the change is taken back, what the refused adapter was taught is no trained lesson.
    store.feedback.undo()
    store.feedback.undo()
    assert found() == rest | {2: ("buffered", "a 1"), 3: ("buffered", "a 2")}
    assert store.feedback.lessons_trained() == []
