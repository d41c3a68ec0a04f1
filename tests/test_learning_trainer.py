"""The trainer around a worker: whatever a worker does, nothing is lost and the chat goes on.

Workers here are real processes that misbehave on request; `test_learning_worker` has the real one.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from shammah.adapters.library import Adapter, AdapterLibrary
from shammah.errors import TrainingError
from shammah.feedback.store import FeedbackStore
from shammah.learning.priority import somebody_streams, streaming
from shammah.learning.process import COMMAND
from shammah.learning.queue import Job
from shammah.learning.supervisor import Trainer
from shammah.messages import user
from shammah.paths import Paths
from shammah.settings import FeedbackSettings, Settings, TrainingSettings
from shammah.storage.database import Database
from shammah.tracking import telemetry

STAND_IN = Path(__file__).parent / "stand_in_worker.py"
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


class Chat:
    """A chat's trainer with all it needs, and what it told its user."""

    def __init__(self, folder: Path, mode: str | None = None, settings: Settings | None = None):
        self.settings = settings or Settings(feedback=FeedbackSettings(threshold=3))
        self.paths = Paths(folder, folder).ensure()
        self.database = Database(self.paths.database)
        self.feedback = FeedbackStore(self.database, self.settings.feedback)
        self.library = AdapterLibrary(self.paths.adapters, self.database)
        self.notices: list[tuple[str, str]] = []
        self.published: list[Adapter] = []
        self.trainer = Trainer(
            self.database,
            self.paths,
            lambda: self.settings,
            self.feedback,
            self.library,
            on_notice=lambda kind, text: self.notices.append((kind, text)),
            on_published=self._published,
            command=COMMAND if mode is None else (sys.executable, str(STAND_IN), mode),
        )

    async def _published(self, adapter: Adapter) -> None:
        self.published.append(adapter)

    def teach(self, count: int = 3, start: int = 0) -> None:
        for number in range(start, start + count):
            self.feedback.add(
                (user(f"question {number}"),), "wrong", "critical", None, None, f"a {number}", "m"
            )
        self.trainer.feedback_added()

    async def until(self, reached: Callable[[], object], seconds: float = 60.0) -> None:
        async with asyncio.timeout(seconds):
            while not reached():  # noqa: ASYNC110 (much of what is waited for is on disk)
                await asyncio.sleep(0.02)

    async def ended(self, job_id: int = 1) -> Job:
        await self.until(lambda: len(self.trainer.queue.list()) >= job_id)
        async with asyncio.timeout(90):
            return await self.trainer.wait(job_id)

    @property
    def worker(self) -> psutil.Process:
        run = self.trainer._run
        assert run is not None
        return psutil.Process(run._worker.pid)

    async def close(self) -> None:
        await self.trainer.stop(checkpoint=False)
        self.database.close()


@pytest.fixture
async def chats(tmp_path: Path) -> AsyncIterator[Callable[..., Chat]]:
    made: list[Chat] = []

    def make(mode: str | None = None, settings: Settings | None = None) -> Chat:
        made.append(Chat(tmp_path, mode, settings))
        return made[-1]

    yield make
    for chat in made:
        await chat.close()


async def test_the_threshold_trains_publishes_activates_and_tells(
    chats: Callable[..., Chat],
) -> None:
    chat = chats("learn:0.2")
    await chat.trainer.start()
    states = set()
    chat.trainer._on_change = lambda: states.add(chat.trainer.status().state)
    told: list[tuple[str, dict[str, object]]] = []
    with telemetry.attached(
        "test", telemetry.NAMES, lambda name, _, about: told.append((name, dict(about)))
    ):
        chat.teach()
        job = await chat.ended()
    assert (job.status, job.learned) == ("done", 3)
    events = [name for name, _ in told]
    assert events[:4] == [*["feedback.recorded"] * 3, "training.step"]
    assert ("training.complete", {"job": job.id}) in told
    assert events[-2:] == ["adapter.published", "adapter.activated"]
    assert told[-1][1]["adapter"] == job.adapter
    (adapter,) = chat.library.list()
    assert job.adapter == adapter.name == chat.library.active(job.base_fingerprint)
    metadata = adapter.require_metadata()
    assert [lesson.query for lesson in metadata.lessons] == [f"question {n}" for n in range(3)]
    assert all(lesson.learned for lesson in metadata.lessons)
    await chat.until(lambda: chat.trainer.status().state == "idle")
    assert {"starting", "running", "publishing", "idle"} <= states
    assert [a.name for a in chat.published] == [adapter.name]
    assert "✓ Background training completed!" in chat.notices[-1][1]
    assert [row.learned for row in chat.feedback.list("trained")] == [True] * 3

    # The next job starts from it and replays what it taught.
    chat.teach(3, start=3)
    second = await chat.ended(2)
    assert second.status == "done"
    newest = chat.library.get(str(second.adapter)).require_metadata()
    assert newest.parent == adapter.name
    assert newest.metrics["replayed"] == 3


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("rubbish", "rubbish"),
        ("endless line", "rubbish"),
        ("crash", "something is broken"),
        ("out of memory", "micro_batch_tokens"),
        ("lie", "ended with code 0"),
    ],
)
async def test_a_worker_that_fails_loses_nothing(
    chats: Callable[..., Chat], mode: str, said: str
) -> None:
    chat = chats(mode)
    chat.teach()
    await chat.trainer.start()
    job = await chat.ended()
    assert job.status == "failed"
    assert chat.feedback.state().count == 3
    await chat.until(lambda: chat.trainer.status().state == "idle")
    kind, text = chat.notices[-1]
    assert kind == "error" and said in text and "/train now" in text
    # It is not tried again by itself, but by the next feedback.
    chat.trainer.feedback_added()
    await asyncio.sleep(0.1)
    assert len(chat.trainer.queue.list()) == 1
    chat.trainer._command = (sys.executable, str(STAND_IN), "learn")
    chat.teach(1, start=3)
    await chat.until(lambda: len(chat.trainer.queue.list()) == 2)
    assert (await chat.ended(2)).status == "done"


async def test_a_killed_worker_gives_its_lessons_back(chats: Callable[..., Chat]) -> None:
    chat = chats("hang")
    await chat.trainer.start()
    chat.teach()
    await chat.until(lambda: chat.trainer.busy)
    chat.worker.kill()
    assert (await chat.ended()).status == "failed"
    assert chat.feedback.state().count == 3
    await chat.until(lambda: chat.notices[-1][0] == "error")
    assert "SIGKILL" in chat.notices[-1][1] and "memory" in chat.notices[-1][1]


async def test_a_timeout_does_not_count_while_an_answer_streams(
    chats: Callable[..., Chat],
) -> None:
    chat = chats("hang", Settings(training=TrainingSettings(timeout_minutes=0.6 / 60)))
    chat.teach()
    await chat.trainer.start()
    await chat.trainer.request()
    await chat.until(lambda: chat.trainer.busy)
    with chat.trainer.answering():
        await chat.until(lambda: chat.worker.status() == psutil.STATUS_STOPPED)
        await asyncio.sleep(0.9)
        assert chat.trainer.busy
    job = await chat.ended()
    assert job.status == "failed" and "not done after" in str(job.error)


async def test_the_worker_stands_still_while_an_answer_streams(chats: Callable[..., Chat]) -> None:
    chat = chats("hang")
    await chat.trainer.start()
    chat.teach()
    await chat.until(lambda: chat.trainer._run is not None and chat.trainer._run._alive)
    worker = chat.worker
    with pytest.raises(ZeroDivisionError), chat.trainer.answering():
        with chat.trainer.answering():
            await chat.until(lambda: worker.status() == psutil.STATUS_STOPPED, 1)
        assert worker.status() == psutil.STATUS_STOPPED
        assert chat.trainer.status().state == "paused"
        raise ZeroDivisionError
    await chat.until(lambda: worker.status() != psutil.STATUS_STOPPED, 1)
    # Another process streams: seen at the next look.
    with streaming(chat.paths.data):
        await chat.until(lambda: worker.status() == psutil.STATUS_STOPPED, 2)
    await chat.until(lambda: worker.status() != psutil.STATUS_STOPPED, 2)
    # Cancelling a stopped worker works, and does not wait for the answer's end.
    with chat.trainer.answering():
        job = await chat.trainer.cancel()
        assert job.status == "cancelled" and not worker.is_running()
    assert chat.feedback.state().count == 3


def test_the_sign_of_a_dead_stream_counts_no_more(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from shammah.learning.priority import streaming\n"
        "with streaming(Path(sys.argv[1])): print('on', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None and other.stdout.readline() == "on\n"
    assert somebody_streams(tmp_path)
    other.kill()
    other.wait()
    assert not somebody_streams(tmp_path)
    assert list((tmp_path / "streaming").iterdir()) == []
    with streaming(tmp_path):
        assert somebody_streams(tmp_path)
    assert not somebody_streams(tmp_path)


async def test_of_two_chats_one_trains_and_both_see_it(
    chats: Callable[..., Chat], tmp_path: Path
) -> None:
    first, second = chats("learn:1"), chats("learn:1")
    await first.trainer.start()
    await second.trainer.start()
    first.teach()
    second.trainer.feedback_added()
    await first.until(
        lambda: first.trainer.status().state == second.trainer.status().state == "running"
    )
    assert first.trainer.busy != second.trainer.busy
    assert {first.trainer.status().elsewhere, second.trainer.status().elsewhere} == {True, False}
    assert second.trainer.status().steps == first.trainer.status().steps == 20
    jobs = await asyncio.gather(first.ended(), second.ended())
    assert [job.status for job in jobs] == ["done", "done"]
    assert len((tmp_path / "runs").read_text().splitlines()) == 1
    assert len(first.library.list()) == 1


async def test_a_job_that_runs_elsewhere_can_be_cancelled(chats: Callable[..., Chat]) -> None:
    runner, other = chats("hang"), chats("hang")
    await runner.trainer.start()
    runner.teach()
    await runner.until(lambda: runner.trainer.busy)
    job = await other.trainer.cancel()
    assert job.status == "cancelled"
    assert other.feedback.state().count == 3
    with pytest.raises(TrainingError, match="no training job"):
        await other.trainer.cancel()


async def test_a_shell_waits_for_the_job_that_is_queued_or_runs_it_itself(
    chats: Callable[..., Chat],
) -> None:
    queued = chats("learn")
    queued.teach(1)
    job = await queued.trainer.request("now")
    shell = chats("learn")
    assert (await shell.trainer.request("now", join=True)).id == job.id
    assert (await shell.ended(job.id)).status == "done"
    with pytest.raises(TrainingError, match="nothing to train on"):
        await shell.trainer.request("now", join=True)


async def test_what_finished_but_was_not_published_is_published_at_the_next_start(
    chats: Callable[..., Chat],
) -> None:
    chat = chats("learn")
    chat.teach()
    job = await chat.trainer.request()
    chat.trainer.queue.claim()
    # The worker of a chat that is gone by now.
    from shammah.learning.preparation import prepare

    prepare(job, chat.trainer.queue, chat.feedback, chat.library)
    await asyncio.to_thread(
        subprocess.run,
        [sys.executable, STAND_IN, "learn", job.folder],
        env=ENVIRONMENT,
        check=True,
        capture_output=True,
    )
    await chat.trainer.start()
    assert (await chat.ended()).status == "done"
    assert len(chat.library.list()) == 1
    assert len((chat.paths.data / "runs").read_text().splitlines()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_a_chat_killed_while_its_worker_stands_still_leaves_no_process(tmp_path: Path) -> None:
    code = f"""
import asyncio, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_learning_trainer import Chat

async def main():
    chat = Chat(Path({str(tmp_path)!r}))
    await chat.trainer.start()
    chat.teach()
    await chat.until(lambda: chat.trainer._run is not None and chat.trainer._run._alive)
    with chat.trainer.answering():
        await chat.until(lambda: chat.worker.status() == "stopped")
        print(chat.worker.pid, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""
    chat = subprocess.Popen(
        [sys.executable, "-c", code], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    assert chat.stdout is not None
    pid = int(chat.stdout.readline())
    os.kill(chat.pid, signal.SIGKILL)
    chat.wait()
    deadline = time.monotonic() + 30
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid)

    # The next chat finds the job, says so, and goes on with it when asked.
    async def next_chat() -> None:
        chat = Chat(tmp_path, "learn")
        await chat.trainer.start()
        await chat.until(lambda: chat.trainer.queue.resumable() is not None)
        await chat.until(lambda: chat.notices)
        assert "was interrupted" in chat.notices[0][1]
        job = await chat.trainer.request("now")
        assert (await chat.ended(job.id)).status == "done"
        await chat.close()

    asyncio.run(next_chat())
