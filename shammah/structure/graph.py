"""The shape of a graph of claims, how far it contradicts itself, and to which side it leans.

Of V claims and E related pairs, whatever the direction and number of the relations between two:
b0 is the number of connected components and b1 = E - V + b0 that of independent cycles. Of S+
relations that support and S- that refute, the skew is (S+ - S-) / (S+ + S-), and 0 of none. Knows
graphs, no text and no model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from shammah.errors import InputError
from shammah.libraries import library
from shammah.structure.claims import ClaimGraph


@dataclass(frozen=True, slots=True)
class Betti:
    """The shape of a graph of V claims: connected components and independent cycles."""

    claims: int
    b0: int
    b1: int


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


def skew(graph: ClaimGraph) -> float:
    """(S+ - S-) / (S+ + S-): 1 where all relations support, -1 where all refute, 0 of none."""
    signs = [1 if relation.label == "supports" else -1 for relation in graph.relations]
    return sum(signs) / len(signs) if signs else 0.0


def balance(graph: ClaimGraph) -> float:
    """1 - |skew|: 1 where both sides are heard alike."""
    return 1.0 - abs(skew(graph))


def chirality_loss(graph: ClaimGraph, wanted: float) -> float:
    """(skew - wanted)^2.

    Raises:
        InputError: `wanted` is no skew.
    """
    if not -1.0 <= wanted <= 1.0:
        raise InputError(f"A skew is between -1 and 1, not {wanted}.")
    return (skew(graph) - wanted) ** 2


def coverage(cited: Collection[str], sides: Sequence[Collection[str]]) -> float:
    """The least, over sides, share of a side's documents that are cited; sides without documents
    are passed over, and without any it is 1."""
    named = set(cited)
    shares = [len(named & set(side)) / len(set(side)) for side in sides if side]
    return min(shares, default=1.0)


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
