"""Answers that are graphs of claims: what is written, and where.

A claim is a line `CLAIM[c1]: text`; a relation is a line `RELATION: c2 supports c1`, or `refutes`.
Everything else is prose, which is passed over. Knows text, no model and no score.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast

Label = Literal["supports", "refutes"]
LABELS: tuple[Label, ...] = ("supports", "refutes")

_LEAD = r"^[ \t]*(?:(?:[-*•]|\d+[.)])[ \t]*)?\**"
_CLAIM = re.compile(_LEAD + r"CLAIM\b(?P<rest>[^\n]*)$", re.MULTILINE)
_CLAIM_REST = re.compile(
    r"[ \t]*\[[ \t]*(?P<id>[^\s\[\]]+)[ \t]*\]\**[ \t]*:\**[ \t]*(?P<text>.*\S)"
)
_RELATION = re.compile(_LEAD + r"RELATION\b(?P<rest>[^\n]*)$", re.MULTILINE)
_RELATION_REST = re.compile(
    r"\**[ \t]*:\**[ \t]*\[?(?P<source>[^\s\[\]]+?)\]?[ \t]+(?P<label>\w+)[ \t]+"
    r"\[?(?P<target>[^\s\[\]]*[^\s\[\].;])\]?[ \t.;]*"
)


@dataclass(frozen=True, slots=True)
class Claim:
    """`span` is where its line stands in the text: first character and the one after the last."""

    id: str
    text: str
    span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Relation:
    """`source` supports or refutes `target`, both the ids of claims. `span` is where its line
    stands; `label_span` and `target_span` where those two words do."""

    source: str
    label: Label
    target: str
    span: tuple[int, int]
    label_span: tuple[int, int]
    target_span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class ClaimGraph:
    """Claims, with ids that differ, and relations between them, in their order.

    `problems` says of each line that looks like one and is none what is wrong with it.
    """

    claims: tuple[Claim, ...]
    relations: tuple[Relation, ...]
    problems: tuple[str, ...] = ()


def parse_claims(text: str) -> ClaimGraph:
    """The claims and relations of a text.

    A claim that is said again under the same id, a relation to a claim that is not there and a
    label that is not known are left out and become problems; a relation that is said again is left
    out.
    """
    problems: list[str] = []
    claims: dict[str, Claim] = {}
    for line in _CLAIM.finditer(text):
        found = _CLAIM_REST.match(line["rest"])
        if found is None:
            # Prose may begin with the word; a claim has a bracket or a colon.
            if line["rest"].lstrip(" \t*").startswith(("[", ":")):
                problems.append(f"{_quoted(line)} is not CLAIM[id]: text")
        elif found["id"] in claims:
            problems.append(f"the claim {found['id']} is there twice")
        else:
            claims[found["id"]] = Claim(found["id"], found["text"], line.span())
    relations: dict[tuple[str, str, str], Relation] = {}
    for line in _RELATION.finditer(text):
        found = _RELATION_REST.fullmatch(line["rest"])
        if found is None:
            if line["rest"].lstrip(" \t*").startswith(":"):
                problems.append(f"{_quoted(line)} is not RELATION: id supports id")
            continue
        source, label, target = found["source"], found["label"].lower(), found["target"]
        missing = [name for name in dict.fromkeys((source, target)) if name not in claims]
        if label not in LABELS:
            problems.append(f"{_quoted(line)} neither supports nor refutes")
        elif missing:
            problems.append(f"{_quoted(line)} names {' and '.join(missing)}, which is no claim")
        else:
            at = line.start("rest")
            relation = Relation(
                source,
                cast(Label, label),
                target,
                line.span(),
                (at + found.start("label"), at + found.end("label")),
                (at + found.start("target"), at + found.end("target")),
            )
            relations.setdefault((source, label, target), relation)
    return ClaimGraph(tuple(claims.values()), tuple(relations.values()), tuple(problems))


def _quoted(line: re.Match[str]) -> str:
    return repr(line[0].strip()[:80])
