"""Answers that are graphs of claims, and how far such a graph contradicts itself.

A claim is a line `CLAIM[c1]: text`; a relation is a line `RELATION: c2 supports c1`, or `refutes`.
Everything else is prose, which is passed over. Knows text and graphs, no model and no loss.

Of V claims and E related pairs, whatever the direction and number of the relations between two:
b0 is the number of connected components and b1 = E - V + b0 that of independent cycles.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, cast

from shammah.errors import InputError
from shammah.evaluation.libraries import library

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


@dataclass(frozen=True, slots=True)
class Betti:
    """The shape of a graph of V claims: connected components and independent cycles."""

    claims: int
    b0: int
    b1: int


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


def betti(graph: ClaimGraph) -> Betti:
    """The shape of a graph. A claim that is related to itself is a cycle.

    Raises:
        UsageError: networkx is not installed.
    """
    pairs = _networkx().Graph()
    pairs.add_nodes_from(claim.id for claim in graph.claims)
    pairs.add_edges_from((relation.source, relation.target) for relation in graph.relations)
    claims, edges = pairs.number_of_nodes(), pairs.number_of_edges()
    components = _networkx().number_connected_components(pairs) if claims else 0
    return Betti(claims, components, edges - claims + components)


def circular(graph: ClaimGraph) -> frozenset[str]:
    """The claims on a directed cycle of supports: they come to support themselves.

    Raises:
        UsageError: networkx is not installed.
    """
    supports = _supports(graph)
    return frozenset(
        claim
        for component in _networkx().strongly_connected_components(supports)
        for claim in component
        if len(component) > 1 or supports.has_edge(claim, claim)
    )


def contradictory(graph: ClaimGraph) -> frozenset[str]:
    """The claims that come to support both ends of a refutes relation. What a claim supports is
    itself, what it says so of, and what that supports.

    Raises:
        UsageError: networkx is not installed.
    """
    supports, ancestors = _supports(graph), _networkx().ancestors
    found: set[str] = set()
    for relation in graph.relations:
        if relation.label == "refutes":
            left, right = (
                {end, *ancestors(supports, end)} for end in (relation.source, relation.target)
            )
            found |= left & right
    return frozenset(found)


def consistency(graph: ClaimGraph) -> float:
    """1 minus the share of claims that are circular or contradictory; 1 without claims.

    Raises:
        UsageError: networkx is not installed.
    """
    if not graph.claims:
        return 1.0
    return 1.0 - len(circular(graph) | contradictory(graph)) / len(graph.claims)


def topological_loss(graph: ClaimGraph, wanted: Betti) -> float:
    """(|b0 - b0*| + |b1 - b1*|) / V* + 1 - consistency: 0 for a consistent graph of the wanted
    shape, without an upper end.

    Raises:
        InputError: the wanted shape has no claim.
        UsageError: networkx is not installed.
    """
    if wanted.claims < 1:
        raise InputError("A graph without claims is no shape to compare with.")
    own = betti(graph)
    distance = abs(own.b0 - wanted.b0) + abs(own.b1 - wanted.b1)
    return distance / wanted.claims + 1.0 - consistency(graph)


def _supports(graph: ClaimGraph) -> Any:
    supports = _networkx().DiGraph()
    supports.add_nodes_from(claim.id for claim in graph.claims)
    supports.add_edges_from(
        (relation.source, relation.target)
        for relation in graph.relations
        if relation.label == "supports"
    )
    return supports


def _networkx() -> Any:
    return library("networkx", "a graph of claims")


def _quoted(line: re.Match[str]) -> str:
    return repr(line[0].strip()[:80])
