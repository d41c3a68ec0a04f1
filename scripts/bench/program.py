"""The program without its processes: corrections in, a job as it makes them, an adapter out.

Feedback, queue, job and library are the program's own, in a folder that goes away; only the worker
runs in this process, and nobody waits for a threshold.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shammah.adapters.library import Adapter, AdapterLibrary
from shammah.assistant.workspace import Workspace
from shammah.errors import TrainingError
from shammah.feedback.records import Draft
from shammah.learning.job import Complete, Event, read_result
from shammah.learning.preparation import clear, prepare
from shammah.learning.publication import publish
from shammah.learning.session import run_job
from shammah.messages import user
from shammah.paths import Paths
from shammah.settings import Settings


@dataclass(slots=True)
class Signals:
    """What a worker's signals would say: nothing."""

    stop: bool = False
    setting_up: bool = False


@dataclass(frozen=True, slots=True)
class Correction:
    """`said` was the answer to a question, `answer` should have been."""

    ask: str
    said: str | None
    answer: str


class Program:
    """One user's data folder, and the settings that he trains with."""

    def __init__(self, settings: Settings, threads: int) -> None:
        self._settings = settings
        self._threads = threads
        self._home = tempfile.TemporaryDirectory()
        home = Path(self._home.name)
        self._workspace = Workspace(settings, Paths(home, home))

    def learn(self, corrections: Sequence[Correction]) -> tuple[Complete, float]:
        """Give these corrections and train; the result, and the seconds that the job took from
        loading the model to the adapter, checks included.

        Raises:
            TrainingError: nothing could be trained.
        """
        work = self._workspace
        work.feedback.add_all(
            [
                Draft((user(item.ask),), item.said, "critical", None, None, item.answer, "bench")
                for item in corrections
            ]
        )
        work.queue.enqueue(self._settings, reason="bench")
        job = work.queue.claim()
        assert job is not None
        spec = prepare(job, work.queue, work.feedback, work.library)
        assert spec is not None
        events: list[Event] = []
        began = time.monotonic()
        failed = run_job(job.folder, threads=self._threads, signals=Signals(), tell=events.append)
        seconds = time.monotonic() - began
        result = read_result(job.folder)
        if failed is not None or result is None:
            raise TrainingError(f"The job ended without an adapter: {failed}")
        activate = self._settings.adapters.activate
        refused = activate == "gate" and result.gate is not None and not result.gate.passed
        adapter = publish(
            job, spec, result, work.library, activate=activate != "never" and not refused
        )
        work.queue.finish(job.id, adapter.name, result, set_aside=refused)
        clear(job.folder)
        return result, seconds

    @property
    def library(self) -> AdapterLibrary:
        return self._workspace.library

    def active(self, fingerprint: str) -> Adapter | None:
        """The adapter that the user's next question is answered with."""
        name = self._workspace.library.active(fingerprint)
        return self._workspace.library.get(name) if name else None

    def close(self) -> None:
        self._workspace.close()
        self._home.cleanup()
