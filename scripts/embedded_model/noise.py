"""Typing slips in questions: lower case, lost question marks, swapped letters, short forms.

Works on text alone. A protected span (a name or number that an answer has to repeat) is never
touched, because the answer must copy what was typed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

_WORD = re.compile(r"[A-Za-z]{4,}")
_SHORT_FORMS = (
    ("please", "pls"),
    ("you", "u"),
    ("are", "r"),
    ("what is", "whats"),
    ("what is", "what's"),
    ("i am", "im"),
    ("i'm", "im"),
    ("don't", "dont"),
    ("does not", "doesnt"),
    ("can't", "cant"),
    ("because", "cuz"),
    ("thanks", "thx"),
    ("how do i", "how 2"),
    ("difference", "diff"),
    ("directory", "dir"),
)
_PREFIXES = (
    "hey, ",
    "hi, ",
    "ok, ",
    "ok so ",
    "so, ",
    "please: ",
    "quick question: ",
    "one more thing: ",
    "question: ",
    "um, ",
    "and ",
    "sorry, ",
    "tell me: ",
    "i was wondering, ",
    "now, ",
    "next: ",
)
_SUFFIXES = (" please", " pls", ", please", " thanks", "?!", "??", " ?", ".", " exactly?")


def typed(text: str, rng: random.Random, *, keep: tuple[str, ...] = ()) -> str:
    """The text as somebody might type it. Strings in `keep` come out as they are."""
    if rng.random() < 0.12:
        text = rng.choice(_PREFIXES) + text
    if rng.random() < 0.06:
        text = text.rstrip("?") + rng.choice(_SUFFIXES)
    if rng.random() < 0.3 and text.endswith("?"):
        text = text[:-1]
    if rng.random() < 0.45 and text[:1].islower() and not text.startswith(keep):
        text = text[0].upper() + text[1:]
    elif rng.random() < 0.2:
        text = _outside(text, keep, str.lower)
    if rng.random() < 0.07:
        long, short = rng.choice(_SHORT_FORMS)
        text = _outside(text, keep, lambda part: re.sub(rf"\b{long}\b", short, part))
    if rng.random() < 0.10:
        text = _slip(text, rng, keep)
    return text


def _outside(text: str, keep: tuple[str, ...], change: Callable[[str], str]) -> str:
    """Apply a change to everything but the protected strings."""
    if not keep:
        return change(text)
    parts = re.split("(" + "|".join(re.escape(word) for word in keep) + ")", text)
    return "".join(part if part in keep else change(part) for part in parts)


def _slip(text: str, rng: random.Random, keep: tuple[str, ...]) -> str:
    """One letter swapped with its neighbour, dropped or doubled, inside a word of four or more."""
    spans = [
        match.span()
        for match in _WORD.finditer(text)
        if not any(match.group() in word or word in match.group() for word in keep)
    ]
    if not spans:
        return text
    start, end = rng.choice(spans)
    at = rng.randrange(start + 1, end - 1)
    kind = rng.randrange(3)
    if kind == 0:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    if kind == 1:
        return text[:at] + text[at + 1 :]
    return text[:at] + text[at] + text[at:]
