"""Questions that look like a lesson's and ask something else, by rules.

Who teaches "What is my project called?" does not want "What is a project?" answered otherwise. Such
questions are what a lesson changes first, and few of them are among a model's anchors. Knows text;
the rules are for English, of other languages nothing is found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from shammah.learning.rephrasing import SMALL, bare, rephrasings

_THING = re.compile(
    r"\b(?:my|our|the|a|an|which|what)\b(?=((?:\s+[a-z][\w-]*){1,3}))", re.IGNORECASE
)
_OTHERS = ("sister", "bicycle", "garden", "printer")
"""What else somebody may have."""
_DOING = re.compile(
    r"(?:use|used|called|named|live|work|run|start|begin|need|like|keep|write|make|go|do|get|take)s?"
)
MOST_WORDINGS = 20


def near_misses(question: str, count: int, taught: Sequence[str] = ()) -> list[str]:
    """Up to `count` of them, the same ones each time; none asks what is `taught`.

    Args:
        question: of a lesson, which is never among them in any of its wordings.
        taught: questions of all lessons.
    """
    if count <= 0 or "\n" in question.strip():
        return []
    left_out = set[str]().union(*map(_wordings, (question, *taught)))
    found: list[str] = []
    for candidate in _candidates(question.strip().rstrip("?!. ")):
        if bare(candidate) not in left_out:
            left_out.add(bare(candidate))
            found.append(candidate)
        if len(found) == count:
            break
    return found


def _candidates(body: str) -> Iterator[str]:
    things = [thing for match in _THING.finditer(body) if (thing := _thing(match[1]))]
    for thing in things:
        yield f"what is {_one(thing)}?"
    of_yours = re.sub(r"\bmy\b", "your", body, flags=re.IGNORECASE)
    if of_yours != body:
        yield f"{of_yours}?"
    for thing in things:
        owned = re.search(rf"\bmy {re.escape(thing)}\b", body, re.IGNORECASE)
        if owned is not None:
            other = _OTHERS[sum(map(ord, thing)) % len(_OTHERS)]
            yield f"{body[: owned.start()]}my {other}{body[owned.end() :]}?"


@lru_cache(maxsize=1024)  # each lesson is looked at beside every other
def _wordings(question: str) -> frozenset[str]:
    return frozenset(map(bare, (question, *rephrasings(question, MOST_WORDINGS))))


def _thing(words: str) -> str:
    """The noun that a run of words begins with, as far as that can be told."""
    kept: list[str] = []
    for word in words.split():
        if word.lower() in SMALL or _DOING.fullmatch(word.lower()):
            break
        kept.append(word)
    return " ".join(kept[:2])


def _one(thing: str) -> str:
    """One of what may be many, with its article."""
    one = thing.lower()
    if one.endswith("s") and not one.endswith(("ss", "us", "is")):
        one = one[:-1]
    return f"{'an' if one[0] in 'aeio' else 'a'} {one}"
