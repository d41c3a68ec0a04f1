"""What a report says, as values: nothing here knows where it came from or how it is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from shammah.backends.metric_curves import Curve
from shammah.backends.metric_rows import Summary
from shammah.evaluation.comparison import Comparison, Flip
from shammah.evaluation.report import Report, Spread
from shammah.tracking.story import Scope

Kind = Literal["run", "adapter", "evaluation"]


@dataclass(frozen=True, slots=True)
class Chart:
    """One metric along the steps of a run.

    `limit` is a value that is worth a line across, `limit_name` what it is; `marks` are steps at
    which something happened, by what it was.
    """

    metric: str
    title: str
    unit: str
    curve: Curve
    limit: float | None = None
    limit_name: str = ""
    marks: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaughtLesson:
    """One lesson with what its question was answered before and after training, None where that
    is not known. `problem` says why it could not be trained on."""

    question: str
    taught: str
    learned: bool | None
    before: str | None = None
    after: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Behaviour:
    """A figure of the checks around training: before the first step and after the last."""

    name: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Ancestor:
    """An adapter and what it was made from. `facts` are empty where it is no longer there;
    `share` is its weight in the merge it went into."""

    name: str
    facts: tuple[str, ...] = ()
    share: float | None = None
    parents: tuple[Ancestor, ...] = ()


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation: of whom, on what, with which figures.

    Attributes:
        who: the adapter's name, or `base`.
        data: the data set in a line.
        facts: label and value of how it was done.
        against: what it was compared with.
    """

    who: str
    data: str
    folder: str
    facts: tuple[tuple[str, str], ...]
    figures: Report
    against: str | None = None
    comparison: Comparison | None = None
    flips: tuple[Flip, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything a report says.

    Attributes:
        facts: of the subject, in a line below its name.
        figures: label, value and remark of the few numbers to see first.
        health: sentences on what went on besides; `troubles` those that are bad news.
        spread: figures over repeated evaluations.
        story: what the run told while it went on.
        settings: dotted names and values of what the run was made with.
        left_out: what was not taken into the report on purpose.
    """

    kind: Kind
    name: str
    title: str
    facts: tuple[str, ...] = ()
    run: str | None = None
    adapter: str | None = None
    figures: tuple[tuple[str, str, str], ...] = ()
    charts: tuple[Chart, ...] = ()
    health: tuple[str, ...] = ()
    troubles: tuple[str, ...] = ()
    measurements: tuple[Summary, ...] = ()
    behaviour: tuple[Behaviour, ...] = ()
    evaluations: tuple[Evaluated, ...] = ()
    spread: Mapping[str, Spread] = field(default_factory=dict)
    lessons: tuple[TaughtLesson, ...] = ()
    lineage: Ancestor | None = None
    story: tuple[Scope, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    left_out: str = ""
