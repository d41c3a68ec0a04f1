"""What a loss is computed from, gathered of some examples and laid one after the other.

Knows datums and what came out of a model, no model and no loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shammah.errors import TrainingError
from shammah.ports.datum import PER_TOKEN, Datum
from shammah.training.body import Targets
from shammah.training.losses.choices import Gathered
from shammah.training.losses.loss import Loss


def loss_inputs(
    group: Sequence[Datum], targets: Targets, name: str, loss: Loss, choices: Gathered | None
) -> dict[str, torch.Tensor]:
    """`losses.Inputs` at the weighted positions of some examples.

    Args:
        name: of the loss, for messages.
        choices: where the loss is structured.

    Raises:
        TrainingError: an example lacks what the loss needs, or has it in another shape.
    """
    device = targets.logprobs.device
    sizes = [len(places) for places in targets.places]
    inputs = {
        "weights": targets.weights,
        "example": torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)).to(device),
        "position": torch.from_numpy(_positions(group, targets)).to(device),
    }
    for need in (*loss.needs, *loss.defaults):
        default = loss.defaults.get(need)
        rows = [
            _of_one(example, places, need, name, default)
            for example, places in zip(group, targets.places, strict=True)
        ]
        try:
            values = np.concatenate(rows) if need in PER_TOKEN else np.stack(rows)
        except ValueError:
            shapes = sorted({row.shape for row in rows})
            raise TrainingError(f"{need} has different shapes: {shapes}.") from None
        if values.dtype != np.int64:
            values = values.astype(np.float32)
        inputs[need] = torch.from_numpy(values).to(device)
    if choices is not None and targets.others is not None:
        inputs["candidates"] = targets.others
        for key, array in choices.arrays.items():
            inputs[key] = torch.from_numpy(np.ascontiguousarray(array)).to(device)
    return inputs


def _of_one(
    example: Datum, places: NDArray[np.int64], need: str, name: str, default: float | None
) -> NDArray[Any]:
    given = example.loss_fn_inputs.get(need)
    if given is None:
        if default is None:
            raise TrainingError(f"{name} needs {need!r} with every example.")
        return np.full(len(places) if need in PER_TOKEN else (), default, dtype=np.float32)
    if need not in PER_TOKEN:
        # One value may come as it is or in a list of one.
        return given.data.reshape(()) if given.data.size == 1 else given.data
    wanted = example.loss_fn_inputs["target_tokens"].shape
    if given.shape != wanted:
        raise TrainingError(f"{need} is {given.shape}, target_tokens {wanted}.")
    return given.data.reshape(-1)[places]


def _positions(group: Sequence[Datum], targets: Targets) -> NDArray[np.int64]:
    """For each target its position, counted through all examples."""
    found, start = [], 0
    for example, places in zip(group, targets.places, strict=True):
        shape = example.loss_fn_inputs["target_tokens"].shape
        found.append(start + places // (shape[1] if len(shape) == 2 else 1))
        start += shape[0]
    return np.concatenate(found)
