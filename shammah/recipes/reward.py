"""Reward modelling: from pairs of answers to a model that scores answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from shammah.recipes.material import without_pair
from shammah.recipes.preference import fitting, learned
from shammah.recipes.runnable import TrainableRecipe

if TYPE_CHECKING:
    from shammah.datasets import ChatExample
    from shammah.ports.training_client import TrainingClient
    from shammah.recipes.material import Material
    from shammah.recipes.workflows.context import Backends
    from shammah.recipes.workflows.workflow import Workflow
    from shammah.training.loops.method import Method
    from shammah.training.reward_client import RewardTrainingClient


class RewardModeling(TrainableRecipe):
    """Learn to score answers from pairs, of which one is the better (Bradley-Terry). The result
    scores, and does not answer: it stays in the run's folder, for `shammah train rl --reward`."""

    kind: ClassVar[str] = "reward"
    purpose: ClassVar[str] = "learn to score answers, from pairs of them"
    rate_share: ClassVar[float] = 0.5
    figure: ClassVar[tuple[str, bool]] = ("loss", True)

    batch_size: int = Field(default=16, ge=1)
    """Pairs of a pass."""
    accumulation: int = Field(default=1, ge=1)
    """Passes of an optimiser step."""
    loss: str = "reward_bradley_terry"
    """Of pairs of scores; `reward_bradley_terry:center=0.01` holds them near zero."""

    def workflow(self) -> Workflow:
        """See `Recipe.workflow`: nothing is published."""
        from shammah.recipes.fitting import fit
        from shammah.recipes.preparing import prepare
        from shammah.recipes.workflows.workflow import workflow

        return workflow(self.kind, prepare, fit)

    def client(self, *given: Any, **named: Any) -> RewardTrainingClient:
        """See `TrainingRecipe.client`: one with a scalar head."""
        from shammah.training.parallel import reward_client_of

        return reward_client_of(*given, **named)

    def lacks(self, example: ChatExample) -> str:
        """See `TrainingRecipe.lacks`: one answer alone is no better than another."""
        return without_pair(example)

    def method(self, material: Material, client: TrainingClient, backends: Backends) -> Method:
        """See `TrainingRecipe.method`."""
        from shammah.training.loops.reward import RewardMethod
        from shammah.training.reward_model import scored_pairs

        return RewardMethod(
            learned(scored_pairs(material.examples, material.renderer), material),
            fitting(scored_pairs(material.judged, material.renderer), material, "evaluate on"),
            loss=self.loss,
            batch_size=self.batch_size,
            accumulation=self.accumulation,
            seed=self.seed,
        )
