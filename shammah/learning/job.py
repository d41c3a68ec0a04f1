"""What a training job is made of: the specification it is given and the events it answers with.

The supervisor writes `job.json`; the worker reads it, prints one JSON object a line and appends
the same lines to `events.jsonl`. Both sides validate with the types here. Knows nothing about the
database, processes or tensors.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from shammah.errors import TrainingError
from shammah.files import write_atomic
from shammah.learning.gate import Figures, GateReport
from shammah.learning.lessons import Lesson
from shammah.learning.letter_order import LetterOrder
from shammah.settings import LoraSettings, ModelSettings, TrackingSettings, TrainingSettings

FORMAT: Literal[1] = 1
SPEC = "job.json"
EVENTS = "events.jsonl"
MEASURED = ("epoch", "loss", "learning_rate", "grad_norm", "learned", "tokens_per_second")
"""What is logged of each step."""
RESULT = "result.json"
STDERR = "stderr.log"
WEIGHTS = "adapter.safetensors"
PARENT = "parent.safetensors"
CHECKPOINT = "checkpoint"
TRACE = "trace.json"
BEFORE = "before.json"
UNSCOPED = "unscoped.txt"
"""Why the job goes on without its scope, where it does."""

FailureKind = Literal[
    "out_of_memory", "divergence", "invalid", "interrupted", "crash", "killed", "timeout", "rubbish"
]
"""The first five are told by the worker itself, the others are what its supervisor observes."""

EXIT_CODES: dict[str, int] = {
    "invalid": 64,
    "divergence": 65,
    "crash": 70,
    "out_of_memory": 71,
    "interrupted": 75,
}
"""Exit code of the worker for each failure it can tell of; 0 is success."""


class Record(BaseModel):
    """A JSON object that crosses the border between supervisor and worker."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Round(Record):
    """So many ranks of an adapter, and the lessons (by feedback id) that were taught in them."""

    rank: int
    lessons: tuple[int | None, ...] = ()


class ParentSpec(Record):
    """The adapter that training starts from: its name in the library, a copy of its weights inside
    the job folder (the library may rename or delete the original), its alpha / r, and the rounds
    that it is made of."""

    name: str
    weights: str = PARENT
    scaling: float
    rounds: tuple[Round, ...] = ()


class ScopeSpec(Record):
    """The chat asks the adapter only what is so near to its lessons, as a cosine between what
    `embedding` makes of questions; the base answers everything else (`adapters.scope`)."""

    threshold: float
    embedding: str = "base"


class JobSpec(Record):
    """Everything a worker needs to know. Paths are names inside the job folder."""

    format: Literal[1] = FORMAT
    id: int
    created_at: datetime
    reason: str
    model: ModelSettings
    fingerprint: str | None = None
    """The base model that the job is meant for; the worker refuses another one."""
    lora: LoraSettings
    training: TrainingSettings
    tracking: TrackingSettings = TrackingSettings()
    lessons: tuple[Lesson, ...] = Field(min_length=1)
    standing: tuple[Lesson, ...] = ()
    """Earlier lessons that are taught anew together with the job's own."""
    replay: tuple[Lesson, ...] = ()
    parent: ParentSpec | None = None
    routing: Literal["off", "domain"] = "off"
    """With `domain`, a domain has adapters of its own: each job of a domain goes on from the newest
    of them, replays their lessons alone, and its adapter is not made active."""
    scope: ScopeSpec | None = None
    """None: the adapter will answer every question."""
    prepared: bool = False
    """True once base model, parent and replay are settled: from then on the file never changes, so
    that a resumed job goes on exactly as it began."""
    notes: tuple[str, ...] = ()
    """What was decided on the way and may surprise, in sentences for the user."""

    @property
    def run_name(self) -> str:
        """What the run of this job is called in the data folder."""
        return f"job-{self.id}"

    @property
    def run_key(self) -> str:
        """What tools know the run by, among those of other data folders; the same when it goes
        on."""
        return self.tracking.run_id or f"{self.run_name}-{self.created_at:%Y%m%d%H%M%S}"

    @property
    def taught(self) -> tuple[Lesson, ...]:
        """All lessons that are trained on."""
        return (*self.standing, *self.lessons)

    @property
    def routed_domain(self) -> str | None:
        """The domain whose questions the adapter will answer beside the active one."""
        return (self.training.domain or None) if self.routing == "domain" else None

    def write(self, folder: Path) -> None:
        """Write `job.json`, whole or not at all.

        Raises:
            StorageError: the disk is full or the folder cannot be written.
        """
        write_atomic(folder / SPEC, self.model_dump_json(indent=1))

    @classmethod
    def read(cls, folder: Path) -> JobSpec:
        """The specification in a job folder.

        Raises:
            TrainingError: it is missing, not JSON, of another format, or has unknown parts.
        """
        path = folder / SPEC
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise TrainingError(f"{path} cannot be read: {error.strerror}.") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise TrainingError(f"{path} is not a job: {where}: {first['msg']}.") from error


class LoraRecord(Record):
    """The shape of the adapter as it was trained, target modules spelled out."""

    rank: int
    alpha: float
    dropout: float
    target_modules: tuple[str, ...]
    rslora: bool
    frozen: int = 0
    """Ranks, the first ones, that were kept as the parent's."""


class LessonOutcome(Record):
    """What became of one lesson: answered as taught by greedy decoding or not; `problem` says why
    it could not be trained on at all, `revision` what the model made of its answer and note.
    `before` is what its question was answered when it was judged, else by greedy decoding before
    training, `after` by greedy decoding; None where that was not asked."""

    feedback_id: int | None
    learned: bool
    problem: str | None = None
    revision: str | None = None
    before: str | None = None
    after: str | None = None


class Before(Record):
    """What was measured before the first step, kept for a job that goes on later; one that an older
    version began may have kept other things."""

    model_config = ConfigDict(extra="ignore")

    figures: Figures
    orders: tuple[LetterOrder, ...] = ()
    """What the lessons' answers cost, and their letters in other orders."""
    answers: tuple[str | None, ...] = ()
    """To the lessons' questions."""


class Happening(Record):
    """Common to all events: `time` is in seconds since 1970."""

    time: float = Field(default_factory=time.time)


class Alive(Happening):
    """The process runs and dies with its parent; nothing heavy has been imported yet."""

    event: Literal["alive"] = "alive"
    pid: int


class Start(Happening):
    """The model is loaded and training begins."""

    event: Literal["start"] = "start"
    model: str
    fingerprint: str
    device: str
    dtype: str
    lessons: int
    replay: int
    parent: str | None
    resumed_step: int
    """0 for a fresh start, else the step of the checkpoint that it goes on from."""
    threads: int
    load_seconds: float


class Progress(Happening):
    """One optimiser step has been taken. `step` and `epoch` count from 1."""

    event: Literal["progress"] = "progress"
    epoch: int
    epochs: int
    step: int
    steps: int
    """Steps planned at most; training may end sooner when all lessons are learned."""
    batch: int
    batches: int
    """Position inside the epoch."""
    loss: float
    learning_rate: float
    grad_norm: float | None = None
    learned: int | None = None
    """Lessons answered as taught at the last look."""
    tokens_per_second: float
    seconds_left: float


class Checkpoint(Happening):
    """The state at a step is on disk; the job can go on from there."""

    event: Literal["checkpoint"] = "checkpoint"
    step: int


class Remark(Happening):
    """Something the user should read, such as a logger that could not be opened."""

    event: Literal["remark"] = "remark"
    text: str


class Complete(Happening):
    """Training ended and the adapter is written. The same object is `result.json`."""

    event: Literal["complete"] = "complete"
    weights: str = WEIGHTS
    sha256: str
    tensors: int
    parameters: int
    lora: LoraRecord
    model: str
    fingerprint: str
    outcomes: tuple[LessonOutcome, ...]
    final_loss: float
    examples: int
    replayed: int
    steps: int
    epochs: int
    tokens: int
    seconds: float
    """Seconds of training, without those in which the process was stopped or being set up."""
    gate: GateReport | None = None
    """How the adapter behaves beside what answers now; None of a worker that did not look."""

    @property
    def learned(self) -> tuple[int, ...]:
        """Feedback ids of the lessons that are answered as taught."""
        return tuple(
            outcome.feedback_id
            for outcome in self.outcomes
            if outcome.learned and outcome.feedback_id is not None
        )

    @property
    def revisions(self) -> dict[int, str]:
        """Feedback id -> the model's own revision of an answer."""
        return {
            outcome.feedback_id: outcome.revision
            for outcome in self.outcomes
            if outcome.revision is not None and outcome.feedback_id is not None
        }


class Failed(Happening):
    """The job ended without an adapter."""

    event: Literal["failed"] = "failed"
    kind: FailureKind
    message: str
    hint: str | None = None
    step: int = 0
    """The last step that a checkpoint holds; 0 if there is none."""


Event = Alive | Start | Progress | Checkpoint | Remark | Complete | Failed

_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def parse_event(line: bytes | str) -> Event | None:
    """The event of one line, or None if the line is not one."""
    try:
        return _EVENT.validate_json(line)
    except ValidationError:
        return None


def event_line(event: Event) -> str:
    """One event as one line of JSON, with its newline."""
    return event.model_dump_json() + "\n"


def read_events(folder: Path) -> list[Event]:
    """The events that a job folder holds; lines that are not events are passed over."""
    try:
        lines = (folder / EVENTS).read_bytes().splitlines()
    except OSError:
        return []
    return [event for line in lines if (event := parse_event(line)) is not None]


def read_result(folder: Path) -> Complete | None:
    """What a finished job left: its result, if the weights it names are there too."""
    try:
        result = Complete.model_validate_json((folder / RESULT).read_bytes())
    except (OSError, ValidationError):
        return None
    name = Path(result.weights)
    if name.name != result.weights or not (folder / name).is_file():
        return None
    return result


def now() -> datetime:
    return datetime.now(UTC)
