"""One adapter trained by several processes, each with the whole model on a device of its own.

Every process runs the same loop and is called with the same datums; each computes its share of
them, gradients and the weight of the window are added up before the optimiser's step, and results
are put together again, so that all processes give the same as one alone would, up to the order of
additions. The adapter and the optimiser's state are whole in each. Knows the local client, no loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from shammah.errors import DivergenceError, ShammahError, TrainingError
from shammah.ports.datum import Datum
from shammah.ports.training_client import (
    AdamParams,
    CustomLoss,
    ForwardBackwardOutput,
    OptimStepOutput,
)
from shammah.settings import LoraSettings, TrainingSettings
from shammah.training import losses
from shammah.training.local_client import LocalTrainingClient
from shammah.training.processes import Processes, launched
from shammah.training.reward_client import RewardTrainingClient

if TYPE_CHECKING:
    from shammah.models.load import BaseModel

Run = Callable[[Sequence[Datum], losses.Loss], Awaitable[ForwardBackwardOutput]]
Found = tuple[list[int], ForwardBackwardOutput]
"""Which datums, and what came of them."""


class ParallelTrainingClient(LocalTrainingClient):
    """A `TrainingClient` that is `Ranked`: one of several, which step together.

    With dropout each draws for its own share: then going on from a checkpoint is not bit-equal.

    Args:
        processes: those that train together; all else as `LocalTrainingClient` takes it, the same
            in each.
    """

    def __init__(self, *given: Any, processes: Processes, **named: Any) -> None:
        super().__init__(*given, **named)
        self.processes = processes

    @property
    def leads(self) -> bool:
        """See `Ranked.leads`."""
        return self.processes.leads

    async def agree(self, wish: bool) -> bool:
        """See `Ranked.agree`."""
        return any(self.processes.gathered(wish))

    async def forward_backward(
        self, datums: Sequence[Datum], loss_fn: str | losses.Loss = "cross_entropy"
    ) -> ForwardBackwardOutput:
        """See `TrainingClient.forward_backward`; metrics of a mixture are means of the shares', by
        their weight."""
        return await self._shared(datums, loss_fn, super().forward_backward)

    async def forward(
        self, datums: Sequence[Datum], loss_fn: str | losses.Loss = "cross_entropy"
    ) -> ForwardBackwardOutput:
        """See `TrainingClient.forward`."""
        return await self._shared(datums, loss_fn, super().forward)

    async def forward_backward_custom(
        self, datums: Sequence[Datum], fn: CustomLoss, *, weight: float = 1.0
    ) -> ForwardBackwardOutput:
        """See `TrainingClient.forward_backward_custom`.

        Raises:
            TrainingError: there are several processes: such a loss has to see all datums at once.
        """
        if self.processes.count > 1:
            raise TrainingError(
                "A custom loss cannot be divided among processes.",
                hint="Register it as a loss by name, or train in one process.",
            )
        return await super().forward_backward_custom(datums, fn, weight=weight)

    async def optim_step(self, params: AdamParams) -> OptimStepOutput:
        """See `TrainingClient.optim_step`. Every process makes the same step."""
        self._weight = sum(self.processes.gathered(self._weight))
        parameters = self._optimizer.parameters
        here = any(parameter.grad is not None for parameter in parameters)
        if any(self.processes.gathered(here)):
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            self.processes.add_up([p.grad for p in parameters if p.grad is not None])
        return await super().optim_step(params)

    async def _shared(
        self, datums: Sequence[Datum], loss_fn: str | losses.Loss, run: Run
    ) -> ForwardBackwardOutput:
        loss = losses.get(loss_fn)
        if self.processes.count == 1 or len(datums) % loss.members:
            return await run(datums, loss)
        if loss.check is not None:
            loss.check(datums)
        # A share may lack what the whole of the datums has.
        loss = replace(loss, check=None)
        units = range(self.processes.number, len(datums) // loss.members, self.processes.count)
        own = [unit * loss.members + each for unit in units for each in range(loss.members)]
        found: Found | None = None
        failed: tuple[type[ShammahError], str, str | None] | None = None
        try:
            if own:
                found = own, await run([datums[index] for index in own], loss)
        except TrainingError as error:
            failed = type(error), error.message, error.hint
        shares = self.processes.gathered((found, failed))
        for _, wrong in shares:
            if wrong is not None:
                # All raise, or the others would wait for this one for ever.
                kind, message, hint = wrong
                if issubclass(kind, DivergenceError):
                    self._forget()
                raise kind(message, hint=hint)
        return together([share for share, _ in shares if share is not None], len(datums))


class ParallelRewardClient(ParallelTrainingClient, RewardTrainingClient):
    """A `RewardTrainingClient` that is one of several, which step together."""


def client_of(
    base: BaseModel,
    lora: LoraSettings,
    training: TrainingSettings,
    *,
    parent: Path | None = None,
    parent_scaling: float | None = None,
) -> LocalTrainingClient:
    """The client for how this process was started: one of several (`ParallelTrainingClient`), or
    one alone. `ports.training_client.leads` says which one prints.

    Raises:
        TrainingError: see `LocalTrainingClient` and `Processes`.
        AdapterInvalidError: the parent does not fit the model.
    """
    if not launched():
        return LocalTrainingClient(base, lora, training, parent, parent_scaling=parent_scaling)
    return ParallelTrainingClient(
        base, lora, training, parent, parent_scaling=parent_scaling, processes=Processes()
    )


def reward_client_of(
    base: BaseModel,
    lora: LoraSettings,
    training: TrainingSettings,
    *,
    parent: Path | None = None,
    parent_scaling: float | None = None,
) -> RewardTrainingClient:
    """`client_of` for a model with a scalar head."""
    if not launched():
        return RewardTrainingClient(base, lora, training, parent, parent_scaling=parent_scaling)
    return ParallelRewardClient(
        base, lora, training, parent, parent_scaling=parent_scaling, processes=Processes()
    )


def together(shares: Sequence[Found], count: int) -> ForwardBackwardOutput:
    """What `count` datums give altogether."""
    logprobs: list[Any] = [np.zeros(0, dtype=np.float32)] * count
    greedy = [False] * count
    for own, output in shares:
        for index, values, right in zip(own, output.logprobs, output.greedy, strict=True):
            logprobs[index], greedy[index] = values, right
    outputs = [output for _, output in shares]
    return ForwardBackwardOutput(
        sum(output.loss for output in outputs),
        sum(output.weight for output in outputs),
        sum(output.tokens for output in outputs),
        tuple(logprobs),
        tuple(greedy),
        _means(outputs),
    )


def _means(outputs: Sequence[ForwardBackwardOutput]) -> Mapping[str, float]:
    names = dict.fromkeys(name for output in outputs for name in output.metrics)
    pairs = {
        name: [(each.metrics[name], each.weight) for each in outputs if name in each.metrics]
        for name in names
    }
    return {
        name: sum(value * weight for value, weight in found) / sum(weight for _, weight in found)
        for name, found in pairs.items()
    }
