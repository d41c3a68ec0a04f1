"""Curves as text: as wide as there is room, and where the values say."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from shammah.tracking.plot import ASCII_BARS, BARS, number_text, plot, spark

FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.lists(FINITE, min_size=1, max_size=60),
    st.integers(20, 150),
    st.integers(1, 12),
    st.booleans(),
)
def test_no_line_is_wider_than_the_terminal(
    values: list[float], width: int, height: int, unicode: bool
) -> None:
    text = plot(
        "loss", list(range(len(values))), values, width=width, height=height, unicode=unicode
    )
    lines = text.split("\n")
    assert len(lines) == height + 2 and max(map(len, lines)) <= width
    if not unicode:
        assert text.isascii()


def test_a_falling_line_falls() -> None:
    text = plot("x", [1, 2, 3, 4], [3.0, 2.0, 1.0, 0.0], width=15 + 5, height=4, unicode=False)
    # Nine columns of curve: a place for each, and lines between.
    rows = [line[11:] for line in text.split("\n")[1:-1]]
    firsts = [row.index("*") for row in rows]
    assert firsts == sorted(firsts) and rows[0].startswith("*") and rows[-1].endswith("*")
    assert text.split("\n")[1].startswith("        3 |") and text.endswith("1       4")


def test_braille_dots_are_where_the_values_are() -> None:
    text = plot("x", [0, 17], [0.0, 1.0], width=20, height=1)
    cells = text.split("\n")[1][11:]
    assert cells[0] == chr(0x2800 + 0x40 + 0x80) and cells[-1] == chr(0x2800 + 0x01 + 0x08)
    assert plot("x", [5], [2.0], width=20).count("⠀") == 0


def test_colours_only_where_asked() -> None:
    assert "\x1b" not in plot("x", [1, 2], [1.0, 2.0], width=40)
    assert "\x1b[36m" in plot("x", [1, 2], [1.0, 2.0], width=40, coloured=True)


@given(st.lists(st.floats(), max_size=200), st.integers(1, 60), st.booleans())
def test_a_spark_line_fits(values: list[float], width: int, blocks: bool) -> None:
    line = spark(values, width, blocks=blocks)
    assert len(line) == min(len(values), width)
    assert set(line) <= set((BARS if blocks else ASCII_BARS) + " ")


def test_a_spark_line_goes_as_the_values_do() -> None:
    assert spark([0, 1, 2, 3, 4, 5, 6, 7], 8, blocks=True) == BARS
    assert spark([1.0, math.nan, 1.0], 8, blocks=True) == "▄ ▄"


@given(st.floats() | st.integers(-(10**12), 10**12))
def test_numbers_are_short_and_true(value: float) -> None:
    text = number_text(value)
    assert len(text) <= 9
    if abs(value) < 1e300:
        assert math.isclose(float(text), value, rel_tol=5e-2 if len(f"{value:.2e}") > 9 else 6e-3)
