"""Log-probabilities that training is compared with: computed once, and kept through a resume.

They are those of the model as it is before the first step. A fresh adapter changes nothing then, so
that is the base model, the adapter off; one that goes on from a parent is compared with the parent.
Where a datum carries `reference` already, from whatever model, that is kept.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from shammah.errors import TrainingError
from shammah.ports.datum import Datum, TensorData
from shammah.ports.training_client import TrainingClient


async def referenced(client: TrainingClient, datums: Sequence[Datum]) -> list[Datum]:
    """The datums with `reference`: what the client says now, float32 in the shape of the targets;
    0 where nothing is weighed."""
    wanted = [each for each in datums if "reference" not in each.loss_fn_inputs]
    found = iter((await client.forward(wanted)).logprobs if wanted else ())
    return [
        each if "reference" in each.loss_fn_inputs else _with(each, next(found)) for each in datums
    ]


def written(datums: Sequence[Datum]) -> str:
    """The references of datums as text, to the bit."""
    parts = [each.loss_fn_inputs["reference"].data.reshape(-1) for each in datums]
    return base64.b64encode(np.concatenate(parts).astype("<f4").tobytes()).decode()


def read(text: str, datums: Sequence[Datum]) -> list[Datum]:
    """The datums with the references that `written` made of the same ones.

    Raises:
        TrainingError: it is of others.
    """
    values = np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32)
    shapes = [each.loss_fn_inputs["target_tokens"].shape for each in datums]
    sizes = [int(np.prod(shape)) for shape in shapes]
    if sum(sizes) != len(values):
        raise TrainingError(
            f"The checkpoint has {len(values)} reference values, and {sum(sizes)} are needed.",
            hint="Start the run afresh.",
        )
    parts = np.split(values, np.cumsum(sizes)[:-1])
    return [
        _with(each, part.reshape(shape))
        for each, part, shape in zip(datums, parts, shapes, strict=True)
    ]


def _with(datum: Datum, logprobs: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Datum:
    inputs = {**datum.loss_fn_inputs, "reference": TensorData(np.ascontiguousarray(logprobs))}
    return replace(datum, loss_fn_inputs=inputs)
