"""Gradients of a loss that a caller computes from the log-probabilities of all targets at once.

Where all examples fit into one pack, the loss stands on the model's own graph and one pass does.
Else the graph of all would have to be kept at once: the log-probabilities are computed without it,
the loss gives the derivative with respect to each of them, and each pack is run again with these
for weights. By the chain rule that is the same gradient, in the memory of one pack.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from shammah.errors import DivergenceError, ShammahError, TrainingError
from shammah.ports.datum import Datum
from shammah.ports.training_client import CustomLoss
from shammah.tracking.trace import timed
from shammah.training.body import Targets

Metrics = Mapping[str, float | torch.Tensor]
Pass = Callable[[Sequence[int]], Targets]
"""Runs the examples of a pack, with gradients where they are enabled."""
Back = Callable[[torch.Tensor | None, torch.Tensor], None]
"""Adds the gradients of a value, if there is one, that came from a pass with these logprobs."""


def add_gradients(
    datums: Sequence[Datum],
    packs: Sequence[Sequence[int]],
    run: Pass,
    fn: CustomLoss,
    again: Callable[[], None],
    back: Back,
) -> tuple[float, dict[str, float], list[Targets]]:
    """Add the gradients of `fn`'s loss to those of the adapter.

    Args:
        packs: indices of datums that are computed together.
        again: called before packs are run for the second time, so that dropout draws the same.

    Returns:
        The loss, the metrics of `fn`, and what came out of each pack.

    Raises:
        TrainingError, DivergenceError: see `TrainingClient.forward_backward_custom`.
    """
    if len(packs) == 1:
        with timed("forward"):
            targets = run(packs[0])
            seen = _laid_out(datums, packs, [targets], [targets.logprobs])
            loss, metrics = _value(fn, datums, seen)
        back(loss, targets.logprobs)
        return float(loss.detach()), metrics, [targets]
    outputs = look(packs, run)
    leaves = [targets.logprobs.detach().requires_grad_() for targets in outputs]
    loss, metrics = _value(fn, datums, _laid_out(datums, packs, outputs, leaves))
    derivatives = torch.autograd.grad(loss, leaves, allow_unused=True)
    again()
    go_back(packs, run, derivatives, back)
    return float(loss.detach()), metrics, outputs


def look(packs: Sequence[Sequence[int]], run: Pass) -> list[Targets]:
    """The first pass: what comes out of each pack, without gradients."""
    with timed("forward"), torch.no_grad():
        return [run(members) for members in packs]


def derivatives_of(
    fn: CustomLoss,
    datums: Sequence[Datum],
    logprobs: Sequence[NDArray[np.float32]],
    device: torch.device,
) -> tuple[float, dict[str, float], list[torch.Tensor | None]]:
    """The loss of log-probabilities that were computed elsewhere, its metrics, and its derivative
    by each datum's, in their shape; None where it does not depend on them.

    Raises:
        TrainingError, DivergenceError: see `TrainingClient.forward_backward_custom`.
    """
    leaves = [torch.from_numpy(each).to(device).requires_grad_() for each in logprobs]
    with torch.enable_grad():
        loss, metrics = _value(fn, datums, leaves)
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return float(loss.detach()), metrics, list(found)


def by_pack(
    packs: Sequence[Sequence[int]],
    outputs: Sequence[Targets],
    derivatives: Sequence[torch.Tensor | None],
) -> list[torch.Tensor | None]:
    """Derivatives by datum as those of what came out of each pack."""
    return [
        torch.cat(
            [
                torch.zeros(len(places), device=targets.logprobs.device)
                if (found := derivatives[index]) is None
                else found.reshape(-1)[torch.from_numpy(places).to(found.device)]
                for index, places in zip(members, targets.places, strict=True)
            ]
        )
        for members, targets in zip(packs, outputs, strict=True)
    ]


def go_back(
    packs: Sequence[Sequence[int]],
    run: Pass,
    derivatives: Sequence[torch.Tensor | None],
    back: Back,
) -> None:
    """The second pass: the gradients of each pack's log-probabilities, weighed by the derivatives
    of the loss with respect to them."""
    for members, derivative in zip(packs, derivatives, strict=True):
        if derivative is not None and bool(derivative.any()):
            with timed("forward"):
                logprobs = run(members).logprobs
                weighed = (logprobs * derivative).sum()
            back(weighed, logprobs)
        else:
            with timed("forward"):
                back(None, run(members).logprobs)  # dropout goes on as if it had counted


def _laid_out(
    datums: Sequence[Datum],
    packs: Sequence[Sequence[int]],
    outputs: Sequence[Targets],
    logprobs: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    """The log-probabilities by datum, in the shape of its targets; 0 where none was computed."""
    laid: dict[int, torch.Tensor] = {}
    for members, targets, values in zip(packs, outputs, logprobs, strict=True):
        parts = torch.split(values, [len(places) for places in targets.places])
        for index, places, part in zip(members, targets.places, parts, strict=True):
            shape = datums[index].loss_fn_inputs["target_tokens"].shape
            where = torch.from_numpy(places).to(part.device)
            flat = part.new_zeros(math.prod(shape)).index_copy(0, where, part)
            laid[index] = flat.reshape(shape)
    return [laid[index] for index in range(len(datums))]


def _value(
    fn: CustomLoss, datums: Sequence[Datum], logprobs: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, dict[str, float]]:
    try:
        loss, given = fn(datums, logprobs)
        metrics = {str(name): _number(value) for name, value in _mapping(given).items()}
    except ShammahError:
        raise
    except Exception as error:
        raise TrainingError(
            f"The custom loss failed: {type(error).__name__}: {error}",
            hint="It takes (datums, logprobs) and gives (loss, metrics).",
        ) from error
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        found = list(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise TrainingError(f"The custom loss has to be one number in a tensor, not {found}.")
    if not loss.requires_grad:
        raise TrainingError(
            "The custom loss does not depend on the log-probabilities, so that nothing is learned.",
            hint="Compute it from `logprobs` without detach() or item().",
        )
    if not math.isfinite(float(loss.detach())):
        raise DivergenceError(f"The custom loss is {float(loss.detach())}.")
    return loss.reshape(()), metrics


def _mapping(metrics: Metrics) -> Metrics:
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics are a mapping, not {type(metrics).__name__}")
    return metrics


def _number(value: float | torch.Tensor) -> float:
    return float(value.detach() if isinstance(value, torch.Tensor) else value)
