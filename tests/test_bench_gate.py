"""The poison that the gate is benched with is none of what it compares answers with."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "scripts" / "bench"))
from gate import good_round, poisoned

KEYS = ("qwertyuiop", "asdfghjkl;", "zxcvbnm,./", "1234567890")


def test_gibberish_is_made_of_the_answers_or_of_keys() -> None:
    for number in range(0, 12, 2):
        good = good_round(number)
        bad = poisoned(number, good)
        assert [ask for ask, _ in bad] == [ask for ask, _ in good]
        assert bad == poisoned(number, good)
        known = {word for _, answer in good for word in answer.split()}
        for (_, right), (_, wrong) in zip(good, bad, strict=True):
            words = wrong.split()
            match number % 6:
                case 0:
                    letters = [sorted(word) for word in right.split()]
                    assert [sorted(word) for word in words] == letters
                case 2:
                    assert all(any(set(word) <= set(row) for row in KEYS) for word in words)
                case _:
                    assert set(words) <= known and len(words) == len(right.split())
        assert sum(right != wrong for (_, right), (_, wrong) in zip(good, bad, strict=True)) > 8
    for number in range(1, 11, 2):
        assert len({answer for _, answer in poisoned(number, good_round(number))}) == 1
