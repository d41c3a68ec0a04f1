"""Whether an answer was rewritten as a note asked, by words and signs alone.

Knows no model, and cannot tell whether the new answer is still true.
"""

from __future__ import annotations

import re
from collections.abc import Callable

ON_TOPIC = 0.1
"""Share of the second answer's words, the longer ones where it has several, that the question or
the first answer must hold."""
LONG = 7
"""Letters of a word that may be jargon."""

Rule = Callable[[str, str], bool]
"""Whether the second answer, after the first, is as the note asked."""


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _prose(text: str) -> str:
    """A text without what stands in code."""
    return re.sub(r"`[^`]*`", " ", re.sub(r"```.*?(```|$)", " ", text, flags=re.DOTALL))


def _example(first: str, second: str) -> bool:
    """More code set apart, or more numbers, commands and examples in the text."""
    marks = r"`[^`]+`|\d+|for example|for instance|such as|example"
    apart = second.count("```") - first.count("```")
    within = len(re.findall(marks, second)) - len(re.findall(marks, first))
    return apart > 0 or (apart == 0 and within > 0)


def _simple(first: str, second: str) -> bool:
    """No code, and no more than half of the long words of before."""
    long = {word for word in _words(_prose(first)) if len(word) >= LONG}
    return "`" not in second and 2 * len(long & {*_words(second)}) <= len(long)


_HANDLED = r"\btry\b|except|raise|\|\||set -e|rollback|on conflict|error|fail|timeout|exit 1"

RULES: dict[str, Rule] = {
    "shorter": lambda first, second: len(_words(second)) < len(_words(first)),
    "more": lambda first, second: len(_words(second)) > len(_words(first)),
    "one": lambda first, second: (
        "\n" not in second and len(re.findall(r"[.!?](?=\s|$)", _prose(second))) <= 1
    ),
    "example": _example,
    "code": lambda first, second: "`" in second and len(_words(_prose(second))) == 0,
    "jargon": _simple,
    "errors": lambda first, second: (
        len(re.findall(_HANDLED, second.lower())) > len(re.findall(_HANDLED, first.lower()))
    ),
    "types": lambda first, second: (
        len(re.findall(r"->|\w: ?[a-z]\w+", second)) > len(re.findall(r"->|\w: ?[a-z]\w+", first))
    ),
}


def as_asked(kind: str, question: str, first: str, second: str) -> bool:
    """Whether the second answer is another one, of the same matter, and as the note asked."""
    known = {*_words(question), *_words(first)}
    words = [word for word in _words(second) if len(word) > 3]
    words = words if len(words) > 3 else _words(second)
    same_matter = sum(word in known for word in words) >= ON_TOPIC * len(words) > 0
    gave_up = "/correct" in second and "/correct" not in first
    return second != first and same_matter and not gave_up and RULES[kind](first, second)
