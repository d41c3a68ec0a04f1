"""What the application shows of itself: plain values, safe to read from any task."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from shammah.adapters.differences import AdapterDifference
    from shammah.adapters.domains import Route
    from shammah.adapters.library import Adapter
    from shammah.adapters.scope import Nearness
    from shammah.generation.lora import AdapterState
    from shammah.learning.supervisor import TrainingStatus


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that happened behind the user's back and that they should read."""

    kind: Literal["info", "success", "warning", "error"]
    text: str


@dataclass(frozen=True, slots=True)
class Choice:
    """Which adapter answers a question, and why.

    Attributes:
        state: answer with it; None is the adapter in use.
        route: why another one than that answers.
        nearness: how near the question is to what the adapter in use was taught, and to other
            questions, where that was looked at.
        outside: it is none of the adapter's, and the base model answers.
    """

    state: AdapterState | None = None
    route: Route | None = None
    nearness: Nearness | None = None
    outside: bool = False


@dataclass(frozen=True, slots=True)
class Status:
    """The state of everything, for a toolbar. Reading it never waits."""

    model: str
    model_state: Literal["loading", "ready", "failed"]
    adapter: str | None
    buffer_label: str | None
    training: TrainingStatus | None
    tokens_per_second: float | None
    route: Route | None = None
    outside: bool = False
    """The last question was outside the scope of the adapter in use."""
    """Where the last question went, if not to the active adapter."""


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """One adapter of the library as a list shows it."""

    name: str
    active: bool
    created_at: datetime | None
    lessons: int
    learned: int | None
    """How many of the lessons were answered as taught; None of a merged one, where only its parents
    were looked at."""
    rank: int | None
    size_bytes: int
    final_loss: float | None
    parent: str | None
    """The adapter that it was made from; of a merged one the heaviest."""
    compatible: bool
    problem: str | None
    origin: str = "trained"
    failures: tuple[str, ...] = ()
    """The checks that kept it from being made active by itself."""
    domain: str | None = None

    @classmethod
    def of(cls, adapter: Adapter, *, active: str | None, fingerprint: str | None) -> AdapterInfo:
        """`compatible` is true where the adapter was made for the base model of that fingerprint
        (or no model is known yet)."""
        metadata = adapter.metadata
        if metadata is None:
            return cls(
                name=adapter.name,
                active=adapter.name == active,
                created_at=None,
                lessons=0,
                learned=0,
                rank=None,
                size_bytes=adapter.size,
                final_loss=None,
                parent=None,
                compatible=False,
                problem=adapter.problem,
            )
        return cls(
            name=adapter.name,
            active=adapter.name == active,
            created_at=metadata.created_at,
            lessons=len(metadata.lessons),
            learned=None
            if metadata.merge is not None
            else sum(lesson.learned for lesson in metadata.lessons),
            rank=metadata.lora.rank,
            size_bytes=adapter.size,
            final_loss=metadata.metrics.get("final_loss"),
            parent=next(iter(metadata.parents), None),
            compatible=fingerprint in (None, metadata.base_fingerprint),
            problem=adapter.problem,
            origin=metadata.origin,
            failures=tuple(metadata.failures),
            domain=metadata.domain,
        )


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """What is known of how one adapter does, beside what it is.

    `metrics` are those of its training and of the gate; `answers` it gave, and `ratings` that
    those answers got (critical, medium, good).
    """

    info: AdapterInfo
    metrics: dict[str, float]
    answers: int
    ratings: dict[str, int]


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """What two adapters answer to one question, and the answer that was taught."""

    question: str
    taught: str
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class AnswerComparison:
    """Of the `lessons` of both `asked` were answered, and `differing` were those whose answers are
    not the same."""

    lessons: int
    asked: int
    differing: tuple[AnswerPair, ...]


@dataclass(frozen=True, slots=True)
class LessonAnswer:
    """What came of a lesson that was asked again. `base` is None where the base model was not asked
    beside an adapter."""

    question: str
    aim: str
    answer: str
    as_taught: bool
    base: str | None


@dataclass(frozen=True, slots=True)
class LessonCheck:
    """Of `lessons` that were trained and stand `asked` were asked again, the newest ones;
    `as_taught` were answered so, `failed` could not be answered. `adapter` None is the base model.
    Beside an adapter `base_as_taught` is the base model's count, and `p` how likely two equal
    models differ as much by chance (exact McNemar)."""

    adapter: str | None
    lessons: int
    asked: int
    failed: int
    as_taught: int
    base_as_taught: int | None
    p: float | None
    answers: tuple[LessonAnswer, ...]


@dataclass(frozen=True, slots=True)
class AdapterComparison:
    """Two adapters side by side; `first` None is the base model. `answers` are None where they were
    not asked for."""

    first: AdapterRecord | None
    second: AdapterRecord
    difference: AdapterDifference
    answers: AnswerComparison | None = None
