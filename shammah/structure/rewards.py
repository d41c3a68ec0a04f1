"""What a structured answer is worth, as a number to be reinforced by.

The exact scores of a text that was sampled; for the soft terms that have a gradient see
`training.losses.structured`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from shammah.structure.citations import CITATION, citation_measures, cited_ids
from shammah.structure.claims import parse_claims
from shammah.structure.graph import Betti, chirality_loss, coverage, topological_loss


def topological_reward(text: str, wanted: Betti) -> float:
    """1 - the topological loss, which is 1 for a consistent graph of the wanted shape and has no
    lower end; 0 of an answer without claims.

    Raises:
        InputError: the wanted shape has no claim.
        UsageError: networkx is not installed.
    """
    graph = parse_claims(text)
    return 1.0 - topological_loss(graph, wanted) if graph.claims else 0.0


def chirality_reward(
    text: str,
    wanted: float = 0.0,
    sides: Sequence[Collection[str]] = (),
    pattern: re.Pattern[str] | str = CITATION,
) -> float:
    """(1 - (skew - wanted)^2 / 4) times the coverage: 1 where the answer leans as it should and
    cites all documents of the side that it cites least of; 0 without relations.

    Args:
        wanted: skew, between -1 and 1.
        sides: the documents that speak for, and those that speak against.

    Raises:
        InputError: `wanted` is no skew.
    """
    graph = parse_claims(text)
    bent = chirality_loss(graph, wanted)
    if not graph.relations:
        return 0.0
    return (1.0 - bent / 4.0) * coverage(cited_ids(text, pattern), sides)


def citation_reward(
    text: str,
    gold: Collection[str],
    shown: Collection[str],
    *,
    invalid_weight: float = 1.0,
    pattern: re.Pattern[str] | str = CITATION,
) -> float:
    """F1 of the cited documents against `gold`, minus `invalid_weight` times the share of those
    cited that were not shown."""
    cited = cited_ids(text, pattern)
    right = sum(each in set(gold) for each in cited)
    invalid = sum(each not in set(shown) for each in cited)
    measures = citation_measures(len(cited), len(set(gold)), right, invalid)
    return measures["f1"] - invalid_weight * measures["invalid_rate"]
