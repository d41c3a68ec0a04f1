"""Preference optimisation: pairs of answers, of which one is the better (DPO and its kin)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from shammah.errors import InputError
from shammah.recipes.material import without_pair
from shammah.recipes.runnable import TrainableRecipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shammah.datasets import ChatExample
    from shammah.ports.training_client import TrainingClient
    from shammah.recipes.material import Material
    from shammah.recipes.workflows.context import Backends
    from shammah.training.loops.method import Method
    from shammah.training.loops.pairs import Pair


def fitting(pairs: Sequence[Pair], material: Material, purpose: str) -> list[Pair]:
    """The pairs of which both answers fit into what is read of an example.

    Raises:
        InputError: there were pairs, and none of them does.
    """
    most = material.max_tokens
    kept = [
        pair
        for pair in pairs
        if max(len(pair.chosen.model_input), len(pair.rejected.model_input)) <= most
    ]
    if pairs and not kept:
        raise InputError(
            f"None of the {len(pairs)} pairs to {purpose} fits into {most} tokens.",
            hint="Take a model that reads more, or look at them: `shammah data show`.",
        )
    return kept


def learned(pairs: Sequence[Pair], material: Material) -> list[Pair]:
    """The pairs to learn from that fit, with the others counted."""
    kept = fitting(pairs, material, "learn from")
    if too_long := len(pairs) - len(kept):
        material.lacking[f"answers that fit into {material.max_tokens:,} tokens"] = too_long
    return kept


class DPO(TrainableRecipe):
    """Learn to answer as in the chosen one of two answers. `--loss kto`, `npo` and
    `dpo:variant=ipo` learn from the same pairs. Of feedback (`--format feedback`) corrections are
    pairs; what makes none is passed over and counted."""

    kind: ClassVar[str] = "dpo"
    purpose: ClassVar[str] = "learn from pairs of answers which is the better"
    rate_share: ClassVar[float] = 0.5
    figure: ClassVar[tuple[str, bool]] = ("loss", True)

    batch_size: int = Field(default=16, ge=1)
    """Pairs of a pass."""
    accumulation: int = Field(default=1, ge=1)
    """Passes of an optimiser step."""
    loss: str = "dpo:beta=0.1"
    """dpo, dpo:variant=ipo, dpo:supervised=0.2, kto, npo, or a mixture with dpo."""

    def lacks(self, example: ChatExample) -> str:
        """See `TrainingRecipe.lacks`: one answer alone is no better than another."""
        return without_pair(example)

    def method(self, material: Material, client: TrainingClient, backends: Backends) -> Method:
        """See `TrainingRecipe.method`."""
        from shammah.training.loops.pairs import pairs_of
        from shammah.training.loops.preference import PreferenceMethod

        return PreferenceMethod(
            learned(pairs_of(material.examples, material.renderer), material),
            fitting(pairs_of(material.judged, material.renderer), material, "evaluate on"),
            loss=self.loss,
            batch_size=self.batch_size,
            accumulation=self.accumulation,
            seed=self.seed,
        )
