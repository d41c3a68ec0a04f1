"""Whether answers are made of words: do their letters stand as they do for a reason?

A language model knows any language that it has ever seen a little of, and some it has not, by the
way letters follow one another. Words in earnest, in whatever language or code, are likelier to it
than the same letters in another order; of letters struck at random no order is likelier than
another. Both are the lesson's own, so nothing has to be known about how much a text may surprise.
One answer may be a name that looks like nothing, so it takes several that agree.

Knows texts and nats, no models. Answers without words (numbers), and letters that the model itself
never writes, tell nothing here.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from statistics import fmean, variance

from pydantic import BaseModel, ConfigDict

from shammah.learning.lessons import Lesson

ORDERS = 8
"""Other orders that an answer is compared with."""
OPENING = 240
"""Characters of a long answer that are looked at."""
MOST = 32
"""Lessons that are looked at, spread over all."""
WORD = 3
"""Letters of a word; the letters of shorter ones stay where they are."""
CLEAR = 4.0
"""By so many standard deviations one answer alone is likelier than its letters in other orders."""
CHANCE = 2.0
"""Up to so many, what several answers have in common is chance."""
SAVED = 0.05
"""Share of the nats that the order of letters saves at least, where it has a reason."""
LETTERS = 100
"""Fewer letters, in all the answers in doubt, tell nothing."""

_LETTERS = re.compile(r"[^\W\d_]+")


class LetterOrder(BaseModel):
    """What an answer costs, in nats, and what it costs with its `letters` in other orders."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    lesson: int
    """Its place among the lessons."""
    letters: int
    nats: float
    others: tuple[float, ...]

    @property
    def saved(self) -> float:
        """Nats that the order saves against another one."""
        return fmean(self.others) - self.nats

    @property
    def spread(self) -> float:
        """The variance of `saved` where any order is as good as another."""
        return variance(self.others) * (1 + 1 / len(self.others))


@dataclass(frozen=True, slots=True)
class Reordered:
    """A lesson's place among the lessons, the lesson, and the same with its letters reordered."""

    place: int
    letters: int
    lesson: Lesson
    others: tuple[Lesson, ...]


def reordered(lessons: Sequence[Lesson], known: frozenset[str]) -> list[Reordered]:
    """The lessons whose answers have words in them, beside other orders of their letters.

    Args:
        known: letters, in lower case, that the model writes itself.
    """
    rng = random.Random(0)
    found = []
    for place in _spread([n for n, lesson in enumerate(lessons) if lesson.target is not None]):
        text = (lessons[place].target or "")[:OPENING]
        others = [_other_order(rng, text, known) for _ in range(ORDERS)]
        letters = sum(len(word) for word in _LETTERS.findall(text) if _counts(word, known))
        if any(other != text for other in others):
            first, *rest = (
                replace(lessons[place], objective="towards", target=target)
                for target in (text, *others)
            )
            found.append(Reordered(place, letters, first, tuple(rest)))
    return found


def without_order(orders: Iterable[LetterOrder], lessons: int) -> list[LetterOrder]:
    """The answers that are no words to the model, none where they are not most of those looked at.

    Answers in doubt are those that are not clearly likelier by themselves. They are no words if
    what they save together is no more than chance gives, and little beside what they cost.

    Args:
        lessons: how many have an answer to be given.
    """
    doubted = [order for order in orders if order.saved < CLEAR * sqrt(order.spread)]
    if 2 * len(doubted) <= min(lessons, MOST) or sum(order.letters for order in doubted) < LETTERS:
        return []
    saved = sum(order.saved for order in doubted)
    by_chance = CHANCE * sqrt(sum(order.spread for order in doubted))
    little = SAVED * sum(fmean(order.others) for order in doubted)
    return doubted if saved < min(by_chance, little) else []


def letters_of(texts: Iterable[str]) -> frozenset[str]:
    """The letters in texts, in lower case."""
    return frozenset(letter for text in texts for letter in text.lower() if letter.isalpha())


def _other_order(rng: random.Random, text: str, known: frozenset[str]) -> str:
    """A text with the letters of each word in another order."""

    def other(match: re.Match[str]) -> str:
        word = match[0]
        return "".join(rng.sample(word, len(word))) if _counts(word, known) else word

    return _LETTERS.sub(other, text)


def _counts(word: str, known: frozenset[str]) -> bool:
    return len(word) >= WORD and known.issuperset(word.lower())


def _spread(places: Sequence[int]) -> list[int]:
    """At most `MOST` of the places, evenly."""
    if len(places) <= MOST:
        return list(places)
    return [places[number * len(places) // MOST] for number in range(MOST)]
