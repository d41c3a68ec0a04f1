"""Scorers that look at the letters: 1 where they fit, else 0.

Knows nothing of what a text means. Blanks around a text never count.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from shammah.errors import InputError, UsageError
from shammah.evaluation.scorer import Score, wanted


class ExactMatch:
    """Whether the output is the target, letter by letter."""

    name = "exact_match"

    async def score(self, output: str, target: str, metadata: Mapping[str, Any]) -> Score:
        return Score(float(output.strip() == wanted(target, self.name).strip()))


class CaseInsensitive:
    """Whether the output is the target but for upper and lower case."""

    name = "case_insensitive"

    async def score(self, output: str, target: str, metadata: Mapping[str, Any]) -> Score:
        same = output.strip().casefold() == wanted(target, self.name).strip().casefold()
        return Score(float(same))


class Contains:
    """Whether the target stands in the output.

    Args:
        ignore_case: whether upper and lower case are one.
        words: whether it must stand by itself, not within a word.
    """

    name = "contains"

    def __init__(self, *, ignore_case: bool = False, words: bool = False) -> None:
        self._ignore_case = ignore_case
        self._words = words

    async def score(self, output: str, target: str, metadata: Mapping[str, Any]) -> Score:
        text, part = output, wanted(target, self.name).strip()
        if self._ignore_case:
            text, part = text.casefold(), part.casefold()
        if self._words:
            found = re.search(rf"(?<!\w){re.escape(part)}(?!\w)", text)
            at = found.start() if found else -1
        else:
            at = text.find(part)
        return Score(float(at >= 0), {"at": at} if at >= 0 else {})


class Regex:
    """Whether a regular expression (Python's) is found in the output.

    Args:
        pattern: the expression; None takes each example's target.
        whole: whether it must fit all of the output.
        ignore_case: whether upper and lower case are one.

    Raises:
        UsageError: the expression is none.
    """

    name = "regex"

    def __init__(
        self, pattern: str | None = None, *, whole: bool = False, ignore_case: bool = False
    ) -> None:
        self._flags = re.IGNORECASE if ignore_case else 0
        self._whole = whole
        self._pattern: re.Pattern[str] | None = None
        if pattern is not None:
            try:
                self._pattern = re.compile(pattern, self._flags)
            except re.error as error:
                raise UsageError(f"{pattern!r} is no regular expression: {error}.") from error

    async def score(self, output: str, target: str, metadata: Mapping[str, Any]) -> Score:
        pattern = self._pattern
        if pattern is None:
            try:
                pattern = re.compile(wanted(target, self.name).strip(), self._flags)
            except re.error as error:
                raise InputError(
                    f"The target {target!r} is no regular expression: {error}."
                ) from error
        text = output.strip()
        found = pattern.fullmatch(text) if self._whole else pattern.search(text)
        return Score(float(found is not None), {"found": found[0]} if found else {})
