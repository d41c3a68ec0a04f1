"""What a run comes to: means with intervals, pass rates, errors, times, groups, repeats.

Made of a run's `Results`; knows no files and no models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from shammah.errors import DataError, InputError
from shammah.evaluation.results import MISSING, Results, mean
from shammah.evaluation.statistics import Interval, bootstrap_mean

PASS_AT = 0.5
"""A score from which an example passes, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class MetricReport:
    """One scorer over some examples. `interval` is the bootstrap's of the mean, at 95%; figures of
    nothing scored are nan."""

    name: str
    scored: int
    mean: float
    interval: Interval
    pass_rate: float


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds an answer took."""

    mean: float
    p50: float
    p90: float
    p99: float
    most: float


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of a run.

    Attributes:
        examples: asked, those that went wrong too.
        failed: how many went wrong in some way; `errors` says how many of each kind.
        unanswered: how many have no answer of the model; means are over the others.
        without_expected: how many had no answer to be held against.
        overall_pass_rate: the share of all examples of which every scorer's score passes; one that
            went wrong does not.
        details: means of the numbers that scorers give in their details, as `scorer.name`.
        totals: by scorer its own figures of the whole data set, of those that have some.
        groups: by value of the metadata key `group_by`, each scorer's figures.
    """

    examples: int
    failed: int
    unanswered: int
    without_expected: int
    errors: Mapping[str, int]
    metrics: tuple[MetricReport, ...]
    overall_pass_rate: float
    pass_at: float
    seconds: Timing
    details: Mapping[str, float]
    totals: Mapping[str, Mapping[str, Any]]
    group_by: str | None = None
    groups: Mapping[str, tuple[MetricReport, ...]] | None = None

    def figures(self) -> dict[str, float]:
        """Every figure by name, as targets name them: `numeric`, `numeric.pass_rate`,
        `numeric.low`, `numeric.high`, what scorers detail, `overall_pass_rate`, `error_rate`,
        `examples`, `seconds.p90`, ..."""
        found: dict[str, float] = dict(self.details)
        for scorer, figures in self.totals.items():
            found.update(_numbers(scorer, figures))
        for metric in self.metrics:
            found[metric.name] = metric.mean
            found[f"{metric.name}.pass_rate"] = metric.pass_rate
            found[f"{metric.name}.low"] = metric.interval.low
            found[f"{metric.name}.high"] = metric.interval.high
        found["overall_pass_rate"] = self.overall_pass_rate
        found["error_rate"] = self.failed / self.examples if self.examples else MISSING
        found["examples"] = self.examples
        for name, value in asdict(self.seconds).items():
            found[f"seconds.{name}"] = value
        return found

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON has it, nan as null."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """The report that `to_dict` gave.

        Raises:
            InputError: it is none.
        """
        try:
            return _REPORT.validate_python(_numbered(values))
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"]) or "the whole"
            raise InputError(f"It is no report: {where}: {problem['msg']}.") from error


_REPORT = TypeAdapter(Report)
_MAY_BE_NONE = ("group_by", "groups", "totals")


def report(results: Results, *, pass_at: float = PASS_AT, seed: int = 0) -> Report:
    """The report of a run, so far or whole; the same for the same rows in any order.

    Raises:
        DataError: `pass_at` is not in (0, 1].
    """
    if not 0 < pass_at <= 1:
        raise DataError(f"An example cannot pass at a score of {pass_at}; it takes 0 to 1.")
    scores = {name: results.scores(name) for name in results.scorers}
    everyone = np.ones(len(results), bool)
    passed = everyone.copy()
    for values in scores.values():
        passed &= values >= np.float32(pass_at)
    groups = None
    if results.group is not None:
        numbers = results.groups
        groups = {
            name: _metrics(scores, numbers == number, pass_at, seed)
            for number, name in sorted(enumerate(results.group_names), key=lambda each: each[1])
        }
    return Report(
        examples=len(results),
        failed=results.failed,
        unanswered=results.unanswered,
        without_expected=results.without_expected,
        errors=dict(results.errors.most_common()),
        metrics=_metrics(scores, everyone, pass_at, seed),
        overall_pass_rate=float(passed.mean()) if len(passed) and scores else MISSING,
        pass_at=pass_at,
        seconds=_timing(results.seconds),
        details=results.details,
        totals=results.totals,
        group_by=results.group,
        groups=groups,
    )


@dataclass(frozen=True, slots=True)
class Spread:
    """One figure over repeated runs. `deviation` is the sample's (n - 1), nan of one run."""

    runs: int
    mean: float
    deviation: float
    least: float
    most: float


def repeated(reports: Sequence[Report]) -> dict[str, Spread]:
    """Each figure over runs of the same evaluation.

    Raises:
        DataError: there is no run.
    """
    if not reports:
        raise DataError("There is no run to sum up.")
    figures = [each.figures() for each in reports]
    found = {}
    for name in figures[0]:
        values = np.array([each.get(name, MISSING) for each in figures])
        values = values[~np.isnan(values)]
        some, several = len(values) > 0, len(values) > 1
        found[name] = Spread(
            runs=len(values),
            mean=float(values.mean()) if some else MISSING,
            deviation=float(values.std(ddof=1)) if several else MISSING,
            least=float(values.min()) if some else MISSING,
            most=float(values.max()) if some else MISSING,
        )
    return found


def _metrics(
    scores: Mapping[str, NDArray[np.float32]], chosen: NDArray[np.bool_], pass_at: float, seed: int
) -> tuple[MetricReport, ...]:
    found = []
    for name, column in scores.items():
        values = column[chosen & ~np.isnan(column)]
        some = len(values) > 0
        found.append(
            MetricReport(
                name=name,
                scored=len(values),
                mean=mean(values),
                interval=bootstrap_mean(values, seed=seed) if some else Interval(MISSING, MISSING),
                pass_rate=float((values >= np.float32(pass_at)).mean()) if some else MISSING,
            )
        )
    return tuple(found)


def _timing(seconds: NDArray[np.float32]) -> Timing:
    known = seconds[~np.isnan(seconds)].astype(np.float64)
    if not len(known):
        return Timing(MISSING, MISSING, MISSING, MISSING, MISSING)
    p50, p90, p99 = map(float, np.percentile(known, (50, 90, 99)))
    return Timing(float(known.mean()), p50, p90, p99, float(known.max()))


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """The numbers within a scorer's own figures, by path: `label.per_class.yes.f1`."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _numbers(f"{name}.{key}", each)
    elif isinstance(value, int | float):
        yield name, float(value)


def _numbered(values: Mapping[str, Any]) -> dict[str, Any]:
    """Null as nan again, but where it says that there is nothing."""
    return {
        key: each if key in _MAY_BE_NONE and not isinstance(each, Mapping) else _known(key, each)
        for key, each in values.items()
    }


def _known(key: str, value: Any) -> Any:
    if value is None:
        return MISSING
    if key == "totals":  # a scorer's own figures, of whatever kind
        return value
    if isinstance(value, Mapping):
        return {name: _known(name, each) for name, each in value.items()}
    return [_known("", each) for each in value] if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
