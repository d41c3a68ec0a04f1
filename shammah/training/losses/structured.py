"""Losses of answers with a structure, from how likely each of their words was.

A score that is computed from text is a constant to autograd. These are the same scores of what is
expected of the model at the answer's open places (`choices`): where the model is certain of every
word they are the exact ones of `structure.graph`. Each is a mean over a datum, times the datum's
weight.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field

from shammah.training.losses import choices
from shammah.training.losses.loss import Inputs, Loss, Measures, of_examples


def topological(*, time: Annotated[float, Field(gt=0)] = 10.0) -> Loss:
    """`(|b0 - b0*| + |b1 - b1*|) / V* + 1 - consistency` of the expected graph.

    Claims are related with probability A_ij = 1 - prod over relations of (1 - p(it is a relation
    and between i and j)). b0 = trace exp(-time L) with L the Laplacian of A, which counts its
    vanishing eigenvalues, and b1 = sum A - V + b0. Consistency is one minus the mean probability
    that a claim comes to support itself or both ends of a refutation, each path and each relation
    for itself.

    Args:
        time: the larger, the nearer is b0 to a count of components, and the less do bonds that are
            there already matter.
    """

    def value(logprobs: torch.Tensor, inputs: Inputs) -> tuple[torch.Tensor, Measures]:
        weights, shape = of_examples(inputs["weights"], inputs), inputs["shape"]
        total = logprobs.new_zeros(())
        told = {name: logprobs.new_zeros(()) for name in ("b0", "b1", "consistency")}
        for number, relation in choices.relations(inputs, shape[:, 0]):
            claims, wanted, b0_wanted, b1_wanted = shape[number].tolist()
            if not claims or not wanted:
                continue
            b0, b1 = soft_betti(relation, claims, time)
            holds = soft_consistency(relation, claims)
            distance = (b0 - b0_wanted).abs() + (b1 - b1_wanted).abs()
            total = total + weights[number] * (distance / wanted + 1.0 - holds)
            for name, found in (("b0", b0), ("b1", b1), ("consistency", holds)):
                told[name] = told[name] + weights[number] * found.detach()
        counted = (weights * ((shape[:, 0] > 0) & (shape[:, 1] > 0))).sum()
        return total, {name: (found, counted) for name, found in told.items()}

    return Loss(
        value,
        ("shape",),
        structured=True,
        check=lambda datums: choices.require(datums, (choices.TARGET,), "a relation"),
    )


def chirality() -> Loss:
    """`(s - s*)^2` with s the expected skew, the mean over relations of p(supports) - p(refutes),
    where the two sum to one."""

    def value(logprobs: torch.Tensor, inputs: Inputs) -> tuple[torch.Tensor, Measures]:
        weights, slots = of_examples(inputs["weights"], inputs), inputs["slots"]
        rows = torch.nonzero(slots[:, 0] == choices.LABEL)[:, 0]
        labels = choices.slot_logprobs(inputs)[rows, :2].softmax(-1)
        owner = slots[rows, 3]
        count = labels.new_zeros(len(weights)).index_add(0, owner, labels.new_ones(len(rows)))
        leaning = labels[:, 0] - labels[:, 1] if len(rows) else labels.new_zeros(0)
        skew = labels.new_zeros(len(weights)).index_add(0, owner, leaning) / count.clamp(min=1)
        counted = weights * (count > 0)
        loss = (counted * (skew - inputs["skew"].to(skew.dtype)) ** 2).sum()
        return loss, {"skew": ((counted * skew.detach()).sum(), counted.sum())}

    return Loss(
        value,
        ("skew",),
        structured=True,
        check=lambda datums: choices.require(datums, (choices.LABEL,), "a relation"),
    )


def citation_validity(*, citation_validity_weight: Annotated[float, Field(ge=0)] = 1.0) -> Loss:
    """`-log` of the probability that the next token goes on with the id of a document that was
    shown, as a mean over the tokens of cited ids, times `citation_validity_weight`."""

    def value(logprobs: torch.Tensor, inputs: Inputs) -> tuple[torch.Tensor, Measures]:
        weights, slots = of_examples(inputs["weights"], inputs), inputs["slots"]
        rows = torch.nonzero(slots[:, 0] == choices.CITATION)[:, 0]
        mass = choices.slot_logprobs(inputs)[rows].logsumexp(-1)
        owner = slots[rows, 3]
        count = mass.new_zeros(len(weights)).index_add(0, owner, mass.new_ones(len(rows)))
        share = weights.to(mass.dtype) / count.clamp(min=1)
        loss = -(share[owner] * mass).sum()
        valid = (share[owner] * mass.detach().exp()).sum()
        return citation_validity_weight * loss, {"valid": (valid, (weights * (count > 0)).sum())}

    return Loss(
        value,
        structured=True,
        check=lambda datums: choices.require(
            datums, (choices.CITATION,), "a citation beside documents that were shown"
        ),
    )


def soft_betti(
    relation: choices.Relations, claims: int, time: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """b0 and b1 of the expected graph of V claims."""
    directed = _directed(relation, relation.labels.exp().sum(-1), claims)
    either = directed + directed.transpose(1, 2) - torch.diag_embed(_diagonals(directed))
    related = _any(either, claims)
    bonds = related - torch.diag(torch.diagonal(related))
    laplacian = torch.diag(bonds.sum(-1)) - bonds
    b0 = torch.exp(-time * torch.linalg.eigvalsh(laplacian)).sum()
    edges = bonds.sum() / 2 + torch.diagonal(related).sum()
    return b0, edges - claims + b0


def soft_consistency(relation: choices.Relations, claims: int) -> torch.Tensor:
    """1 minus the mean probability that a claim contradicts itself."""
    labels = relation.labels.exp()
    supports = _any(_directed(relation, labels[:, 0], claims), claims)
    for _ in range(max(0, math.ceil(math.log2(max(1, claims))))):
        through = supports[:, :, None] * supports[None]
        supports = 1.0 - (1.0 - supports) * (1.0 - through).prod(1)
    circular = torch.diagonal(supports)
    one = torch.eye(claims, dtype=supports.dtype, device=supports.device)
    closure = supports * (1.0 - one) + one
    refuted = _directed(relation, labels[:, 1], claims)
    both = closure[:, None, :, None] * closure[:, None, None, :] * refuted[None]
    contradictory = 1.0 - (1.0 - both).flatten(1).prod(-1)
    return 1.0 - (1.0 - (1.0 - circular) * (1.0 - contradictory)).mean()


def _directed(relation: choices.Relations, labels: torch.Tensor, claims: int) -> torch.Tensor:
    """How likely each relation is one from i to j, [R, V, V]."""
    likely = labels[:, None] * relation.targets.softmax(-1)
    source = torch.nn.functional.one_hot(relation.sources, claims).to(likely.dtype)
    return source[:, :, None] * likely[:, None, :]


def _any(chances: torch.Tensor, claims: int) -> torch.Tensor:
    """That one at least happens, of [R, V, V] that do not depend on each other."""
    if not len(chances):
        return chances.new_zeros(claims, claims)
    return 1.0 - (1.0 - chances).prod(0)


def _diagonals(matrices: torch.Tensor) -> torch.Tensor:
    return torch.diagonal(matrices, dim1=1, dim2=2)
