"""The training core as one protocol.

Loops are written once against `TrainingClient` and run on the local torch client or on a remote
service. This file knows no tensor library but numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

DType = Literal["int64", "float32"]


@dataclass(frozen=True, slots=True)
class TensorData:
    """A small array that crosses a boundary: int64 or float32, any shape."""

    data: NDArray[np.int64] | NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.data.dtype not in (np.dtype(np.int64), np.dtype(np.float32)):
            raise ValueError(f"TensorData holds int64 or float32, not {self.data.dtype}")

    @property
    def dtype(self) -> DType:
        return "int64" if self.data.dtype == np.dtype(np.int64) else "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @classmethod
    def ints(cls, values: Sequence[int]) -> TensorData:
        return cls(np.asarray(values, dtype=np.int64))

    @classmethod
    def floats(cls, values: Sequence[float]) -> TensorData:
        return cls(np.asarray(values, dtype=np.float32))


@dataclass(frozen=True, slots=True)
class ModelInput:
    """What the model reads: T token ids."""

    tokens: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class Datum:
    """One training example.

    `model_input` holds T tokens. `loss_fn_inputs` is what the loss wants, aligned to them: for
    `cross_entropy` these are `target_tokens` int64[T] (the token after each position) and `weights`
    float32[T] (zero where nothing is learned). With [T, K] of each, K tokens are targets at each
    position: a distribution to be matched rather than an answer to be given.
    """

    model_input: ModelInput
    loss_fn_inputs: Mapping[str, TensorData] = field(default_factory=dict)


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
    every weighted position, which is what greedy decoding would produce.
    """

    loss: float
    weight: float
    tokens: int
    logprobs: tuple[NDArray[np.float32], ...]
    greedy: tuple[bool, ...]

    @property
    def mean_loss(self) -> float:
        return self.loss / self.weight if self.weight else 0.0


@dataclass(frozen=True, slots=True)
class OptimStepOutput:
    """`grad_norm` is the global L2 norm before clipping, after division by the window's weight."""

    step: int
    grad_norm: float


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to draw a continuation. Temperature 0 is greedy."""

    max_tokens: int = 256
    temperature: float = 0.0
    seed: int | None = None
    stop_tokens: tuple[int, ...] = ()


class TrainingClient(Protocol):
    """Something that can compute gradients of an adapter and step them."""

    async def forward_backward(
        self, datums: Sequence[Datum], loss_fn: str = "cross_entropy"
    ) -> ForwardBackwardOutput:
        """Add the gradients of the weighted loss sum to those gathered since the last step.

        Raises:
            EmptyLessonError: a datum has no weight above zero.
            DivergenceError: the loss is not finite; gradients gathered so far are dropped.
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
        """
        ...

    async def save_state(self, folder: Path) -> None:
        """Write adapter, optimiser and random states so that training can go on bit-equal."""
        ...

    async def load_state(self, folder: Path) -> None:
        """Go on from what `save_state` wrote."""
        ...

    async def save_weights(self, path: Path) -> None:
        """Write the adapter alone as safetensors with PEFT's key names."""
        ...

    async def sample(self, prompt: ModelInput, params: SamplingParams) -> tuple[int, ...]:
        """Continue a prompt with the adapter as it is; the new tokens without the stop token."""
        ...
