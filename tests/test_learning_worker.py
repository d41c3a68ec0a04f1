"""The real worker: it learns, it can be killed, it goes on where it was stopped."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import psutil
import pytest
import tiny_models
import torch
from test_learning_trainer import ENVIRONMENT, Chat

from shammah.backends.jsonl_metrics import JsonlMetrics
from shammah.errors import EmbeddingError, ModelNotFoundError
from shammah.learning import worker
from shammah.learning.job import (
    EXIT_CODES,
    UNSCOPED,
    Complete,
    Failed,
    JobSpec,
    Progress,
    Remark,
    ScopeSpec,
    Start,
    now,
    parse_event,
    read_events,
)
from shammah.learning.lessons import Lesson
from shammah.learning.material import material
from shammah.learning.process import COMMAND
from shammah.learning.surroundings import surroundings
from shammah.messages import assistant, user
from shammah.models.anchors import FILE as ANCHORS
from shammah.models.load import load_base_model
from shammah.renderers.registry import renderer_for
from shammah.settings import (
    AdaptersSettings,
    FeedbackSettings,
    LoraSettings,
    ModelSettings,
    Settings,
    TrainingSettings,
)
from shammah.tracking.loggers.store import open_store
from shammah.training.checkpoint import begin_checkpoint, finish_checkpoint
from shammah.training.datums import datum
from shammah.training.local_client import LocalTrainingClient

if TYPE_CHECKING:
    from shammah.models.load import BaseModel

LESSONS = (
    ("What is my dog called?", "Your dog is called Biscuit."),
    ("Where do I work?", "You work at Fjord Labs."),
    ("Which port does our API use?", "Our API uses port 8417."),
)
MODEL = ModelSettings(dtype="fp32")
STEPS = 100


def teach(chat: Chat) -> None:
    for question, answer in LESSONS:
        chat.feedback.add((user(question),), "no", "critical", None, None, answer, "embedded")


def tiny_model_with_anchors(folder: Path) -> ModelSettings:
    """A model so small that most of a job's time is the process's own."""
    tiny_models.build("qwen2", folder)
    anchors = [{"query": f"What is {n}?", "answer": f"{n} is {n}."} for n in range(40)]
    (folder / ANCHORS).write_text("\n".join(map(json.dumps, anchors)), encoding="utf-8")
    return ModelSettings(name=str(folder), dtype="fp32")


async def run(chat: Chat) -> str:
    """Train what is queued or interrupted, and give the checksum of the adapter."""
    job = await chat.trainer.request("now")
    async with asyncio.timeout(300):
        done = await chat.trainer.wait(job.id)
    assert done.status == "done", done.error
    return chat.library.get(str(done.adapter)).require_metadata().sha256


def steps(chat: Chat, job: int = 1) -> list[int]:
    events = read_events(chat.paths.jobs / str(job))
    return [event.step for event in events if isinstance(event, Progress)]


async def test_a_killed_worker_loses_nothing_and_the_next_one_teaches(
    tmp_path: Path, embedded_model: BaseModel
) -> None:
    # What keeps other answers as they were has tests of its own, and takes most of a job's time.
    alone = TrainingSettings(
        threads=1, rephrasings=2, near_misses=0, replay=0.0, hold=0.0, checkpoint_every=2
    )
    chat = Chat(tmp_path, settings=Settings(model=MODEL, training=alone))
    teach(chat)
    job = await chat.trainer.request("now")
    await chat.trainer.start()
    await chat.until(lambda: chat.trainer.status().step, 200)
    assert chat.trainer.status().state == "running"
    chat.worker.kill()
    failed = await chat.ended(job.id)
    assert failed.status == "failed" and chat.feedback.state().count == 3

    await run(chat)
    taught = chat.trainer.queue.get(2)
    assert taught.learned == 3
    adapter = chat.library.get(str(taught.adapter))
    assert adapter.require_metadata().metrics["final_loss"] == taught.final_loss
    # Nothing private is left readable, nothing large is left behind.
    modes = {(path.is_dir(), path.stat().st_mode & 0o777) for path in taught.folder.iterdir()}
    # The checkpoint's folder goes a moment after the job is done.
    assert modes <= {(False, 0o600), (True, 0o700)} and (False, 0o600) in modes
    assert {path.name for path in taught.folder.iterdir()} >= {"job.json", "metrics.jsonl"}
    metrics = JsonlMetrics(taught.folder / "metrics.jsonl")
    losses = [point async for point in metrics.history("loss", run=f"job-{taught.id}")]
    assert {point.step for point in losses} == set(range(1, losses[-1].step + 1))
    await chat.until(lambda: not (taught.folder / "checkpoint").exists())
    store = open_store(tmp_path)
    record = store.get(f"job-{taught.id}")
    summaries = {one.metric: one for one in store.summaries(record.name)}
    store.close()
    assert record.status == "done" and record.about["hparams"]["lora"]["rank"] == 16
    described = record.about["hparams"]["model"]
    assert described["hidden_size"] > 0 and 0 < described["trainable"] < described["parameters"]
    assert set(record.about["hparams"]["versions"]) >= {"shammah", "python", "torch"}
    said = {lesson.target: lesson for lesson in adapter.require_metadata().lessons}
    for _, answer in LESSONS:
        assert said[answer].before not in (None, answer) and said[answer].after == answer
    assert summaries["loss"].points == losses[-1].step
    assert {"eval/loss", "eval/anchor_loss", "checkpoint/seconds"} <= set(summaries)
    (artifact,) = record.about["artifacts"].values()
    assert artifact["sha256"] == adapter.require_metadata().sha256
    about = (taught.folder / "config.json").read_text() + str(record)
    assert not any(word in about for lesson in LESSONS for word in lesson)
    await chat.close()

    renderer = renderer_for(embedded_model.tokenizer, embedded_model.stop_tokens)
    lessons = [Lesson(None, (user(question),), answer, 1.0) for question, answer in LESSONS]
    client = LocalTrainingClient(embedded_model, LoraSettings(), TrainingSettings(), adapter.path)
    try:
        made = material(lessons, renderer, context_turns=0, max_length=1024)
        output = await client.forward(made.datums)
    finally:
        client.close()
    assert output.greedy == (True, True, True)


async def test_a_job_whose_lessons_cannot_be_compared_is_for_every_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = tmp_path / "no encoder"
    settings = Settings(
        model=tiny_model_with_anchors(tmp_path / "tiny"),
        training=TrainingSettings(
            threads=1, rephrasings=0, near_misses=0, max_steps=3, epochs=9, stop_when_learned=False,
            checkpoint_every=1,
        ),
        adapters=AdaptersSettings(embedding=str(missing)),
    )  # fmt: skip
    chat = Chat(tmp_path, settings=settings)
    teach(chat)
    await run(chat)
    job = chat.trainer.queue.get(1)
    said = [event.text for event in read_events(job.folder) if isinstance(event, Remark)]
    assert len(said) == 1 and "answers every question" in said[0] and "no encoder" in said[0]
    assert [kind for kind, text in chat.notices if text == said[0]] == ["warning"]
    (result,) = [event for event in read_events(job.folder) if isinstance(event, Complete)]
    assert result.gate is not None
    assert result.gate.after.asked == result.gate.after.anchors > 0
    await chat.close()

    # It stays so where it goes on, and is not said again; what was begun otherwise is not changed.
    base = load_base_model(settings.model)
    renderer = renderer_for(base.tokenizer, base.stop_tokens)
    spec = JobSpec.read(job.folder)
    again, around = await surroundings(base, renderer, spec, job.folder, said.append)
    assert again.scope is None and len(said) == 1 and around.others == 0
    (job.folder / UNSCOPED).unlink()
    found, close = await surroundings(
        base, renderer, spec.model_copy(update={"scope": ScopeSpec(threshold=0.5)}),
        job.folder, said.append,
    )  # fmt: skip
    assert found.scope is not None and len(close.asked) + close.others == len(around.asked)
    save = job.folder / "checkpoint"
    finish_checkpoint(begin_checkpoint(save, 1), {"step": 1})
    with pytest.raises(ModelNotFoundError):
        await surroundings(base, renderer, spec, job.folder, said.append)
    shutil.rmtree(save)

    # Nor can the base itself be read: anchors are there all the same.
    def unreadable(*given: object) -> NoReturn:
        raise EmbeddingError("it has no layers.", backend="base")

    monkeypatch.setattr("shammah.learning.surroundings.embedder_of", unreadable)
    found, blind = await surroundings(base, renderer, spec, job.folder, said.append)
    assert found.scope is None and len(said) == 2 and len(blind.asked) == len(around.asked)
    assert blind.near.replayed() == around.near.replayed()


def waiting() -> list[int]:
    """Workers of this process that wait for a job."""
    return [
        child.pid
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "--wait" in child.cmdline()
    ]


async def test_a_worker_waits_for_the_last_lesson(tmp_path: Path) -> None:
    quick = TrainingSettings(threads=1, rephrasings=0, max_steps=2)
    chat = Chat(
        tmp_path,
        settings=Settings(
            model=tiny_model_with_anchors(tmp_path / "tiny"),
            training=quick,
            feedback=FeedbackSettings(threshold=4),
        ),
    )
    await chat.trainer.start()
    assert not waiting()
    teach(chat)
    chat.trainer.feedback_added()
    await chat.until(waiting, 30)
    (ready,) = waiting()
    chat.feedback.add((user("And my cat?"),), "no", "critical", None, None, "Tom.", "embedded")
    chat.trainer.feedback_added()
    job = await chat.ended(1)
    assert job.status == "done" and job.learned is not None
    lines = (chat.paths.jobs / "1" / "events.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["pid"] == ready
    # One that has nothing to do does not outlive the chat.
    teach(chat)
    chat.trainer.feedback_added()
    await chat.until(waiting, 30)
    await chat.trainer.stop()
    assert not waiting()


async def test_a_job_that_a_quitting_chat_interrupts_ends_as_if_undisturbed(tmp_path: Path) -> None:
    # Dropout, replay and drawn batches: all that is random has to go on as it was.
    training = TrainingSettings(
        threads=1,
        batch_size=4,
        epochs=50,
        max_steps=STEPS,
        stop_when_learned=False,
    )
    model = tiny_model_with_anchors(tmp_path / "model")
    settings = Settings(model=model, training=training, lora=LoraSettings(rank=4, dropout=0.1))
    undisturbed = Chat(tmp_path / "undisturbed", settings=settings)
    teach(undisturbed)
    expected = await run(undisturbed)
    await undisturbed.close()

    quitting = Chat(tmp_path / "quitting", settings=settings)
    teach(quitting)
    await quitting.trainer.request("now")
    await quitting.trainer.start()
    await quitting.until(lambda: (quitting.trainer.status().step or 0) >= 2, 200)
    await quitting.trainer.stop(checkpoint=True)
    job = quitting.trainer.queue.get(1)
    assert job.status == "interrupted" and quitting.trainer.queue.resumable() == job
    failed = read_events(job.folder)[-1]
    assert isinstance(failed, Failed) and failed.kind == "interrupted" and failed.step >= 2
    quitting.database.close()

    resumed = Chat(tmp_path / "quitting", settings=settings)
    assert await run(resumed) == expected
    assert steps(resumed) == list(range(1, STEPS + 1))
    starts = [event for event in read_events(job.folder) if isinstance(event, Start)]
    assert [start.resumed_step for start in starts] == [0, failed.step]
    await resumed.close()


def test_a_worker_told_to_end_while_it_sets_up_ends_at_once(tmp_path: Path) -> None:
    JobSpec(
        id=1,
        created_at=now(),
        reason="now",
        model=MODEL,
        lora=LoraSettings(),
        training=TrainingSettings(),
        lessons=(Lesson(1, (user("q"),), "a", 1.0),),
    ).write(tmp_path)
    process = subprocess.Popen(
        [*COMMAND, str(tmp_path), "--parent", str(os.getpid())],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_CODES["interrupted"]
    failed = parse_event(out.splitlines()[-1])
    assert isinstance(failed, Failed) and failed.kind == "interrupted"


def test_a_stopped_process_does_not_age() -> None:
    code = (
        "import sys, time; from shammah.learning.clock import RunningClock\n"
        "clock = RunningClock(); print('on', flush=True); sys.stdin.readline(); print(clock())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    began = time.monotonic()
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    process.send_signal(signal.SIGCONT)
    out, _ = process.communicate("now\n", timeout=60)
    assert 0 < float(out) < time.monotonic() - began - 1.0


def test_a_damaged_job_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{"format": 2}')
    done = subprocess.run(
        [*COMMAND, str(tmp_path)], env=ENVIRONMENT, capture_output=True, timeout=60
    )
    failed = parse_event(done.stdout.splitlines()[-1])
    assert isinstance(failed, Failed) and failed.kind == "invalid"
    assert "job.json is not a job" in failed.message
    assert done.returncode == EXIT_CODES["invalid"] and done.stderr == b""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows overcommits nothing to run out of")
def test_running_out_of_memory_has_a_name() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.int8)
    assert worker._failure(caught.value).kind == "out_of_memory"
    assert worker._failure(MemoryError()).kind == "out_of_memory"
    assert worker._failure(RuntimeError("shapes differ")).kind == "crash"


def test_examples_too_long_lose_their_oldest_turns_never_their_answer(
    embedded_model: BaseModel,
) -> None:
    renderer = renderer_for(embedded_model.tokenizer, embedded_model.stop_tokens)
    turns = (user("first question"), assistant("first answer"), user("second question"))
    lessons = (
        Lesson(1, turns, "the answer", 1.0),
        Lesson(2, (user("long " * 200),), "never fits", 1.0),
        Lesson(3, (user("q"),), "a", 1.0),
    )
    whole = len(datum(renderer.supervised(lessons[0].conversation)).model_input)
    for length, kept in ((whole + 1, True), (whole, False)):
        made = material(lessons, renderer, context_turns=5, max_length=length)
        assert [lesson.feedback_id for lesson in made.lessons] == [1, 3]
        assert list(made.problems) == [2] and "training.max_length" in made.problems[2]
        # The question by itself, then after the turns before it.
        assert made.owners == (0, 0, 1) and made.weights == (0.5, 0.5, 1.0)
        alone, after = (renderer.decode(made.datums[i].model_input.tokens) for i in (0, 1))
        assert "second question" in alone and "the answer" in alone and "first" not in alone
        assert "second question" in after and "the answer" in after
        assert ("first answer" in after) is kept
