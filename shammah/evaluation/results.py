"""The scores of a run as columns of numbers: 4 bytes for each, whatever the answers' lengths.

Knows no files and no statistics.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shammah.evaluation.rows import EvaluationRow
from shammah.evaluation.scorer import Aggregating, Scorer, Tally

MISSING = float("nan")
DETAILS = 64
"""Numbers in the details of scores that are averaged at most."""
VALUES = 1000
"""Groups of one metadata key at most; the rest are together."""
REST = "(other)"


class Results:
    """What is known of the examples that are done, in the order of `indices`.

    Args:
        scorers: those that are expected, or their names; others are added as they come. Of one
            with figures of the whole data set those are counted up.
        group: a metadata key to tell groups of examples by.
    """

    def __init__(self, scorers: Sequence[Scorer | str] = (), group: str | None = None) -> None:
        self.errors: Counter[str] = Counter()
        """How many examples went wrong, by stage and kind of error."""
        self.failed = 0
        """How many have an error."""
        self.without_expected = 0
        """How many have no answer of the data set to be held against."""
        self.unanswered = 0
        """How many have no answer of the model."""
        self.group = group
        self._group_numbers: dict[str, int] = {}
        self._groups = array("I")
        self._indices = array("I")
        self._checksums = array("I")
        self._seconds = array("f")
        self._scores: dict[str, array[float]] = {}
        self._tallies: dict[str, Tally] = {}
        for scorer in scorers:
            name = scorer if isinstance(scorer, str) else scorer.name
            self._scores[name] = array("f")
            if isinstance(scorer, Aggregating):
                self._tallies[name] = scorer.tally()
        self._details: dict[str, list[float]] = {}

    def __len__(self) -> int:
        return len(self._indices)

    def add(self, row: EvaluationRow, checksum: int | None = None) -> None:
        """Count a row; its checksum is computed where it is not given."""
        for name in row.scores:
            if name not in self._scores:
                self._scores[name] = array("f", [MISSING]) * len(self)
        self._indices.append(row.index)
        self._checksums.append(row.checksum if checksum is None else checksum)
        self._seconds.append(row.seconds if row.predicted is not None else MISSING)
        for name, column in self._scores.items():
            score = row.scores.get(name)
            column.append(MISSING if score is None else score.value)
        for name, score in row.scores.items():
            self._add_detail(name, score.detail)
            if name in self._tallies:
                self._tallies[name].add(score.detail)
        self.without_expected += row.expected is None
        self.unanswered += row.predicted is None
        if row.error is not None:
            self.failed += 1
            self.errors[f"{row.error.stage}: {row.error.kind}"] += 1
        if self.group is not None:
            self._add_group(str(row.metadata.get(self.group, "(none)")))

    @property
    def scorers(self) -> tuple[str, ...]:
        return tuple(self._scores)

    @property
    def group_names(self) -> list[str]:
        return list(self._group_numbers)

    @property
    def indices(self) -> NDArray[np.uint32]:
        """The examples' numbers, rising: uint32[n]."""
        return np.sort(np.frombuffer(self._indices, np.uint32)) if len(self) else _NONE

    def scores(self, scorer: str) -> NDArray[np.float32]:
        """The scores of one scorer by rising index, nan where there is none: float32[n].

        Raises:
            KeyError: there is no such scorer.
        """
        return self._ordered(self._scores[scorer])

    @property
    def checksums(self) -> NDArray[np.uint32]:
        """Of what was asked and wanted, by rising index: uint32[n]."""
        return np.frombuffer(self._checksums, np.uint32)[self._order()] if len(self) else _NONE

    @property
    def seconds(self) -> NDArray[np.float32]:
        """How long each answer took by rising index, nan where there is none: float32[n]."""
        return self._ordered(self._seconds)

    @property
    def groups(self) -> NDArray[np.uint32]:
        """By rising index the place of its group in `group_names`: uint32[n]."""
        return np.frombuffer(self._groups, np.uint32)[self._order()] if len(self) else _NONE

    @property
    def details(self) -> dict[str, float]:
        """The means of the numbers in the details of scores, as `scorer.name`."""
        return {name: total / count for name, (total, count) in self._details.items()}

    @property
    def totals(self) -> dict[str, dict[str, Any]]:
        """By scorer its figures of the whole data set so far, of those that have some."""
        return {name: tally.figures() for name, tally in self._tallies.items()}

    def means(self) -> dict[str, float]:
        """The mean of each scorer so far; nan where nothing was scored."""
        return {
            name: mean(np.frombuffer(column, np.float32)) if column else MISSING
            for name, column in self._scores.items()
        }

    def _order(self) -> NDArray[np.intp]:
        return np.argsort(np.frombuffer(self._indices, np.uint32), kind="stable")

    def _ordered(self, column: array[float]) -> NDArray[np.float32]:
        return (
            np.frombuffer(column, np.float32)[self._order()]
            if len(self)
            else np.empty(0, np.float32)
        )

    def _add_detail(self, scorer: str, detail: Mapping[str, object]) -> None:
        for key, value in detail.items():
            if not isinstance(value, bool | int | float) or value != value:
                continue
            name = f"{scorer}.{key}"
            if name not in self._details and len(self._details) >= DETAILS:
                continue
            kept = self._details.setdefault(name, [0.0, 0])
            kept[0] += value
            kept[1] += 1

    def _add_group(self, name: str) -> None:
        if name not in self._group_numbers and len(self._group_numbers) >= VALUES:
            name = REST
        self._groups.append(self._group_numbers.setdefault(name, len(self._group_numbers)))


def mean(values: NDArray[np.float32]) -> float:
    """The mean of those that are not nan, in double precision; nan of none."""
    present = values[~np.isnan(values)]
    return float(present.mean(dtype=np.float64)) if len(present) else MISSING


_NONE = np.empty(0, np.uint32)
