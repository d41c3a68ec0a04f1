"""Scorers by name, from a line of text or an object of JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shammah.errors import InputError, UsageError
from shammah.evaluation.scorer import Score, Scorer, wanted

Spec = str | Mapping[str, Any]
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class ExactMatch:
    """Whether the answer is the wanted one, but for blanks around it."""

    name: str = "exact_match"

    async def score(self, output: str, target: str, metadata: Mapping[str, Any]) -> Score:
        return Score(float(output.strip() == wanted(target, self.name).strip()))


@dataclass(frozen=True, slots=True)
class Contains:
    """Whether the wanted answer is in the model's."""

    name: str = "contains"

    async def score(self, output: str, target: str, metadata: Mapping[str, Any]) -> Score:
        return Score(float(wanted(target, self.name).strip() in output))


@dataclass(frozen=True, slots=True)
class Numeric:
    """Whether the last number of both is the same."""

    name: str = "numeric"

    async def score(self, output: str, target: str, metadata: Mapping[str, Any]) -> Score:
        aim = _last(wanted(target, self.name))
        if aim is None:
            raise InputError("the target has no number")
        found = _last(output)
        return Score(float(found == aim), {"found": found, "wanted": aim})


_SCORERS: dict[str, type[Any]] = {
    "contains": Contains,
    "exact_match": ExactMatch,
    "numeric": Numeric,
}


def scorer(spec: Spec, **resources: Any) -> Scorer:
    """The scorer that a spec describes.

    Raises:
        UsageError: there is none of that name.
    """
    name = spec if isinstance(spec, str) else str(spec.get("name"))
    if name not in _SCORERS:
        raise UsageError(f"There is no scorer {name!r}.", hint=f"Scorers: {', '.join(names())}.")
    made: Scorer = _SCORERS[name]()
    return made


def needs(spec: Spec) -> frozenset[str]:
    """The resources that a spec's scorer needs of the caller.

    Raises:
        UsageError: there is none of that name.
    """
    scorer(spec)
    return frozenset()


def names() -> list[str]:
    """The names of all scorers, sorted."""
    return sorted(_SCORERS)


def _last(text: str) -> float | None:
    numbers = _NUMBER.findall(text)
    return float(numbers[-1].replace(",", "")) if numbers else None
