"""Scorers made of scorers: all of them, any of them, a weighted mean, one by another name.

The parts are asked at the same time; the detail has the value and detail of each by name.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shammah.errors import UsageError
from shammah.evaluation.scorer import Aggregating, Score, Scorer, Tally, distinct_names


def renamed(scorer: Scorer, name: str) -> Scorer:
    """The same scorer by another name, so that two of a kind can be told apart."""
    if isinstance(scorer, Aggregating):
        return _RenamedAggregating(scorer, scorer.tally, name)
    return _Renamed(scorer, name)


class _Renamed:
    def __init__(self, scorer: Scorer, name: str) -> None:
        self.name = name
        self._scorer = scorer

    async def score(self, output: str, target: str, metadata: Mapping[str, Any]) -> Score:
        return await self._scorer.score(output, target, metadata)


class _RenamedAggregating(_Renamed):
    def __init__(self, scorer: Scorer, tally: Callable[[], Tally], name: str) -> None:
        super().__init__(scorer, name)
        self._tally = tally

    def tally(self) -> Tally:
        return self._tally()


class _Combined:
    """Asks the parts."""

    name: str

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        if not scorers:
            raise UsageError(f"{self.name} is made of other scorers, and there are none.")
        self._scorers = dict(zip(distinct_names(scorers), scorers, strict=True))

    async def _parts(
        self, output: str, target: str, metadata: Mapping[str, Any]
    ) -> dict[str, Score]:
        found = await asyncio.gather(
            *(each.score(output, target, metadata) for each in self._scorers.values())
        )
        return dict(zip(self._scorers, found, strict=True))

    def tally(self) -> Tally:
        """The figures of the parts that have such, by the parts' names."""
        return _Tallies(
            {
                name: scorer.tally()
                for name, scorer in self._scorers.items()
                if isinstance(scorer, Aggregating)
            }
        )


class _Tallies:
    def __init__(self, tallies: Mapping[str, Tally]) -> None:
        self._tallies = tallies

    def add(self, detail: Mapping[str, Any]) -> None:
        for name, tally in self._tallies.items():
            tally.add(detail["parts"][name]["detail"])

    def figures(self) -> dict[str, Any]:
        found = {name: tally.figures() for name, tally in self._tallies.items()}
        return {name: figures for name, figures in found.items() if figures}


class AllOf(_Combined):
    """The smallest of the values: 1 only where every part says 1.

    Raises:
        UsageError: there is no scorer.
    """

    name = "all_of"

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        super().__init__(scorers)

    async def score(self, output: str, target: str, metadata: Mapping[str, Any]) -> Score:
        parts = await self._parts(output, target, metadata)
        return Score(min(part.value for part in parts.values()), _detail(parts))


class AnyOf(_Combined):
    """The largest of the values.

    Raises:
        UsageError: there is no scorer.
    """

    name = "any_of"

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        super().__init__(scorers)

    async def score(self, output: str, target: str, metadata: Mapping[str, Any]) -> Score:
        parts = await self._parts(output, target, metadata)
        return Score(max(part.value for part in parts.values()), _detail(parts))


class Weighted(_Combined):
    """The mean of the values by weight; weights need not sum to one.

    Raises:
        UsageError: there is no scorer, not one weight for each, or one is not above 0.
    """

    name = "weighted"

    def __init__(self, scorers: Sequence[Scorer], weights: Sequence[float]) -> None:
        super().__init__(scorers)
        if len(weights) != len(scorers):
            raise UsageError(f"{len(scorers)} scorers have {len(weights)} weights.")
        if not all(0.0 < weight < math.inf for weight in weights):
            raise UsageError(f"The weights {list(weights)} are not all above 0.")
        whole = math.fsum(weights)
        self._shares = [weight / whole for weight in weights]

    async def score(self, output: str, target: str, metadata: Mapping[str, Any]) -> Score:
        parts = await self._parts(output, target, metadata)
        value = math.fsum(
            share * part.value for share, part in zip(self._shares, parts.values(), strict=True)
        )
        return Score(value, _detail(parts))


def _detail(parts: Mapping[str, Score]) -> dict[str, Any]:
    return {
        "parts": {
            name: {"value": part.value, "detail": dict(part.detail)} for name, part in parts.items()
        }
    }
