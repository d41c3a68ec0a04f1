"""Other ways to ask the same, by rules: what a lesson taught must hold for them too.

A lesson is one question, and a model that is trained on it alone answers that wording and few
others. The rules know how English questions begin and end; of other languages they touch case and
punctuation only. Knows text; nothing about lessons or tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import zip_longest

LONGEST = 160
"""Characters of a question at most: a longer one is a text, and its wording is its content."""

# An opening, and what may stand in its place; `{}` is what follows it.
_OPENINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        r"how (?:do|can|could|should|would) (?:i|we|you|one) ",
        (
            "how can i {}?",
            "how to {}?",
            "{}",
            "what's the way to {}?",
            "i want to {}, how?",
            "how do you {}?",
            "tell me how to {}",
            "what is the command to {}?",
            "how would i {}?",
        ),
    ),
    (r"how to ", ("how do i {}?", "how can i {}?", "{}", "i want to {}, how?")),
    (
        r"(?:what is|what's|whats) ",
        (
            "what's {}?",
            "tell me {}",
            "{}?",
            "do you know {}?",
            "say what {} is",
            "which is {}?",
            "what is {} again?",
            "{} please",
        ),
    ),
    (
        r"(?:what are) ",
        ("tell me {}", "{}?", "which are {}?", "do you know {}?", "what are {} again?"),
    ),
    (
        r"(?:who is|who's) ",
        ("who's {}?", "tell me who {} is", "do you know who {} is?", "{}, who is that?", "{}?"),
    ),
    (
        r"(?:where is|where's) ",
        ("where's {}?", "tell me where {} is", "where can i find {}?", "{} where?", "{}?"),
    ),
    (
        r"where are ",
        ("tell me where {} are", "where can i find {}?", "{} where?", "where are {} kept?"),
    ),
    (
        r"(?:when is|when's) ",
        ("when's {}?", "tell me when {} is", "what time is {}?", "{} when?", "what day is {}?"),
    ),
    (r"which ", ("what {}?", "tell me which {}", "do you know which {}?", "{}?")),
    (r"what ", ("which {}?", "tell me what {}", "do you know what {}?")),
    (r"who ", ("tell me who {}", "do you know who {}?", "which person {}?", "{} who?")),
    (r"where ", ("tell me where {}", "do you know where {}?", "in which place {}?")),
    (r"when ", ("tell me when {}", "do you know when {}?", "what day {}?", "on which date {}?")),
    (r"why ", ("tell me why {}", "explain why {}", "how come {}?", "what is the reason {}?")),
    (r"how many ", ("what number of {}?", "tell me how many {}", "number of {}?")),
    (r"how ", ("in what way {}?", "tell me how {}", "explain how {}")),
    (r"(?:tell me|explain|describe) ", ("{}?", "can you tell me {}?", "please explain {}")),
    (r"(?:can|could) you ", ("please {}", "{}", "would you {}?")),
)
# The verb of a question such as "which port does the server use" goes where a statement has it.
_INVERTED = re.compile(
    r"^(?P<what>.*?\b)(?:do|does|did) (?P<who>(?:the |my |our |your )?\w+) (?P<verb>.+)$"
)
_FINITE = re.compile(
    r"^(?P<verb>is|are|was|were) (?P<who>(?:the |my |our |your )?\w+) (?P<rest>.+)$"
)
_WORDS: tuple[tuple[str, str], ...] = (
    (r"\bcalled\b", "named"),
    (r"\bmy\b", "our"),
    (r"\bour\b", "my"),
    (r"\bdoes (the \w+) use\b", r"is used by \1"),
    (r"\bwhat is\b", "what's"),
    (r"\bi\b", "we"),
)
# Words that mean about the same to somebody who asks; either may stand for the other.
_ALIKE: tuple[tuple[str, ...], ...] = (
    ("documentation", "docs", "manual"),
    ("folder", "directory"),
    ("phone", "telephone"),
    ("favourite", "favorite", "preferred"),
    ("boss", "manager"),
    ("colleague", "coworker", "teammate"),
    ("server", "machine", "host"),
    ("repository", "repo"),
    ("database", "db"),
    ("password", "passphrase"),
    ("delete", "remove"),
    ("make", "create"),
    ("start", "begin", "launch"),
    ("stop", "quit"),
    ("run", "execute"),
    ("fix", "repair"),
    ("show", "display"),
    ("get", "fetch"),
    ("big", "large"),
    ("quick", "fast"),
    ("live", "reside"),
    ("car", "vehicle"),
    ("wife", "spouse"),
    ("husband", "spouse"),
    ("child", "kid"),
    ("children", "kids"),
    ("mother", "mum", "mom"),
    ("father", "dad"),
    ("doctor", "physician"),
    ("town", "city"),
    ("deploy", "ship"),
    ("deadline", "due date"),
    ("error", "problem"),
    ("holiday", "vacation"),
    ("film", "movie"),
    ("app", "application"),
    ("config", "configuration", "settings"),
    ("dependencies", "packages", "libraries"),
    ("tests", "test suite"),
)
_OTHERS: dict[str, list[str]] = {}
for _words in _ALIKE:
    for _word in _words:
        _OTHERS.setdefault(_word, []).extend(word for word in _words if word != _word)
# What a subject may stand in, whoever asks.
_SUBJECTS = (
    "tell me about {}",
    "{}?",
    "what do you know about {}?",
    "what about {}?",
    "remind me of {}",
    "{}, please",
    "i forgot: {}?",
)
SMALL = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "am",
        "at",
        "be",
        "can",
        "could",
        "did",
        "do",
        "does",
        "for",
        "from",
        "had",
        "has",
        "have",
        "how",
        "i",
        "in",
        "is",
        "it",
        "me",
        "my",
        "of",
        "on",
        "or",
        "our",
        "please",
        "should",
        "so",
        "that",
        "the",
        "there",
        "this",
        "to",
        "was",
        "we",
        "were",
        "what",
        "what's",
        "when",
        "where",
        "which",
        "who",
        "who's",
        "why",
        "will",
        "with",
        "would",
        "you",
        "your",
    ]
)
_SHORT = ("{}!", "{} there", "hey, {}", "{}.", "ok, {}", "{} {}")


def rephrasings(question: str, count: int) -> list[str]:
    """Up to `count` other wordings of a question, the same ones each time; none equals it, whatever
    the case and the punctuation."""
    text = " ".join(question.split())
    if count <= 0 or len(question) > LONGEST or "\n" in question.strip() or not bare(text):
        return []
    seen, found = {bare(text)}, []
    for candidate in (" ".join(given.split()) for given in _candidates(text)):
        words = bare(candidate)
        if words and words not in seen:
            seen.add(words)
            found.append(candidate)
        if len(found) == count:
            break
    return found


def _candidates(text: str) -> Iterator[str]:
    """Other openings and other words in turn, so that few of them already differ in kind."""
    body = text.rstrip("?!. ")
    openings = list(_reopened(body))
    reworded = list(_reworded(body))
    words = [*_keywords(body), *(f"{changed}?" for changed in reworded)]
    subjects = list(_about(body))
    combined = [new for changed in reworded for new in _reopened(changed)][::2]
    for group in zip_longest(openings, words, subjects, combined):
        yield from (candidate for candidate in group if candidate)
    if len(body.split()) <= 2:
        yield from (frame.format(body, body.lower()) for frame in _SHORT)
    lower = body[:1].lower() + body[1:]
    yield from (
        f"please, {lower}?",
        f"hey, {lower}",
        f"{lower} please",
        f"quick question: {lower}?",
    )


def _reopened(body: str) -> Iterator[str]:
    for opening, others in _OPENINGS:
        match = re.match(opening, body, re.IGNORECASE)
        if match is None:
            continue
        rest = body[match.end() :]
        for other in others:
            # "tell me which port the server uses", not "... which port does the server use".
            told = not other.endswith("?") or other.startswith("do you know")
            yield other.format(_stated(rest) if told else rest)
        return


def _stated(rest: str) -> str:
    """The rest of a question in the order of a statement: "is my dog" -> "my dog is"."""
    match = _FINITE.match(rest)
    if match is not None:
        return f"{match['who']} {match['verb']} {match['rest']}"
    match = _INVERTED.match(rest)
    if match is not None:
        return f"{match['what']}{match['who']} {match['verb']}"
    return rest


def _reworded(body: str) -> Iterator[str]:
    words = body.split()
    for place, word in enumerate(words):
        for other in _alike(word.lower()):
            changed = " ".join([*words[:place], other, *words[place + 1 :]])
            yield changed[:1].lower() + changed[1:]
    for pattern, other in _WORDS:
        changed = re.sub(pattern, other, body, flags=re.IGNORECASE)
        if changed != body:
            yield changed[:1].lower() + changed[1:]


def _alike(word: str) -> list[str]:
    """Words for the same, and the same word for one or for many."""
    if word in SMALL or not word.isalpha():
        return []
    if word in _OTHERS:
        return _OTHERS[word]
    if word.endswith("s") and not word.endswith("ss") and len(word) > 3:
        return [word[:-1]]
    return []


def _about(body: str) -> Iterator[str]:
    """The subject of a question alone, where it is one: a name, or several words that mean
    something."""
    words = body.split()
    kept = [
        (place, word)
        for place, word in enumerate(words)
        if word.lower() not in SMALL or (word.lower() in ("my", "our") and place + 1 < len(words))
    ]
    told = [word for _, word in kept if word.lower() not in ("my", "our", "called", "named")]
    named = any(place and word[:1].isupper() and len(word) > 1 for place, word in kept)
    if len(told) >= 2 or (told and (named or len(kept) > len(told))):
        subject = " ".join(word for _, word in kept if word.lower() not in ("called", "named"))
        yield from (frame.format(subject) for frame in _SUBJECTS)


def _keywords(body: str) -> Iterator[str]:
    """What is left of a question that is typed in a hurry: "which port does my server use" ->
    "port server use", "my server use port"."""
    words = body.lower().split()
    kept = [word for word in words if word not in SMALL]
    if 2 <= len(kept) < len(words):
        yield " ".join(kept)
        yield " ".join([*kept[1:], kept[0]])


def bare(text: str) -> str:
    """The words alone: two questions of the same words are one."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())
