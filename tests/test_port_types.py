"""Model inputs, arrays, examples and samples: what they refuse, and that they survive JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shammah import ports
from shammah.errors import DataError, InputError, PortError, ShammahError, TrainingError
from shammah.ports import wire
from shammah.ports.datum import Datum, ImageChunk, ModelInput, TensorData, TextChunk
from shammah.ports.sampling_client import SamplingParams, TokensWithLogprobs

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"

tokens = st.lists(st.integers(0, 2**31), max_size=12)
finite = hnp.from_dtype(np.dtype(np.float32), allow_nan=False, allow_infinity=False)
arrays = st.one_of(
    hnp.arrays(np.int64, hnp.array_shapes(min_dims=0, min_side=0, max_dims=3)),
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, min_side=0, max_dims=3), elements=finite),
)
images = st.builds(
    lambda data, kind, size: ImageChunk((PNG if kind == "png" else JPEG) + data, kind, size),
    st.binary(max_size=20),
    st.sampled_from(["png", "jpeg"]),
    st.integers(1, 500),
)
inputs = st.lists(st.one_of(st.builds(lambda t: TextChunk(tuple(t)), tokens), images), max_size=4)


@st.composite
def datums(draw: st.DrawFn) -> Datum:
    model_input = ModelInput(tuple(draw(inputs)))
    shape: tuple[int, ...] = (len(model_input),)
    if draw(st.booleans()):
        shape = (*shape, draw(st.integers(1, 3)))
    if shape[0] > 100:
        return Datum(model_input, {"label": TensorData(draw(arrays))})
    given = {
        "target_tokens": TensorData(draw(hnp.arrays(np.int64, shape))),
        "weights": TensorData(draw(hnp.arrays(np.float32, shape, elements=finite))),
        "label": TensorData(draw(arrays)),
    }
    return Datum(model_input, given)


def through_json(values: Any) -> Any:
    return json.loads(json.dumps(values, allow_nan=False))


@given(arrays)
def test_arrays_survive_json_torch_and_numpy(array: Any) -> None:
    tensor = TensorData(array)
    again = wire.tensor_from_dict(through_json(wire.tensor_to_dict(tensor)))
    assert again == tensor and again.shape == array.shape and again.dtype == array.dtype.name
    assert again.data.tobytes() == np.ascontiguousarray(array).tobytes()
    moved = tensor.to_torch()
    assert moved.dtype == (torch.int64 if tensor.dtype == "int64" else torch.float32)
    assert tuple(moved.shape) == array.shape and TensorData.of(moved) == tensor
    assert TensorData.of(array) == tensor


@given(datums())
def test_examples_survive_json(datum: Datum) -> None:
    again = wire.datum_from_dict(through_json(wire.datum_to_dict(datum)))
    assert again == datum
    assert len(again.model_input) == sum(len(chunk) for chunk in datum.model_input.chunks)


@given(tokens, st.data())
def test_samples_survive_json(ids: list[int], data: st.DataObject) -> None:
    logprobs = data.draw(
        st.lists(st.floats(-1e3, 0.0), min_size=len(ids), max_size=len(ids)), label="logprobs"
    )
    stopped = ids[-1] if ids and len(logprobs) % 2 else None
    sample = TokensWithLogprobs(tuple(ids), tuple(logprobs), "stop", stopped)
    assert wire.tokens_from_dict(through_json(wire.tokens_to_dict(sample))) == sample
    assert len(sample.answer_tokens) == len(ids) - (stopped is not None)


def test_a_copy_is_a_copy_and_other_dtypes_become_the_two() -> None:
    array = np.arange(3, dtype=np.int64)
    copied = TensorData.of(array)
    array[0] = 9
    assert copied.data.tolist() == [0, 1, 2]
    tensor = torch.zeros(2)
    moved = TensorData.of(tensor)
    tensor.fill_(1.0)
    assert moved.data.tolist() == [0.0, 0.0]
    leaf = torch.ones(2, requires_grad=True) * 2
    assert TensorData.of(leaf).data.tolist() == [2.0, 2.0]
    for kind in (torch.bfloat16, torch.float16, torch.float64):
        assert TensorData.of(torch.tensor([0.5], dtype=kind)) == TensorData.floats([0.5])
    for whole in (torch.int32, torch.uint8, torch.bool):
        assert TensorData.of(torch.tensor([1], dtype=whole)) == TensorData.ints([1])
    assert TensorData.of([[1, 2], [3, 4]]).shape == (2, 2)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1.0, float("nan")], "1 of 2 values are not finite"),
        (np.array([1e300]), "not finite"),
        (np.array([2**63], dtype=np.uint64), "neither int64 nor float32"),
        (["a"], "neither int64 nor float32"),
        ([[1], [1, 2]], "No array"),
    ],
)
def test_what_is_no_array_of_numbers(values: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        TensorData.of(values)


def test_an_array_of_another_dtype_is_not_taken_as_it_is() -> None:
    with pytest.raises(DataError, match="float64"):
        TensorData(np.zeros(2))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="list"):
        TensorData([1, 2])  # type: ignore[arg-type]


def test_text_is_easy_and_images_take_room() -> None:
    text = ModelInput.of(np.array([3, 1, 4]))
    assert text.tokens == (3, 1, 4) and len(text) == 3 and text.is_text
    assert all(type(token) is int for token in text.tokens)
    assert ModelInput((TextChunk((1,)), TextChunk((2, 3)))).tokens == (1, 2, 3)
    seen = ModelInput((TextChunk((1, 2)), ImageChunk(PNG, "png", 64), TextChunk((3,))))
    assert len(seen) == 67 and not seen.is_text
    with pytest.raises(DataError, match="Chunk 2 of 3 is an image"):
        _ = seen.tokens


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ModelInput.of([1, -2]), "-2"),
        (lambda: ModelInput.of([1.5]), "whole numbers"),  # type: ignore[list-item]
        (lambda: ModelInput((1, 2)), "ModelInput.of"),  # type: ignore[arg-type]
        (lambda: ImageChunk(JPEG, "png", 3), "3 bytes given as png"),
        (lambda: ImageChunk(PNG, "gif", 3), "'gif'"),  # type: ignore[arg-type]
        (lambda: ImageChunk(PNG, "png", 0), "at least one token"),
        (lambda: SamplingParams(max_tokens=0), "max_tokens cannot be 0"),
        (lambda: SamplingParams(temperature=float("nan")), "temperature"),
        (lambda: SamplingParams(top_p=0.0), "top_p"),
        (lambda: TokensWithLogprobs((1, 2), (-0.1,), "stop"), "2 tokens with 1 logprobs"),
        (lambda: TokensWithLogprobs((1,), (float("nan"),), "stop"), "nan"),
        (lambda: TokensWithLogprobs((1,), (0.5,), "stop"), "0.5"),
        (lambda: TokensWithLogprobs((1,), (-0.5,), "stop", 2), "is not 2"),
    ],
)
def test_what_fits_nowhere_is_refused(make: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        make()


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("weights", TensorData.floats([1.0] * 3), "weights has 3 values, the model input 4 tokens"),
        ("advantages", TensorData.floats([1.0] * 5), "advantages has 5 values, .* 4 tokens"),
        ("target_tokens", TensorData.ints([1]), "target_tokens has 1 values"),
        ("weights", TensorData.ints([1] * 4), "weights is int64; it has to be float32"),
        ("target_tokens", TensorData.floats([1.0] * 4), "it has to be int64"),
        ("logprobs", TensorData(np.zeros((), np.float32)), "logprobs has a single value,"),
    ],
)
def test_a_misaligned_example_names_the_field_and_both_numbers(
    name: str, tensor: TensorData, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        Datum(ModelInput.of([1, 2, 3, 4]), {name: tensor})


def test_inputs_are_shaped_as_the_targets_are() -> None:
    targets = TensorData(np.zeros((2, 3), np.int64))
    with pytest.raises(DataError, match=r"weights is \[2\], target_tokens \[2, 3\]"):
        Datum(
            ModelInput.of([1, 2]),
            {"target_tokens": targets, "weights": TensorData.floats([1.0, 1.0])},
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": "float64"}, "dtype"),
        ({"shape": [3]}, r"\[3\] has 3 values, the data 2"),
        ({"data": [0.5, 1]}, "whole number"),
        ({"data": ["a"]}, "data"),
        ({"data": [2**70, 1]}, "int64"),
        ({"more": 1}, "more"),
    ],
)
def test_broken_arrays_from_elsewhere(change: dict[str, Any], words: str) -> None:
    values = {"data": [1, 2], "dtype": "int64", "shape": [2], **change}
    with pytest.raises(DataError, match=words):
        wire.tensor_from_dict(values)


def test_broken_examples_from_elsewhere() -> None:
    good = wire.datum_to_dict(Datum(ModelInput.of([1]), {"weights": TensorData.floats([1.0])}))
    for change, words in (
        ({"model_input": None}, "model_input"),
        ({"model_input": {"chunks": [{"type": "sound"}]}}, "model_input.chunks.0"),
        ({"model_input": {"chunks": [{"type": "text", "tokens": [-1]}]}}, "tokens.0"),
        ({"model_input": {"chunks": [{"type": "text", "tokens": [True]}]}}, "tokens.0"),
        ({"model_input": {"chunks": []}}, "weights has 1 values, the model input 0 tokens"),
        ({"loss_fn_inputs": {"weights": {**_one(), "shape": [2]}}}, "^weights: "),
    ):
        with pytest.raises(DataError, match=words):
            wire.datum_from_dict(through_json({**good, **change}))
    image = {"type": "image", "data": "%", "format": "png", "expected_tokens": 1}
    with pytest.raises(DataError, match="base64"):
        wire.model_input_from_dict({"chunks": [image]})
    with pytest.raises(DataError, match="stop_reason"):
        wire.tokens_from_dict({"tokens": [], "logprobs": [], "stop_reason": "tired"})


def _one() -> dict[str, Any]:
    return {"data": [1.0], "dtype": "float32", "shape": [1]}


def test_protocols_and_types_load_neither_torch_nor_http() -> None:
    names = [f"shammah.ports.{path.stem}" for path in Path(ports.__path__[0]).glob("[a-z]*.py")]
    code = (
        f"import sys, {', '.join(names)}, shammah.backends.openai_llm\n"
        "print([name for name in ('torch', 'transformers', 'httpx2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_errors_of_ports_say_whose_they_are() -> None:
    error = TrainingError("The loss is nan.", hint="Lower it.")
    assert isinstance(error, PortError) and isinstance(error, RuntimeError)
    assert (error.port, error.backend, error.exit_code) == ("TrainingClient", "local torch", 7)
    assert str(error) == "The loss is nan.\n  Lower it."
    assert issubclass(DataError, ValueError) and issubclass(DataError, ShammahError)
    assert not issubclass(DataError, InputError)
