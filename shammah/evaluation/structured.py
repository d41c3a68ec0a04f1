"""Scorers of answers that have a structure: cited documents, and graphs of claims.

Knows the metadata's fields that it is told of, no data set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from shammah.errors import InputError, UsageError
from shammah.evaluation.scorer import Score, Tally, known, wanted
from shammah.libraries import library
from shammah.structure.citations import CITATION, citation_measures, cited_ids
from shammah.structure.claims import parse_claims
from shammah.structure.graph import (
    Betti,
    betti,
    circular,
    consistency,
    contradictory,
    topological_loss,
)


class CitationValidity:
    """Whether an output cites the right documents, and only such as it was shown.

    With C the documents cited, G those that should be and D those shown: precision |C and G| / |C|,
    recall |C and G| / |G|, F1 their harmonic mean, invalid rate |C without D| / |C|. Where nothing
    is cited and nothing should be, precision and recall are 1; where one side alone is empty, its
    ratio is 0 for C and 1 for G. An answer is accurate (1, else 0) where all it cites is in G, and
    it cites something unless G is empty.

    Args:
        gold: the metadata's field with G: a list, an object with the ids as keys, or one id.
        shown: that with D.
        pattern: what a citation looks like; the groups hold the ids, separated by commas.
        measure: what the value is: `f1`, `precision`, `recall`, `valid` (1 - invalid rate) or
            `accurate`.
        invalid_weight: what the invalid rate takes off the value, which ends at 0.

    Raises:
        UsageError: the pattern is none or has no group, or the weight is negative.
    """

    name = "citation_validity"

    def __init__(
        self,
        *,
        gold: str = "evidence",
        shown: str = "shown",
        pattern: str = CITATION,
        measure: Literal["f1", "precision", "recall", "valid", "accurate"] = "f1",
        invalid_weight: float = 0.0,
    ) -> None:
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            raise UsageError(f"{pattern!r} is no regular expression: {error}.") from error
        if not self._pattern.groups:
            raise UsageError(f"The pattern {pattern!r} has no group that would hold the ids.")
        if not 0.0 <= invalid_weight < float("inf"):
            raise UsageError(f"invalid_weight cannot be {invalid_weight}.")
        self._gold = gold
        self._shown = shown
        self._measure = measure
        self._invalid_weight = invalid_weight

    async def score(self, output: str, target: str, metadata: Mapping[str, Any]) -> Score:
        gold = _ids(known(metadata, self._gold, self.name), self._gold)
        shown = _ids(known(metadata, self._shown, self.name), self._shown)
        cited = cited_ids(output, self._pattern)
        invalid = [each for each in cited if each not in shown]
        right = [each for each in cited if each in gold]
        parts = citation_measures(len(cited), len(gold), len(right), len(invalid))
        parts["accurate"] = float(parts["precision"] == 1.0)
        value = parts[self._measure] - self._invalid_weight * parts["invalid_rate"]
        counts = {"right": len(right), "gold": len(gold), "cited": cited, "invalid": invalid}
        return Score(max(0.0, value), {**parts, **counts})

    def tally(self) -> Tally:
        """The same measures over all citations together (micro)."""
        return _Citations()


class _Citations:
    def __init__(self) -> None:
        self._examples = self._cited = self._gold = self._right = self._invalid = 0

    def add(self, detail: Mapping[str, Any]) -> None:
        self._examples += 1
        self._cited += len(detail["cited"])
        self._gold += detail["gold"]
        self._right += detail["right"]
        self._invalid += len(detail["invalid"])

    def figures(self) -> dict[str, Any]:
        if not self._examples:
            return {}
        counts = {"cited": self._cited, "gold": self._gold, "right": self._right}
        measures = citation_measures(self._cited, self._gold, self._right, self._invalid)
        return {**measures, **counts, "invalid": self._invalid}


class ClaimGraphConsistency:
    """How consistent the claims of an output are, as `structure.graph` says. An output without
    claims is worth 0: it has not the structure that was asked for.

    Args:
        measure: `consistency`, the share of claims that neither support themselves in a circle nor
            come to support both ends of a refutation; or `topology`, 1 minus the topological loss
            against the target's own graph, at least 0.

    Raises:
        UsageError: networkx is not installed.
    """

    name = "claim_graph"

    def __init__(self, *, measure: Literal["consistency", "topology"] = "consistency") -> None:
        library("networkx", self.name)
        self._measure = measure

    async def score(self, output: str, target: str, metadata: Mapping[str, Any]) -> Score:
        goal: Betti | None = None
        if self._measure == "topology":
            goal = betti(parse_claims(wanted(target, self.name)))
            if not goal.claims:
                raise InputError(f"{self.name}: the target has no line such as CLAIM[c1]: text.")
        graph = parse_claims(output)
        shape = betti(graph)
        detail: dict[str, Any] = {
            "claims": shape.claims,
            "relations": len(graph.relations),
            "b0": shape.b0,
            "b1": shape.b1,
            "circular": sorted(circular(graph)),
            "contradictory": sorted(contradictory(graph)),
            "problems": list(graph.problems),
        }
        if not graph.claims:
            return Score(0.0, detail)
        if goal is None:
            return Score(consistency(graph), detail)
        loss = topological_loss(graph, goal)
        return Score(max(0.0, 1.0 - loss), {**detail, "loss": loss})


def _ids(value: Any, field: str) -> frozenset[str]:
    """Ids are compared as text: JSON has no other keys."""
    if isinstance(value, str | int):
        return frozenset({str(value)})
    if isinstance(value, Iterable):
        found = list(value)
        if all(isinstance(each, str | int) for each in found):
            return frozenset(map(str, found))
    raise InputError(f"The field {field!r} holds no ids of documents: {str(value)[:80]}.")
