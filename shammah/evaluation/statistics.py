"""How sure a mean is, and whether two runs differ: resampling and exact tests, in numpy.

Everything that draws is seeded, so that a report is the same each time it is made. Knows arrays
alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
FLIPS = 9999
"""Random sign flips of a permutation test; with no more ways than that all are gone through."""
DRAWN = 4_000_000
"""Numbers that are drawn at once."""
FLIPPED = 200_000_000
"""Signs drawn for one test at most; of very many pairs fewer flips are drawn, never under 999."""
DISTINCT = 64
"""Of no more different values a resample is drawn as counts of each."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Where a figure lies with a confidence of 95% unless told otherwise."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Test:
    """A paired test: its name, and how likely a difference as large is by chance."""

    name: str
    p: float


def bootstrap_mean(
    values: NDArray[np.floating],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The percentile bootstrap interval of a mean (Efron 1979).

    Args:
        values: [n], n at least 1, all finite.

    Of few different values the resamples are drawn as multinomial counts: the same distribution in
    time that does not grow with n.
    """
    values = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    n = len(values)
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= DISTINCT:
        means = rng.multinomial(n, counts / n, size=resamples) @ distinct / n
    else:
        means = np.empty(resamples)
        at_once = max(1, DRAWN // n)
        for start in range(0, resamples, at_once):
            size = min(at_once, resamples - start)
            means[start : start + size] = values[rng.integers(0, n, (size, n))].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return Interval(float(low), float(high))


def bootstrap_ratio(
    above: NDArray[np.floating],
    below: NDArray[np.floating],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The percentile bootstrap interval of sum(above) / sum(below), with pairs drawn together: as
    of a log-likelihood per token over examples of different lengths.

    Args:
        above, below: [n] each, n at least 1, all finite; below is above zero.
    """
    above, below = np.asarray(above, np.float64), np.asarray(below, np.float64)
    rng = np.random.default_rng(seed)
    n = len(above)
    ratios = np.empty(resamples)
    at_once = max(1, DRAWN // n)
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        drawn = rng.integers(0, n, (size, n))
        ratios[start : start + size] = above[drawn].sum(axis=1) / below[drawn].sum(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(ratios, (tail, 1 - tail))
    return Interval(float(low), float(high))


def paired_test(differences: NDArray[np.floating], *, seed: int = 0) -> Test:
    """The test that fits paired differences [n]: McNemar's exact one where each is -1, 0 or 1, as
    of two runs whose scores are 0 or 1; else a permutation test."""
    differences = np.asarray(differences, np.float64)
    changed = differences[differences != 0]
    if np.isin(changed, (-1.0, 1.0)).all():
        return Test("exact McNemar", sign_test(int((changed > 0).sum()), int((changed < 0).sum())))
    return Test("paired permutation", sign_flip_test(differences, seed=seed))


def sign_test(won: int, lost: int) -> float:
    """Two-sided exact sign test (for 0/1 scores McNemar's): the chance that of `won + lost` fair
    coins the rarer side comes up no more often than it did, on either side."""
    n, least = won + lost, min(won, lost)
    if n == 0 or won == lost:
        return 1.0
    # log C(n, k) - n log 2 for k = 0 ... least, by its ratios.
    k = np.arange(1, least + 1)
    terms = np.concatenate([[0.0], np.cumsum(np.log((n - k + 1) / k))]) - n * math.log(2)
    largest = float(terms.max())
    return min(1.0, 2 * math.exp(largest) * float(np.exp(terms - largest).sum()))


def sign_flip_test(
    differences: NDArray[np.floating], *, flips: int = FLIPS, seed: int = 0
) -> float:
    """Two-sided paired permutation test of the mean: how often a sum is as far from 0 as this one
    where each difference has either sign by chance (Fisher 1935). Exact where all ways can be gone
    through; else by random ways, of which the one that happened is one."""
    changed = np.asarray(differences, np.float64)
    changed = changed[changed != 0]
    n = len(changed)
    if not n:
        return 1.0
    # Sums of the same numbers in another order are equal only up to rounding.
    bound = abs(changed.sum()) - 1e-9 * float(np.abs(changed).sum())
    if 2**n <= flips:
        ways = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float((np.abs((2 * ways - 1) @ changed) >= bound).mean())
    flips = min(flips, max(999, FLIPPED // n))
    rng = np.random.default_rng(seed)
    extreme = 0
    at_once = max(1, DRAWN // n)
    for start in range(0, flips, at_once):
        size = min(at_once, flips - start)
        bits = np.unpackbits(np.frombuffer(rng.bytes(size * ((n + 7) // 8)), np.uint8))
        signs = bits.reshape(size, -1)[:, :n].astype(np.float32)
        sums = 2 * (signs @ changed.astype(np.float32)) - changed.sum()
        extreme += int((np.abs(sums) >= bound - 1e-5 * np.abs(changed).sum() / n).sum())
    return (extreme + 1) / (flips + 1)
