"""Other words for the same question: synonyms, left-out little words.

The grammars hold what a writer thought of; this widens them at no cost. Only words that change
nothing are touched (`scripts/corpus/synonyms.toml`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

_SYNONYM, _DROP = 0.25, 0.10
"""How often a question gets another word, and how often it loses little ones."""


class Wording:
    """Draws another wording of a question.

    Args:
        groups: words or phrases that may stand for one another.
        dropped: words that may be left out.
    """

    def __init__(self, groups: Iterable[tuple[str, ...]], dropped: Iterable[str]) -> None:
        self._others: dict[str, list[str]] = {}
        for group in groups:
            for word in group:
                others = [other for other in group if other != word]
                self._others.setdefault(word, []).extend(others)
        self._dropped = frozenset(dropped)
        longest_first = sorted(self._others, key=len, reverse=True)
        self._known = re.compile(
            r"(?<![\w/.`-])(" + "|".join(map(re.escape, longest_first)) + r")(?![\w(.`-])"
        )

    def other(self, question: str, rng: random.Random) -> str:
        """The question, now and then with a synonym in it, now and then without little words."""
        if rng.random() < _SYNONYM:
            found = list(self._known.finditer(question))
            if found:
                match = rng.choice(found)
                word = rng.choice(self._others[match.group()])
                question = question[: match.start()] + word + question[match.end() :]
        if rng.random() < _DROP:
            question = self._shorten(question, rng)
        return question

    def _shorten(self, question: str, rng: random.Random) -> str:
        words = question.split(" ")
        kept = [word for word in words if word not in self._dropped or rng.random() < 0.5]
        # What is left must still be a question about something.
        return " ".join(kept) if len(kept) > 2 else question
