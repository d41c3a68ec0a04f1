"""Quality targets: what a run's figures have to reach, and whether they do.

A target is a figure of the report, `>=` or `<=`, and a number: `numeric>=0.6`. From a mapping, a
TOML file or words of a command line. Knows reports, not how they came about.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from shammah.errors import InputError, UsageError
from shammah.evaluation.report import Report

Operator = Literal[">=", "<="]
_TARGET = re.compile(r"\s*([\w.@:/ -]+?)\s*(>=|<=)\s*([-+.\deE]+)\s*")
_BOUND = re.compile(r"\s*(>=|<=)\s*([-+.\deE]+)\s*")


@dataclass(frozen=True, slots=True)
class Target:
    """What one figure has to reach."""

    metric: str
    operator: Operator
    bound: float

    def __str__(self) -> str:
        return f"{self.metric} {self.operator} {self.bound:g}"


@dataclass(frozen=True, slots=True)
class TargetResult:
    """Whether a target is met. `value` is None where nothing was scored, which meets none;
    `margin` is how far beyond the bound the value lies, negative on its wrong side."""

    target: Target
    value: float | None
    passed: bool
    margin: float | None


@dataclass(frozen=True, slots=True)
class QualityResult:
    """All targets: `passed` says that each is met."""

    passed: bool
    targets: tuple[TargetResult, ...]

    @property
    def summary(self) -> str:
        """In a line: `2 of 3 targets met; missed: numeric >= 0.6 by 0.12`."""
        missed = [each for each in self.targets if not each.passed]
        text = f"{len(self.targets) - len(missed)} of {len(self.targets)} targets met"
        if not missed:
            return text
        return f"{text}; missed: {', '.join(map(_missed, missed))}"

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON has it."""
        return {**asdict(self), "summary": self.summary}


def validate_quality(
    report: Report | Mapping[str, float], targets: Mapping[str, float | str] | Sequence[Target]
) -> QualityResult:
    """Hold a report against targets.

    Args:
        report: or its figures by name.
        targets: as `targets_of` reads them, or ready.

    Raises:
        UsageError: a target cannot be read, or the report has no such figure.
    """
    figures = report.figures() if isinstance(report, Report) else report
    wanted = targets_of(targets) if isinstance(targets, Mapping) else list(targets)
    results = []
    for target in wanted:
        value = figure(figures, target.metric)
        if math.isnan(value):
            results.append(TargetResult(target, None, False, None))
            continue
        margin = value - target.bound if target.operator == ">=" else target.bound - value
        results.append(TargetResult(target, value, margin >= 0, margin))
    return QualityResult(all(each.passed for each in results), tuple(results))


def figure(figures: Mapping[str, float], name: str) -> float:
    """A figure by its name; nan where nothing was scored.

    Beside the report's own names there are those that targets are often written with:

    - `schema_compliance`: the share of answers in the form that was asked for, by `json_schema` or
      `claim_format`.
    - `citation_accuracy`: the share of answers that cite nothing but what they should, and
      something where they should, by `citation_validity`.
    - `mean_entailment`: the share of answers that follow from the premise, by `llm_entailment`.

    Each is the mean of such a scorer in the run. Any other scorer can be meant by them too, where
    it is called so: `{"name": "regex", "pattern": ..., "as": "schema_compliance"}`.

    Raises:
        UsageError: there is none of that name, or it could be two.
    """
    if name in figures:
        return figures[name]
    meant = _MEANT.get(name, ())
    found = [each for each in meant if each in figures]
    if len(found) == 1:
        return figures[found[0]]
    if found:
        raise UsageError(
            f"{name} could be {' or '.join(found)}.",
            hint=f'Call one of the scorers so: {{"name": ..., "as": "{name}"}}.',
        )
    raise UsageError(
        f"The report has no figure {name!r}.",
        hint=f"It is there with the scorer {' or '.join(each.split('.')[0] for each in meant)}."
        if meant
        else f"It has {', '.join(sorted(figures))}.",
    )


def targets_of(values: Mapping[str, Any]) -> list[Target]:
    """Targets from a mapping: `{"numeric": 0.6, "error_rate": "<= 0.05"}`; a number is at least.

    Raises:
        UsageError: a value is neither.
    """
    found = []
    for metric, value in values.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            found.append(Target(metric, ">=", _number(str(value))))
            continue
        match = _BOUND.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise UsageError(
                f"The target of {metric} is {value!r}.",
                hint='Write a number, or ">= 0.6" or "<= 0.05".',
            )
        found.append(Target(metric, _operator(match[1]), _number(match[2])))
    return found


def targets_in(path: Path) -> list[Target]:
    """Targets from a TOML file: its table `[targets]`, or the whole of it.

    Raises:
        InputError: it cannot be read.
        UsageError: a target cannot.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{path} is no TOML: {error}.") from error
    table = values.get("targets", values)
    if not isinstance(table, dict) or not table:
        raise InputError(f"{path} has no targets.", hint="Write numeric = 0.6 below [targets].")
    return targets_of(table)


def required(words: Sequence[str]) -> list[Target]:
    """Targets from a command line: `numeric>=0.6`, several with commas, or a file's name that ends
    in .toml.

    Raises:
        UsageError, InputError: one cannot be read.
    """
    found: list[Target] = []
    for word in words:
        if word.endswith(".toml"):
            found += targets_in(Path(word).expanduser())
            continue
        for part in word.split(","):
            match = _TARGET.fullmatch(part)
            if match is None:
                raise UsageError(
                    f"{part!r} is no target.", hint="Write it as numeric>=0.6 or error_rate<=0.05."
                )
            found.append(Target(match[1], _operator(match[2]), _number(match[3])))
    return found


_MEANT = {
    "schema_compliance": ("json_schema", "claim_format"),
    "citation_accuracy": ("citation_validity.accurate",),
    "mean_entailment": ("llm_entailment",),
}
"""Which figures of a report a target's name stands for."""


def _operator(text: str) -> Operator:
    return ">=" if text == ">=" else "<="


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"A target has a number, and {text!r} is none.")
    return value


def _missed(result: TargetResult) -> str:
    if result.margin is None:
        return f"{result.target} (nothing was scored)"
    return f"{result.target} by {-result.margin:.3g}"
