"""Model inputs, examples and samples as JSON values, so that they can cross a process.

Reading back gives what was written, to the bit; what does not fit is refused with the place where
it does not. Knows the types and pydantic.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shammah.errors import DataError
from shammah.ports.datum import (
    Chunk,
    Datum,
    DType,
    ImageChunk,
    ImageFormat,
    ModelInput,
    TensorData,
    TextChunk,
)
from shammah.ports.sampling_client import StopReason, TokensWithLogprobs

Values = dict[str, Any]
"""A JSON object."""


def tensor_to_dict(tensor: TensorData) -> Values:
    return {
        "data": tensor.data.reshape(-1).tolist(),
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
    }


def tensor_from_dict(values: Any) -> TensorData:
    """What `tensor_to_dict` gave.

    Raises:
        DataError: it is something else, or the shape is not that of the data.
    """
    return _read(_Tensor, values).made()


def model_input_to_dict(model_input: ModelInput) -> Values:
    return {"chunks": [_chunk(chunk) for chunk in model_input.chunks]}


def model_input_from_dict(values: Any) -> ModelInput:
    """What `model_input_to_dict` gave.

    Raises:
        DataError: it is something else.
    """
    return _read(_ModelInput, values).made()


def datum_to_dict(datum: Datum) -> Values:
    return {
        "model_input": model_input_to_dict(datum.model_input),
        "loss_fn_inputs": {
            name: tensor_to_dict(tensor) for name, tensor in datum.loss_fn_inputs.items()
        },
    }


def datum_from_dict(values: Any) -> Datum:
    """What `datum_to_dict` gave.

    Raises:
        DataError: it is something else, or its parts do not fit together.
    """
    read = _read(_Datum, values)
    inputs = {}
    for name, tensor in read.loss_fn_inputs.items():
        try:
            inputs[name] = tensor.made()
        except DataError as error:
            raise DataError(f"{name}: {error.message}", hint=error.hint) from error
    return Datum(read.model_input.made(), inputs)


def tokens_to_dict(sample: TokensWithLogprobs) -> Values:
    return {
        "tokens": list(sample.tokens),
        "logprobs": list(sample.logprobs),
        "stop_reason": sample.stop_reason,
        "stop_token": sample.stop_token,
    }


def tokens_from_dict(values: Any) -> TokensWithLogprobs:
    """What `tokens_to_dict` gave.

    Raises:
        DataError: it is something else.
    """
    read = _read(_Tokens, values)
    return TokensWithLogprobs(
        tuple(read.tokens), tuple(read.logprobs), read.stop_reason, read.stop_token
    )


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


Token = Annotated[int, Field(ge=0, le=2**63 - 1)]


class _Tensor(_Strict):
    data: list[int] | list[float]
    dtype: DType
    shape: list[Annotated[int, Field(ge=0)]]

    def made(self) -> TensorData:
        if math.prod(self.shape) != len(self.data):
            raise DataError(
                f"The shape {self.shape} has {math.prod(self.shape)} values, "
                f"the data {len(self.data)}."
            )
        if self.dtype == "int64" and not all(isinstance(value, int) for value in self.data):
            raise DataError("The dtype is int64, and a value is no whole number.")
        try:
            with np.errstate(over="ignore"):
                array = np.array(self.data, dtype=np.dtype(self.dtype)).reshape(self.shape)
        except OverflowError as error:
            raise DataError(f"A value does not fit {self.dtype}: {error}.") from error
        return TensorData(array)


class _Text(_Strict):
    type: Literal["text"]
    tokens: list[Token]

    def made(self) -> Chunk:
        return TextChunk(tuple(self.tokens))


class _Image(_Strict):
    type: Literal["image"]
    data: str
    format: ImageFormat
    expected_tokens: int

    def made(self) -> Chunk:
        try:
            data = base64.b64decode(self.data, validate=True)
        except binascii.Error as error:
            raise DataError(f"The image's data is not base64: {error}.") from error
        return ImageChunk(data, self.format, self.expected_tokens)


class _ModelInput(_Strict):
    chunks: Sequence[Annotated[_Text | _Image, Field(discriminator="type")]]

    def made(self) -> ModelInput:
        return ModelInput(tuple(chunk.made() for chunk in self.chunks))


class _Datum(_Strict):
    model_input: _ModelInput
    loss_fn_inputs: dict[str, _Tensor]


class _Tokens(_Strict):
    tokens: list[Token]
    logprobs: list[float]
    stop_reason: StopReason
    stop_token: Token | None = None


def _chunk(chunk: Chunk) -> Values:
    if isinstance(chunk, TextChunk):
        return {"type": "text", "tokens": list(chunk.tokens)}
    return {
        "type": "image",
        "data": base64.b64encode(chunk.data).decode(),
        "format": chunk.format,
        "expected_tokens": chunk.expected_tokens,
    }


Model = TypeVar("Model", bound=_Strict)


def _read(kind: type[Model], values: Any) -> Model:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise DataError(f"{where}: {first['msg']}") from error
