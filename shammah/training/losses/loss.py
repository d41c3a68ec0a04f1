"""What a loss is: a function of the log-probabilities of targets, and what it has to be given.

Knows nothing about models: logits never come here, they are reduced to log-probabilities where they
are made. A loss is a weighted sum, never a mean: the optimiser step divides by the weight of the
whole window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import torch

if TYPE_CHECKING:
    from shammah.ports.datum import Datum

Inputs: TypeAlias = Mapping[str, torch.Tensor]
"""What a datum's `loss_fn_inputs` hold, of all datums one after the other.

What `ports.datum.PER_TOKEN` names is at the weighted positions, float32[n], as are `example`
int64[n], the datum that a target belongs to, and `position` int64[n], which targets of one position
share. Everything else that a loss needs is one value, or one row, for each datum. `choices` adds
what structured answers leave open."""

Measures: TypeAlias = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""What a loss reports beside its value: sums, and what they are to be divided by."""

Function: TypeAlias = Callable[
    [torch.Tensor, Inputs], "torch.Tensor | tuple[torch.Tensor, Measures]"
]
"""`fn(logprobs float[n], inputs)` -> loss sum, float[], or that and what it reports."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A function with what it is to be given.

    Args:
        needs: names of inputs that every datum has to have, beside `weights`.
        defaults: names of inputs that a datum may have, and what is taken where it has not.
        members: so many datums in turn belong together and are computed together.
        structured: whether it takes what `choices.gathered` adds.
        shares: whether there may be very many targets at one position.
        check: is given all datums of a call before anything is computed, and raises TrainingError
            where the loss would be a constant.
        parts: of a mixture, by name.
    """

    fn: Function
    needs: tuple[str, ...] = ()
    defaults: Mapping[str, float] = field(default_factory=dict)
    members: int = 1
    structured: bool = False
    shares: bool = False
    check: Callable[[Sequence[Datum]], None] | None = None
    parts: Mapping[str, Loss] = field(default_factory=dict)

    def compute(self, logprobs: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        """The loss sum, float[]."""
        return self.evaluate(logprobs, inputs)[0]

    def check_material(self, datums: Sequence[Datum]) -> None:
        """That no part of it would be a constant on all of what is to be learned.

        Raises:
            TrainingError: one would.
        """
        for part in self.parts.values() or (self,):
            if part.check is not None:
                part.check(datums)

    def evaluate(self, logprobs: torch.Tensor, inputs: Inputs) -> tuple[torch.Tensor, Measures]:
        """The loss sum and what it reports."""
        value = self.fn(logprobs, inputs)
        return value if isinstance(value, tuple) else (value, {})


def of_examples(values: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """The sum of values [n] over each datum, float[examples]."""
    example = inputs["example"]
    return values.new_zeros(int(example[-1]) + 1).index_add(0, example, values)
