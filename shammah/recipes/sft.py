"""Supervised fine-tuning: the answers of a data set are learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from shammah.errors import InputError
from shammah.recipes.runnable import TrainableRecipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shammah.datasets import ChatExample
    from shammah.ports.datum import Datum
    from shammah.ports.training_client import TrainingClient
    from shammah.recipes.material import Material
    from shammah.recipes.workflows.context import Backends
    from shammah.settings import LoraSettings
    from shammah.training.loops.method import Method

MOST_NEAR = 500
"""Examples whose questions are kept with the adapter."""


class SupervisedFineTuning(TrainableRecipe):
    """Learn the answers of a data set, by cross-entropy or by a mixture of losses."""

    kind: ClassVar[str] = "sft"
    purpose: ClassVar[str] = "learn the answers of a data set"
    figure: ClassVar[tuple[str, bool]] = ("nll_per_token", True)

    batch_size: int = Field(default=16, ge=1)
    """Examples of an optimiser step."""
    loss: str = "cross_entropy"
    """A loss by name, or a mixture: `0.9 cross_entropy, 0.1 chirality`."""
    weigh: Literal["tokens", "examples"] = "tokens"
    """Whether each answer token weighs the same, or each example however long its answer is."""

    scope: Literal["auto", "near", "all"] = "auto"
    """What the adapter answers in the chat: what is near to the questions of the data, or all, as
    suits another tone or a new task. auto is near where there are 500 examples or fewer."""

    def method(self, material: Material, client: TrainingClient, backends: Backends) -> Method:
        """See `TrainingRecipe.method`."""
        from shammah.training.loops.supervised import Supervised

        learned = self.datums(material.examples, material, "learn from")
        if too_long := len(material.examples) - len(learned):
            room = f"an answer that fits into {material.max_tokens:,} tokens"
            material.lacking[room] = too_long
        return Supervised(
            learned,
            held_out=self.datums(material.judged, material, "evaluate on"),
            loss=self.loss,
            batch_size=self.batch_size,
            seed=self.seed,
        )

    def lacks(self, example: ChatExample) -> str:
        """See `TrainingRecipe.lacks`."""
        return "" if example.answer is not None else "an answer"

    def shape(self, examples: int) -> LoraSettings:
        """See `TrainingRecipe.shape`: a small one where it answers what is near to its examples."""
        return self.lora.shape(small=self._near(examples))

    def _near(self, examples: int) -> bool:
        return self.scope == "near" or (self.scope == "auto" and examples <= MOST_NEAR)

    async def lessons(self, material: Material, client: TrainingClient) -> list[dict[str, Any]]:
        """See `TrainingRecipe.lessons`."""
        examples = material.examples
        if not self._near(len(examples)):
            return []
        from shammah.training.loops.supervised import datums_of

        found = []
        for each in examples:
            if each.answer is None or each.prompt[-1].role != "user":
                continue
            datums, _ = datums_of([each], material.renderer, max_tokens=material.max_tokens)
            if datums:  # else it was too long to be taught
                learned = bool((await client.forward(datums)).greedy[0])
                said = {"query": each.prompt[-1].text, "target": each.answer.text}
                found.append({"feedback_id": None, "weight": 1.0, "learned": learned, **said})
        return found

    def datums(
        self, examples: Sequence[ChatExample], material: Material, purpose: str
    ) -> list[Datum]:
        """Examples as they are learned.

        Raises:
            InputError: none of them has an answer that fits.
        """
        from shammah.training import losses
        from shammah.training.loops.supervised import datums_of
        from shammah.training.structures import structured_examples

        if losses.get(self.loss).structured:
            made, _ = structured_examples(
                examples, material.renderer, max_tokens=material.max_tokens
            )
        else:
            made, _ = datums_of(
                examples, material.renderer, weigh=self.weigh, max_tokens=material.max_tokens
            )
        if examples and not made:
            raise InputError(
                f"None of the {len(examples)} examples to {purpose} has an answer that fits into "
                f"{material.max_tokens} tokens.",
                hint="Take a model that reads more, or look at them: `shammah data show`.",
            )
        return made
