"""Recognise texts that look like keys and passwords, so that they are not taught by accident.

A hint for the user, not a guard: it reads patterns and letter statistics, knows no service, and
prefers to miss a rare key over crying wolf at ordinary code.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import pairwise

_KINDS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("private key", re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----")),
    ("AWS access key", re.compile(r"\b(?:AKIA|ASIA)[A-Z2-7]{16}\b")),
    (
        "GitHub token",
        re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})"),
    ),
    ("GitLab token", re.compile(r"\bglpat-[A-Za-z0-9_-]{20,}")),
    ("Slack token", re.compile(r"\bxox[abeprs]-[A-Za-z0-9-]{10,}")),
    ("Stripe key", re.compile(r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,}")),
    ("API key", re.compile(r"\bsk-(?=[A-Za-z0-9_-]*\d)[A-Za-z0-9_-]{20,}")),
    ("Google API key", re.compile(r"\bAIza[A-Za-z0-9_-]{35}")),
    ("Hugging Face token", re.compile(r"\bhf_[A-Za-z0-9]{30,}")),
    (
        "web token (JWT)",
        re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"),
    ),
    ("password", re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s:/@]+:(?P<value>[^\s:/@]{4,})@")),
)

_ASSIGNMENT = re.compile(
    r"""(?:\b|_)(?P<name>pass(?:word|wd|phrase)|pwd|secret|token|(?:api|access|secret|auth)[_-]?key)
        ["']?\s*(?::=|=|:|\sis)\s*
        (?P<quote>["'`]?)(?P<value>[^\s"'`,;)]{4,})(?P=quote)""",
    re.IGNORECASE | re.VERBOSE,
)
_PLACEHOLDER = re.compile(
    r"(?:your|my|the|some|example|sample|dummy|fake|change|replace|insert|redacted|hidden|secret$|"
    r"pass(?:wd|word)?$|token$|x{3,}|\*{3,}|\.{3}|<|\$|%|\{|none$|null$|true$|false$|str$|string$|int$|"
    r"os\.|self\.|env|get|input|request|config|settings|required|optional|hunter2$)",
    re.IGNORECASE,
)
_LONG = re.compile(r"(?<![A-Za-z0-9+/=_.:@-])[A-Za-z0-9+/_-]{32,}={0,2}(?![A-Za-z0-9+/_-])")


def find_secrets(text: str) -> list[str]:
    """The kinds of secret a text seems to hold, each once, such as `AWS access key`.

    Recognised are the forms of well-known keys and tokens, private keys in PEM, passwords in
    addresses and assignments, and long random-looking words.
    """
    found: list[str] = []
    rest = text
    for kind, pattern in _KINDS:
        matches = [m for m in pattern.finditer(rest) if not _placeholder(m)]
        if matches:
            found.append(kind)
            rest = pattern.sub(" ", rest)
    for match in _ASSIGNMENT.finditer(rest):
        if not _placeholder(match) and _secretive(match["name"], match["value"], match["quote"]):
            kind = "password" if match["name"].lower().startswith(("pass", "pwd")) else "secret"
            if kind not in found:
                found.append(kind)
            rest = rest.replace(match["value"], " ")
    if any(_random(match[0]) for match in _LONG.finditer(rest)):
        found.append("long random token")
    return found


def redacted(text: str) -> str:
    """The text with `[kind]` in place of what has the form of a well-known key, of a password in an
    address, or of a secret that is assigned. Long random words stay: a log is full of checksums."""
    for kind, pattern in _KINDS:
        text = pattern.sub(lambda match, kind=kind: _hidden(match, kind), text)  # type: ignore[misc]
    return _ASSIGNMENT.sub(
        lambda match: (
            _hidden(match, "secret")
            if _secretive(match["name"], match["value"], match["quote"])
            else match[0]
        ),
        text,
    )


def _hidden(match: re.Match[str], kind: str) -> str:
    """A match with its value, or all of it, replaced."""
    if _placeholder(match):
        return match[0]
    value = match.groupdict().get("value")
    return match[0].replace(value, f"[{kind}]") if value else f"[{kind}]"


def _placeholder(match: re.Match[str]) -> bool:
    value = match.groupdict().get("value")
    return value is not None and _PLACEHOLDER.match(value) is not None


def _secretive(name: str, value: str, quote: str) -> bool:
    """Whether an assigned value reads like a secret rather than a word or an expression."""
    if re.search(r"[(\[]", value) or (not quote and re.fullmatch(r"[A-Za-z_.]+", value)):
        return False  # A call, an index, a variable, or a word of a sentence.
    if name.lower().startswith(("pass", "pwd")):
        return True
    return len(value) >= 8 and bool(re.search(r"\d", value))


def _random(word: str) -> bool:
    """Whether a long word has the letter statistics of base64 or hex rather than of a name."""
    core = word.rstrip("=")
    if not re.search(r"\d", core) or not re.search(r"[A-Za-z]", core):
        return False
    if re.fullmatch(r"[0-9a-fA-F-]+", core):
        return False  # Hashes, commit ids and UUIDs are everyday text.
    if len(re.findall(r"[/_-]", core)) > 3:
        return False  # Paths and slugs.
    if re.search(r"[a-z]{7,}|[A-Z]{8,}", core) and len(re.findall(r"\d+", core)) < 5:
        return False  # Words.
    switches = sum(_class(a) != _class(b) for a, b in pairwise(core))
    return _entropy(core) >= 4.0 and switches >= len(core) / 4


def _class(character: str) -> str:
    if character.isdigit():
        return "digit"
    return "upper" if character.isupper() else "lower" if character.islower() else "other"


def _entropy(word: str) -> float:
    """Shannon entropy of the letters, in bits."""
    counts = Counter(word).values()
    return -sum(n / len(word) * math.log2(n / len(word)) for n in counts)
