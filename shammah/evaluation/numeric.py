"""Scores an answer by its number: that of a line `#### 42`, of `\\boxed{42}`, of words such as "the
answer is 42", or the last one in the text.

Numbers are compared as fractions, so that 0.1 is a tenth. Knows nothing of units.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from shammah.datasets.formatters.gsm8k import final_number
from shammah.errors import InputError, UsageError
from shammah.evaluation.scorer import Score, wanted

Place = Literal["final_line", "boxed", "said", "last"]

_NUMBER = (
    r"(?<![\w.])[-+−]?(?:[$€£]\s?)?[-−]?"
    r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3})?(?:/\d+)?(?!\d)"
)
_ANY = re.compile(_NUMBER)
_LINE = re.compile(rf"####\s*(?P<number>{_NUMBER})")
_BOXED = re.compile(r"\\boxed\s*\{(?P<number>[^{}]*)\}")
_SAID = re.compile(
    rf"\banswer\b(?:\s+is|\s*[:=])(?:\s*[:=])?[\s*_`(]*(?P<number>{_NUMBER})"
    # The first number of a sum is not what it comes to.
    r"(?![\d.,]*\d)(?!\s*[-−+*×x/÷^=]\s*[\d$(])",
    re.IGNORECASE,
)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}")


@dataclass(frozen=True, slots=True)
class FoundNumber:
    """A number in a text, as it is written there, and by what it was found."""

    value: Fraction
    text: str
    place: Place


class Numeric:
    """Whether the output's number is the target's.

    They are equal where they differ by at most `absolute`, or by at most `relative` times the
    target's size.

    Args:
        absolute: at least 0.
        relative: at least 0.
        final_line: count only a number behind `####`, as the data set GSM8K marks it.

    Raises:
        UsageError: a tolerance is negative or not finite.
    """

    name = "numeric"

    def __init__(
        self, *, absolute: float = 1e-9, relative: float = 0.0, final_line: bool = False
    ) -> None:
        for name, value in (("absolute", absolute), ("relative", relative)):
            if not 0.0 <= value < float("inf"):
                raise UsageError(f"The tolerance {name} cannot be {value}.")
        # By what is written: 0.01 is a hundredth, not the float next to it.
        self._absolute = Fraction(str(absolute))
        self._relative = Fraction(str(relative))
        self._final_line = final_line

    async def score(self, output: str, target: str, metadata: Mapping[str, Any]) -> Score:
        expected = final_answer(wanted(target, self.name))
        if expected is None:
            raise InputError(f"There is no number in the target {target[:80]!r}.")
        found = final_answer(output)
        if found is not None and self._final_line and found.place != "final_line":
            found = None
        if found is None:
            return Score(0.0, {"found": None, "expected": expected.text})
        distance = abs(found.value - expected.value)
        right = distance <= max(self._absolute, self._relative * abs(expected.value))
        detail = {"found": found.text, "place": found.place, "expected": expected.text}
        return Score(float(right), detail)


def final_answer(text: str) -> FoundNumber | None:
    """The number that a text comes to; None where it has none. A fraction of LaTeX is one."""
    ending = final_number(text)
    value = None if ending is None else _value(ending)
    if ending is not None and value is not None:
        return FoundNumber(value, ending, "final_line")
    text = _FRACTION.sub(r"\1/\2", text).replace("{,}", ",")
    for pattern, place in _PLACES:
        for found in reversed(list(pattern.finditer(text))):
            written = found["number"] if pattern.groups else found[0]
            if place == "boxed":
                inner = list(_ANY.finditer(written))
                if not inner:
                    continue
                written = inner[-1][0]
            value = _value(written)
            if value is not None:
                return FoundNumber(value, written.strip(), place)
    return None


_PLACES: tuple[tuple[re.Pattern[str], Place], ...] = (
    (_LINE, "final_line"),
    (_BOXED, "boxed"),
    (_SAID, "said"),
    (_ANY, "last"),
)


def _value(written: str) -> Fraction | None:
    """None for a division by zero, or digits without end."""
    above, _, below = re.sub(r"[\s,$€£]", "", written).replace("−", "-").partition("/")
    try:
        return Fraction(above) / Fraction(below or 1)
    except (ValueError, ZeroDivisionError):
        return None
