"""Two runs on the same examples, pair by pair: how far apart, whether by chance, what flipped.

Knows results and rows, no files and no models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shammah.errors import UsageError
from shammah.evaluation.report import PASS_AT
from shammah.evaluation.results import Results, mean
from shammah.evaluation.rows import EvaluationRow
from shammah.evaluation.statistics import Interval, Test, bootstrap_mean, paired_test

FLIPS_SHOWN = 10


@dataclass(frozen=True, slots=True)
class MetricComparison:
    """One scorer on the examples that both runs scored.

    `difference` is the second run's mean less the first's, with the bootstrap's interval over
    pairs. `gained` examples pass in the second alone, `lost` ones in the first alone.
    """

    name: str
    pairs: int
    first: float
    second: float
    difference: float
    interval: Interval
    test: Test
    gained: int
    lost: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs; `pairs` examples are in both. `alone` are in one of them only."""

    pairs: int
    alone: int
    pass_at: float
    metrics: tuple[MetricComparison, ...]

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON has it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Flip:
    """An example that passes in one of two runs, by one scorer."""

    scorer: str
    gained: bool
    """Whether it is the second run that it passes in."""
    first: EvaluationRow
    second: EvaluationRow


def compare(
    first: Results, second: Results, *, pass_at: float = PASS_AT, seed: int = 0
) -> Comparison:
    """Two runs by the scorers that both have.

    Raises:
        UsageError: they have no scorer or no example in common, or the same number stands for
            another example in the other run.
    """
    left, right = _paired(first, second)
    metrics = []
    for name, one, other in _scores(first, second, left, right):
        both = ~np.isnan(one) & ~np.isnan(other)
        one, other = one[both], other[both]
        if not len(one):
            continue
        passed, passes = one >= np.float32(pass_at), other >= np.float32(pass_at)
        differences = other.astype(np.float64) - one
        metrics.append(
            MetricComparison(
                name=name,
                pairs=len(one),
                first=mean(one),
                second=mean(other),
                difference=float(differences.mean()),
                interval=bootstrap_mean(differences, seed=seed),
                test=paired_test(differences, seed=seed),
                gained=int((passes & ~passed).sum()),
                lost=int((passed & ~passes).sum()),
            )
        )
    alone = len(first) + len(second) - 2 * len(left)
    return Comparison(len(left), alone, pass_at, tuple(metrics))


def flips(
    first: Results,
    second: Results,
    first_rows: Iterable[EvaluationRow],
    second_rows: Iterable[EvaluationRow],
    *,
    pass_at: float = PASS_AT,
    limit: int = FLIPS_SHOWN,
) -> list[Flip]:
    """The examples that flipped, with both answers: for each scorer up to `limit` lost ones, then
    as many gained, by their numbers.

    Args:
        first_rows: the rows of the first run; they are gone through once, and only those that are
            shown are held.

    Raises:
        UsageError: as `compare`.
    """
    left, right = _paired(first, second)
    numbers = first.indices[left]
    chosen: list[tuple[str, bool, int]] = []
    for name, one, other in _scores(first, second, left, right):
        both = ~np.isnan(one) & ~np.isnan(other)
        passed, passes = one >= np.float32(pass_at), other >= np.float32(pass_at)
        for gained, flipped in ((False, passed & ~passes), (True, passes & ~passed)):
            for number in numbers[both & flipped][:limit]:
                chosen.append((name, gained, int(number)))
    shown = {number for _, _, number in chosen}
    before = {row.index: row for row in first_rows if row.index in shown}
    after = {row.index: row for row in second_rows if row.index in shown}
    return [Flip(name, gained, before[number], after[number]) for name, gained, number in chosen]


def _paired(first: Results, second: Results) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where in each run the examples are that both have."""
    shared, left, right = np.intersect1d(
        first.indices, second.indices, assume_unique=True, return_indices=True
    )
    if not len(shared):
        raise UsageError("The two runs have no example in common.")
    other = first.checksums[left] != second.checksums[right]
    if other.any():
        raise UsageError(
            f"Example {int(shared[other][0])} is not the same in both runs.",
            hint="Evaluate both on the same data.",
        )
    if not set(first.scorers) & set(second.scorers):
        raise UsageError("The two runs have no scorer in common.")
    return left, right


def _scores(
    first: Results, second: Results, left: NDArray[np.intp], right: NDArray[np.intp]
) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.float32]]]:
    for name in first.scorers:
        if name in second.scorers:
            yield name, first.scores(name)[left], second.scores(name)[right]
