"""FEVER: claims about Wikipedia, verified (Thorne et al. 2018, arXiv 1803.05355).

Rows are `{id, claim, label, evidence}`. Evidence names pages and sentences; their text is not in
the data, so the model is asked for the verdict alone.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shammah.datasets.formatters.base import ChatExample, RowModel, checked
from shammah.messages import assistant, user
from shammah.ports.dataset_store import Row

LABELS = ("SUPPORTS", "REFUTES", "NOT ENOUGH INFO")


class _Claim(RowModel):
    id: int
    claim: str
    label: Literal["SUPPORTS", "REFUTES", "NOT ENOUGH INFO"] | None = None
    evidence: list[list[list[int | str | None]]] = Field(default_factory=list)


class Fever:
    """Claim -> SUPPORTS, REFUTES or NOT ENOUGH INFO; without a label (test data) a prompt alone.

    `metadata`: `id`, `label`, and `evidence`, the sets of `[page, sentence]` each of which is
    enough by itself.
    """

    def __call__(self, row: Row) -> ChatExample:
        claim = checked(_Claim, row)
        question = user(
            "Is this claim true, as far as Wikipedia can tell? "
            f"Answer with {', '.join(LABELS[:-1])} or {LABELS[-1]}.\n\nClaim: {claim.claim}"
        )
        answer = () if claim.label is None else (assistant(claim.label),)
        evidence = [
            [[pair[2], pair[3]] for pair in each if len(pair) == 4 and pair[2] is not None]
            for each in claim.evidence
        ]
        metadata = {
            "id": claim.id,
            "label": claim.label,
            "evidence": [each for each in evidence if each],
        }
        return ChatExample((question, *answer), metadata=metadata)


def matches(row: Row) -> bool:
    return {"claim", "label", "evidence"} <= row.keys() and isinstance(row["evidence"], list)
