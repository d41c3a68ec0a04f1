"""The weighted sampler: shares follow the weights, and a run can be continued."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shammah.feedback.sampler import WeightedSampler

WEIGHTS = st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 1e6)), min_size=1, max_size=20).filter(
    any
)


def chi_square(counts: list[int], weights: list[float]) -> float:
    """Pearson's statistic of the counts against the shares of the weights."""
    n, total = sum(counts), sum(weights)
    return sum(
        (count - n * weight / total) ** 2 / (n * weight / total)
        for count, weight in zip(counts, weights, strict=True)
    )


def test_shares_of_one_lesson_of_each_rating() -> None:
    weights = [10.0, 3.0, 1.0]
    draws = WeightedSampler(weights, seed=1).draw(100_000)
    counts = [draws.count(i) for i in range(3)]
    shares = [count / len(draws) for count in counts]
    assert shares == pytest.approx([10 / 14, 3 / 14, 1 / 14], abs=0.005)
    # p = 0.001 for two degrees of freedom.
    assert chi_square(counts, weights) < 13.8


def test_many_seeds_are_unbiased() -> None:
    weights = [10.0, 3.0, 1.0]
    statistics = []
    for seed in range(300):
        draws = WeightedSampler(weights, seed).draw(1_000)
        statistics.append(chi_square([draws.count(i) for i in range(3)], weights))
    # Chi-square with two degrees of freedom has mean 2 and standard deviation 2.
    assert abs(float(np.mean(statistics)) - 2) < 4 * 2 / math.sqrt(len(statistics))


@given(weights=WEIGHTS, seed=st.integers(0, 2**63))
def test_equals_the_plain_way(weights: list[float], seed: int) -> None:
    bounds = list(accumulate(weight / sum(weights) for weight in weights))
    random = np.random.Generator(np.random.PCG64(seed))
    heaviest_end = max(i for i, weight in enumerate(weights) if weight)
    expected = [min(bisect_right(bounds, random.random()), heaviest_end) for _ in range(50)]
    drawn = WeightedSampler(weights, seed).draw(50)
    assert drawn == expected
    assert all(weights[i] > 0 for i in drawn), "a weight of 0 is never drawn"


@given(weights=WEIGHTS, first=st.integers(0, 40), second=st.integers(0, 40))
def test_continues_where_it_was_saved(weights: list[float], first: int, second: int) -> None:
    whole = WeightedSampler(weights, 7).draw(first + second)
    sampler = WeightedSampler(weights, 7)
    begun = sampler.draw(first)
    state = json.loads(json.dumps(sampler.state_dict()))
    sampler.draw(3)
    resumed = WeightedSampler(weights, 99)
    resumed.load_state_dict(state)
    assert begun + resumed.draw(second) == whole


def test_state_of_other_weights_is_refused() -> None:
    state = WeightedSampler([1, 2], 0).state_dict()
    with pytest.raises(ValueError, match="2 other weights"):
        WeightedSampler([1, 2, 3], 0).load_state_dict(state)


@pytest.mark.parametrize(
    "weights", [[], [0, 0], [1, -1], [math.nan], [math.inf, 1], [1e308, 1e308]]
)
def test_weights_that_cannot_be_drawn_from(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weight"):
        WeightedSampler(weights, 0)
