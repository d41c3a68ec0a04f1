"""What models read and are trained on: tokens, images, small arrays, examples.

Knows no tensor library but numpy, and no model. Everything is checked when it is made, so that what
is wrong is told where it arises and not by a shape error inside a model.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from shammah.errors import DataError

if TYPE_CHECKING:
    import torch

DType = Literal["int64", "float32"]
DTYPES: tuple[str, ...] = get_args(DType)
ImageFormat = Literal["png", "jpeg"]

PER_TOKEN: Mapping[str, DType] = {
    "target_tokens": "int64",
    "weights": "float32",
    "advantages": "float32",
    "logprobs": "float32",
    "reference": "float32",
    "coefficients": "float32",
    "answer": "int64",
}
"""Inputs of losses that hold one value, or K, for each token that is read."""

_MAGIC: Mapping[str, bytes] = {"png": b"\x89PNG\r\n\x1a\n", "jpeg": b"\xff\xd8\xff"}
_INT64 = np.iinfo(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class TensorData:
    """A small array that crosses a boundary: int64 or finite float32, any shape.

    Raises:
        DataError: another dtype, or a float that is not finite. `of` converts.
    """

    data: NDArray[np.int64] | NDArray[np.float32]

    def __post_init__(self) -> None:
        if not isinstance(self.data, np.ndarray) or self.data.dtype.name not in DTYPES:
            found = getattr(self.data, "dtype", type(self.data).__name__)
            raise DataError(f"TensorData holds an int64 or float32 array, not {found}.")
        if self.dtype == "float32" and not np.isfinite(self.data).all():
            count = int(np.count_nonzero(~np.isfinite(self.data)))
            raise DataError(f"{count} of {self.data.size} values are not finite.")

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

    @classmethod
    def of(cls, values: Any) -> TensorData:
        """A copy of a numpy array, a torch tensor of any device, or nested lists: whole numbers
        and booleans become int64, other numbers float32.

        Raises:
            DataError: it holds something else, or a number that the dtype cannot hold.
        """
        if hasattr(values, "detach"):
            values = values.detach()
            # numpy has no bfloat16.
            values = (values.float() if values.is_floating_point() else values).cpu().numpy()
        try:
            array = np.asarray(values)
        except ValueError as error:
            raise DataError(f"No array can be made of it: {error}.") from error
        if array.dtype.kind in "bi" or (array.dtype.kind == "u" and (array <= _INT64.max).all()):
            return cls(np.array(array, dtype=np.int64))
        if array.dtype.kind == "f":
            with np.errstate(over="ignore"):
                return cls(np.array(array, dtype=np.float32))
        raise DataError(f"An array of {array.dtype} is neither int64 nor float32.")

    def to_torch(self, device: str | torch.device | None = None) -> torch.Tensor:
        """A copy as a tensor of the same dtype and shape."""
        import torch

        return torch.tensor(self.data, device=device)

    def __len__(self) -> int:
        """The size of the first dimension."""
        return len(self.data)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorData):
            return NotImplemented
        return self.dtype == other.dtype and np.array_equal(self.data, other.data)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class TextChunk:
    """Token ids."""

    tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        try:
            tokens = tuple(map(operator.index, self.tokens))
        except TypeError as error:
            raise DataError(f"Tokens are whole numbers: {error}.") from error
        if tokens and min(tokens) < 0:
            raise DataError(f"A token is {min(tokens)}; tokens are 0 or more.")
        object.__setattr__(self, "tokens", tokens)

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class ImageChunk:
    """An encoded image, which takes `expected_tokens` positions of the model's context."""

    data: bytes = field(repr=False)
    format: ImageFormat
    expected_tokens: int

    def __post_init__(self) -> None:
        if self.format not in _MAGIC:
            raise DataError(f"An image is {' or '.join(_MAGIC)}, not {self.format!r}.")
        if not self.data.startswith(_MAGIC[self.format]):
            raise DataError(f"The {len(self.data)} bytes given as {self.format} are not that.")
        if self.expected_tokens < 1:
            raise DataError(f"An image takes at least one token, not {self.expected_tokens}.")

    def __len__(self) -> int:
        return self.expected_tokens


Chunk: TypeAlias = TextChunk | ImageChunk


@dataclass(frozen=True, slots=True)
class ModelInput:
    """What the model reads: text and images in turn, T positions altogether."""

    chunks: tuple[Chunk, ...]

    def __post_init__(self) -> None:
        for chunk in self.chunks:
            if not isinstance(chunk, TextChunk | ImageChunk):
                raise DataError(
                    f"A model input is made of chunks, not of {type(chunk).__name__}.",
                    hint="ModelInput.of(tokens) makes one of tokens.",
                )
        object.__setattr__(self, "chunks", tuple(self.chunks))

    @classmethod
    def of(cls, tokens: Iterable[int]) -> ModelInput:
        """Text alone."""
        return cls((TextChunk(tuple(tokens)),))

    @property
    def is_text(self) -> bool:
        """Whether it holds no image."""
        return all(isinstance(chunk, TextChunk) for chunk in self.chunks)

    @property
    def tokens(self) -> tuple[int, ...]:
        """The token ids of text alone.

        Raises:
            DataError: it holds an image.
        """
        if len(self.chunks) == 1 and isinstance(self.chunks[0], TextChunk):
            return self.chunks[0].tokens
        tokens: list[int] = []
        for number, chunk in enumerate(self.chunks, start=1):
            if isinstance(chunk, ImageChunk):
                raise DataError(
                    f"Chunk {number} of {len(self.chunks)} is an image, and what reads it here "
                    "reads text alone.",
                    hint="Leave the image out, or use a backend whose model sees.",
                )
            tokens += chunk.tokens
        return tuple(tokens)

    def __len__(self) -> int:
        return sum(len(chunk) for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class Datum:
    """One training example.

    `model_input` holds T tokens. `loss_fn_inputs` is what the loss wants: for `cross_entropy` these
    are `target_tokens` int64[T] (the token after each position) and `weights` float32[T] (zero
    where nothing is learned; one everywhere where they are not given). With [T, K] of each, K
    tokens are targets at each position: a distribution to be matched rather than an answer to be
    given. What `PER_TOKEN` names is aligned to the model input, and shaped as the targets are.

    Raises:
        DataError: one of these has another length, shape or dtype.
    """

    model_input: ModelInput
    loss_fn_inputs: Mapping[str, TensorData] = field(default_factory=dict)

    def __post_init__(self) -> None:
        length = len(self.model_input)
        targets = self.loss_fn_inputs.get("target_tokens")
        for name, tensor in self.loss_fn_inputs.items():
            if name not in PER_TOKEN:
                continue
            if tensor.dtype != PER_TOKEN[name]:
                raise DataError(f"{name} is {tensor.dtype}; it has to be {PER_TOKEN[name]}.")
            if not tensor.shape or len(tensor) != length:
                size = f"{len(tensor)} values" if tensor.shape else "a single value"
                raise DataError(f"{name} has {size}, the model input {length} tokens.")
            if targets is not None and tensor.shape != targets.shape:
                raise DataError(
                    f"{name} is {list(tensor.shape)}, target_tokens {list(targets.shape)}."
                )
