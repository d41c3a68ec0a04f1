"""Several losses of the same datums, mixed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from shammah.errors import TrainingError
from shammah.training.losses.loss import Inputs, Loss, Measures

if TYPE_CHECKING:
    from shammah.ports.datum import Datum


def mixed(parts: Mapping[str, Loss], weights: Sequence[float]) -> Loss:
    """`sum_i weights_i loss_i`. What each is by itself, before its weight, is reported under its
    name, and what it reports under `name/`.

    Args:
        weights: one for each part.

    Raises:
        TrainingError: there is none, the numbers differ, a weight is not finite, or some take pairs
            of datums and others groups of another size.
    """
    shares = [float(weight) for weight in weights]
    if not parts or len(shares) != len(parts):
        raise TrainingError(f"{len(parts)} losses with {len(shares)} weights are no mixture.")
    if not all(math.isfinite(share) for share in shares):
        raise TrainingError(f"The weights {shares} are not all finite.")
    sizes = {part.members for part in parts.values()} - {1}
    if len(sizes) > 1:
        raise TrainingError(
            f"These losses take groups of {' and '.join(map(str, sorted(sizes)))} datums: "
            f"{', '.join(parts)}."
        )

    def value(logprobs: torch.Tensor, inputs: Inputs) -> tuple[torch.Tensor, Measures]:
        total = logprobs.new_zeros(())
        weight = inputs["weights"].sum()
        told: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for (name, part), share in zip(parts.items(), shares, strict=True):
            found, measures = part.evaluate(logprobs, inputs)
            total = total + share * found
            told[name] = (found.detach(), weight)
            told |= {f"{name}/{key}": measure for key, measure in measures.items()}
        return total, told

    def check(datums: Sequence[Datum]) -> None:
        # A call may be a few datums of many: one part that these teach is enough.
        wrong: TrainingError | None = None
        for part in parts.values():
            if part.check is None:
                return
            try:
                part.check(datums)
            except TrainingError as error:
                wrong = wrong or error
            else:
                return
        if wrong is not None:
            raise wrong

    return Loss(
        value,
        tuple(dict.fromkeys(need for part in parts.values() for need in part.needs)),
        {name: default for part in parts.values() for name, default in part.defaults.items()},
        max(sizes, default=1),
        any(part.structured for part in parts.values()),
        any(part.shares for part in parts.values()),
        check,
        dict(parts),
    )
