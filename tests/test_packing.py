"""Packing a stream: nothing lost, little held, and about as tight as packing a list."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from shammah.training.packing import pack, pack_stream


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 80), st.integers(1, 12))
@settings(deadline=None)
def test_packing_a_stream_loses_nothing_and_holds_little(
    lengths: list[int], budget: int, window: int
) -> None:
    read = 0

    def items() -> Iterator[list[int]]:
        nonlocal read
        for number, length in enumerate(lengths):
            read += 1
            yield [number] * length

    given_out: list[int] = []
    for pack_ in pack_stream(items(), budget, window=window):
        assert read - len(given_out) <= window
        tokens = [token for item in pack_.items for token in item]
        assert len(tokens) <= budget or len(pack_.items) == 1
        edges = itertools.pairwise(pack_.boundaries)
        assert [tokens[start:end] for start, end in edges] == list(pack_.items)
        given_out += [item[0] for item in pack_.items]
    assert sorted(given_out) == list(range(len(lengths)))


def test_packing_a_stream_is_nearly_as_tight_as_packing_a_list() -> None:
    random = Random(3)
    lengths = [int(random.lognormvariate(5, 0.7)) + 1 for _ in range(4000)]
    packs = list(pack_stream(lengths, 2048, length=int))
    assert len(packs) <= 1.02 * len(pack(lengths, 2048))
