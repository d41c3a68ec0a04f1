"""The training core as one protocol.

Loops are written once against `TrainingClient` and run on the local torch client or on a remote
service. This file knows no tensor library but numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from shammah.ports.datum import Datum
from shammah.ports.sampling_client import SamplingClient
from shammah.settings import LoraSettings, ModelSettings

if TYPE_CHECKING:
    import torch

CustomLoss: TypeAlias = (
    "Callable[[Sequence[Datum], Sequence[torch.Tensor]], "
    "tuple[torch.Tensor, Mapping[str, float | torch.Tensor]]]"
)
"""`fn(datums, logprobs) -> loss, metrics`. `logprobs[i]` float32 has the shape of datum i's targets
and a gradient; the loss is one number that depends on them in any differentiable way."""


@dataclass(frozen=True, slots=True)
class AdamParams:
    """One optimiser step of AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101)."""

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 0.0
    """Clip to this global L2 norm; 0 does not clip."""


@dataclass(frozen=True, slots=True)
class ForwardBackwardOutput:
    """`loss` is the weighted sum over the datums, `weight` the sum of their token weights.

    `logprobs[i]` has the shape of datum i's targets: the log-probability of each (0 where the
    weight is 0 and nothing was computed). `greedy[i]` is true where the argmax equals the target at
    every weighted position, which is what greedy decoding would produce. `metrics` are those that a
    custom loss gave, or what a loss by name reports of itself, as means; of a mixture each part.
    """

    loss: float
    weight: float
    tokens: int
    logprobs: tuple[NDArray[np.float32], ...]
    greedy: tuple[bool, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def mean_loss(self) -> float:
        return self.loss / self.weight if self.weight else 0.0


@dataclass(frozen=True, slots=True)
class OptimStepOutput:
    """`grad_norm` is the global L2 norm before clipping, after division by the window's weight."""

    step: int
    grad_norm: float


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a client trains: `fingerprint` tells the base model apart from any other, `dtype` is
    what it computes in, `max_tokens` its context, `step` the optimiser steps made so far."""

    model: str
    fingerprint: str
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    trainable_parameters: int
    dtype: str
    device: str
    max_tokens: int
    step: int
    rslora: bool = False
    """Whether the change is scaled by alpha / sqrt(rank) in place of alpha / rank."""


class TrainingClient(Protocol):
    """Something that can compute gradients of an adapter and step them.

    What fails raises `TrainingError`, whose kinds are told apart below.
    """

    async def info(self) -> ModelInfo:
        """What is being trained."""
        ...

    async def forward_backward(
        self, datums: Sequence[Datum], loss_fn: str = "cross_entropy"
    ) -> ForwardBackwardOutput:
        """Add the gradients of the weighted loss sum to those gathered since the last step.

        Raises:
            EmptyLessonError: a datum has no weight above zero.
            DivergenceError: the loss is not finite; gradients gathered so far are dropped.
            TrainingError: a datum lacks what the loss needs or holds an image; the backend fails.
        """
        ...

    async def forward_backward_custom(
        self, datums: Sequence[Datum], fn: CustomLoss, *, weight: float = 1.0
    ) -> ForwardBackwardOutput:
        """Add the gradients of a loss of one's own to those gathered since the last step.

        Where a datum has `weights`, the log-probabilities at zeros are 0 and have no gradient.

        Args:
            fn: called once, with all datums.
            weight: what this call counts in the window: `optim_step` divides by the sum of these
                and of the weights of `forward_backward`. With one call and weight 1 the gradient
                is that of the loss.

        Raises:
            TrainingError: `fn` fails, or its loss is not one number that depends on `logprobs`.
            EmptyLessonError, DivergenceError: as `forward_backward`.
        """
        ...

    async def forward(
        self, datums: Sequence[Datum], loss_fn: str = "cross_entropy"
    ) -> ForwardBackwardOutput:
        """The same numbers without gradients (dropout off)."""
        ...

    async def optim_step(self, params: AdamParams) -> OptimStepOutput:
        """Divide the gathered gradients by the gathered weight, clip, step, clear.

        Raises:
            DivergenceError: the gradient is not finite; weights stay as they were.
            TrainingError: no gradient was gathered.
        """
        ...

    async def save_state(self, folder: Path) -> None:
        """Write adapter, optimiser and random states so that training can go on bit-equal.

        Raises:
            StorageError: the folder cannot be written.
        """
        ...

    async def load_state(self, folder: Path) -> None:
        """Go on from what `save_state` wrote.

        Raises:
            IncompatibleStateError: it is of another adapter.
            TrainingError: the folder holds no whole state.
        """
        ...

    async def save_weights(self, path: Path) -> None:
        """Write the adapter alone as safetensors with PEFT's key names."""
        ...

    @property
    def sampler(self) -> SamplingClient:
        """Samples with the adapter as it is when a call begins."""
        ...

    def close(self) -> None:
        """Let go of the base model. The client cannot be used after it."""
        ...


class StateCopy(Protocol):
    """A copy of a client's state in memory, which steps made since do not change."""

    def write(self, folder: Path) -> None:
        """What `save_state` would have written; may be called in another thread.

        Raises:
            StorageError: the folder cannot be written.
        """
        ...


@runtime_checkable
class StateCopies(Protocol):
    """What a client can do beside `TrainingClient` whose state is small and near."""

    async def copy_state(self) -> StateCopy:
        """The state after the last optimiser step, as `save_state` has it."""
        ...

    async def restore_state(self, copy: StateCopy) -> None:
        """Go on from a copy of this client's own.

        Raises:
            IncompatibleStateError: it is of another client.
        """
        ...


@runtime_checkable
class Ranked(Protocol):
    """A client that trains one adapter together with others, each in a process of its own: all are
    called with the same, and give the same."""

    @property
    def leads(self) -> bool:
        """Whether this one writes files."""
        ...

    async def agree(self, wish: bool) -> bool:
        """Whether any of them wishes; waits for all."""
        ...


def leads(client: TrainingClient) -> bool:
    """Whether this process writes files and prints: the only one, or the first of several."""
    return not isinstance(client, Ranked) or client.leads


class TrainingService(Protocol):
    """Something that can begin sessions of training."""

    async def create(
        self, model: ModelSettings, lora: LoraSettings, *, seed: int = 0, parent: Path | None = None
    ) -> TrainingClient:
        """A client with an adapter of its own on a base model.

        Args:
            seed: of the adapter's first values, and of dropout.
            parent: adapter file to start from.

        Raises:
            TrainingError: the model cannot be had, or takes no such adapter.
        """
        ...
