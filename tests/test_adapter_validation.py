"""Every check before an adapter is used, each by a file that fails only that one."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_files import (
    MODULES,
    Base,
    file_bytes,
    header_of,
    lora_tensors,
    metadata_for,
    pack,
    write_adapter,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shammah.adapters.header import MAX_HEADER_BYTES
from shammah.adapters.validate import check_against, check_file, is_finite
from shammah.errors import AdapterInvalidError

Q_A = "base_model.model.model.layers.0.q_proj.lora_A.weight"
Q_B = "base_model.model.model.layers.0.q_proj.lora_B.weight"


def refused(path: Path, match: str, base: Base | None = None, **changes: Any) -> str:
    """The message that refuses a file whose description fits its bytes."""
    metadata = metadata_for(path.read_bytes() if path.is_file() else b"", **changes)
    with pytest.raises(AdapterInvalidError, match=match) as caught:
        check_against(path, metadata, base or Base(), folder=path.parent)
    assert path.name in caught.value.message
    assert caught.value.hint
    return caught.value.message


def placed(folder: Path, content: bytes) -> Path:
    path = folder / "some.safetensors"
    path.write_bytes(content)
    return path


def test_a_sound_adapter_is_accepted(tmp_path: Path) -> None:
    path, metadata = write_adapter(tmp_path)
    check_against(path, metadata, Base(), folder=tmp_path)
    header = check_file(path)
    assert (len(header.tensors), header.parameters) == (4, 2 * (6 + 4) + 2 * (8 + 6))


def test_files_of_the_safetensors_library_are_accepted(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from shammah.adapters.weights import load_checked, load_weights

    path = tmp_path / "some.safetensors"
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        tensors = {}
        for module, (inputs, outputs) in MODULES.items():
            tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(2, inputs).to(dtype)
            tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(outputs, 2).to(dtype)
        save_file(tensors, path, {"format": "pt"})
        metadata = metadata_for(path.read_bytes())
        check_against(path, metadata, Base())
        checked, loaded = load_checked(path, metadata, Base()), load_weights(path, metadata)
        path.unlink()
        for weights in (checked, loaded):
            assert weights.scaling == 2.0
            assert weights.modules.keys() == MODULES.keys()
            for module, (a, b) in weights.modules.items():
                assert a.dtype == b.dtype == dtype
                assert torch.equal(a, tensors[f"base_model.model.{module}.lora_A.weight"])
                assert torch.equal(b, tensors[f"base_model.model.{module}.lora_B.weight"])


# --- the file ---------------------------------------------------------------------------------


def test_pickles_are_refused_by_name_and_by_content(tmp_path: Path) -> None:
    import torch

    named = tmp_path / "adapter_model.bin"
    torch.save({"a": torch.zeros(1)}, named)
    refused(named, "pickles, which can run code")
    zipped = io.BytesIO()
    torch.save({"a": torch.zeros(1)}, zipped)
    plain = [pickle.dumps({"a": [1.0] * 50}, protocol) for protocol in (2, 4, 5)]
    for content in (zipped.getvalue(), *plain):
        refused(placed(tmp_path, content), "pickle under another name")


def test_other_suffixes_and_missing_files(tmp_path: Path) -> None:
    refused(tmp_path / "some.gguf", r"only \.safetensors")
    refused(tmp_path / "some.safetensors", "no such file")


def test_a_ten_gigabyte_header_is_refused_without_allocating(tmp_path: Path) -> None:
    path = placed(tmp_path, struct.pack("<Q", 10 * 2**30) + b"{}" * 50)
    tracemalloc.start()
    message = refused(path, "header length")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "10,737,418,240" in message
    assert peak < 2**21
    # A sparse file that is really that long is refused as well.
    with path.open("r+b") as stream:
        stream.truncate(11 * 2**30)
    with pytest.raises(AdapterInvalidError, match="size"):
        check_file(path)
    with path.open("r+b") as stream:
        stream.truncate(2**30)
        stream.write(struct.pack("<Q", MAX_HEADER_BYTES + 1))
    with pytest.raises(AdapterInvalidError, match="header length"):
        check_file(path)


@pytest.mark.parametrize("keep", [0, 7, 8, 100, -1, -97])
def test_truncated_files_are_refused(tmp_path: Path, keep: int) -> None:
    content = file_bytes(lora_tensors())
    refused(placed(tmp_path, content[:keep]), r"size|header length|cut short")


def test_bytes_behind_the_last_tensor_are_refused(tmp_path: Path) -> None:
    refused(placed(tmp_path, file_bytes(lora_tensors()) + b"\0"), "1 bytes follow")


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b"not json", "not begin with"),
        (b"{\xff\xfe}", "not valid JSON"),
        (b'{"a": ', "not valid JSON"),
        (b'{"a": 1, "a": 2}', "stands in it twice"),
        (b"{" * 10, "not valid JSON"),
        (b'{"a":' + b"[" * 200_000, "not valid JSON"),
        (b"{}", "names no tensors"),
        (b'{"a": 1}', "header"),
        (b'{"a": {"dtype": "F32", "shape": [1]}}', "data_offsets"),
        (b'{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}', "shape"),
        (b'{"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}', "shape"),
        (b'{"__metadata__": {"format": 1}, "a": {}}', "format"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "x": 1}}', "extra"),
    ],
)
def test_broken_headers_are_refused(tmp_path: Path, raw: bytes, match: str) -> None:
    refused(placed(tmp_path, pack(raw, b"\0" * 4)), match)


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ({"data_offsets": [4, 52]}, "begins at byte"),
        ({"data_offsets": [-4, 44]}, "offsets"),
        ({"data_offsets": [48, 0]}, "offsets"),
        ({"data_offsets": [0, 48, 96]}, "offsets"),
        ({"data_offsets": [0, 44]}, "needs 48"),
        ({"shape": [2, 2**62]}, "needs"),
        ({"shape": [-2, -6]}, "shape"),
        ({"shape": [0, 6], "data_offsets": [0, 0]}, "shape"),
        ({"dtype": "I8"}, "number format"),
        ({"dtype": "F64"}, "number format"),
        ({"dtype": "F8_E4M3"}, "number format"),
    ],
)
def test_offsets_shapes_and_number_formats(tmp_path: Path, entry: Any, match: str) -> None:
    tensors = lora_tensors()
    header = header_of(tensors)
    header[Q_A].update(entry)
    data = b"".join(content for _, _, content in tensors.values())
    refused(placed(tmp_path, pack(header, data)), match)


def test_overlapping_tensors_are_refused(tmp_path: Path) -> None:
    tensors = lora_tensors()
    header = header_of(tensors)
    header[Q_B]["data_offsets"] = [0, 32]
    refused(placed(tmp_path, pack(header, b"\0" * 240)), "begins at byte")


# --- its place --------------------------------------------------------------------------------


def test_paths_and_links_that_climb_out_are_refused(tmp_path: Path) -> None:
    library = tmp_path / "library"
    library.mkdir()
    outside, metadata = write_adapter(tmp_path)
    link = library / "link.safetensors"
    link.symlink_to(outside)
    circle = library / "circle.safetensors"
    circle.symlink_to(circle)
    inner = library / "inner"
    inner.symlink_to(tmp_path)
    for path in (
        outside,
        library / ".." / outside.name,
        link,
        circle,
        inner / outside.name,
    ):
        with pytest.raises(AdapterInvalidError, match=r"place.*(outside|leads out)"):
            check_against(path, metadata, Base(), folder=library)


def test_what_is_no_file_is_refused_and_does_not_block(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    refused(pipe, "file type")
    folder = tmp_path / "folder.safetensors"
    folder.mkdir()
    refused(folder, "file type")


# --- that it fits -----------------------------------------------------------------------------


def test_another_base_model_is_refused_first(tmp_path: Path) -> None:
    path, _ = write_adapter(tmp_path)
    other = Base(name="other", fingerprint="0" * 64, modules={})
    message = refused(path, "base model", other)
    assert "tiny" in message
    assert "other" in message


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop(Q_A), "has no lora_A"),
        (lambda t: t.update({Q_A.replace("lora_A", "lora_magnitude"): t[Q_A]}), "no LoRA matrix"),
        (lambda t: t.update({"lm_head.weight": t[Q_A]}), "no LoRA matrix"),
        (lambda t: t.update({Q_A.replace(".weight", ".default.weight"): t.pop(Q_A)}), "no LoRA"),
        (lambda t: t.update({Q_A: ("F32", (12,), t[Q_A][2])}), "shapes"),
        (lambda t: t.update({Q_A: ("F32", (3, 4), t[Q_A][2])}), "belong together"),
        (lambda t: t.update(lora_tensors(modules={"model.layers.7.q_proj": (6, 4)})), "layers.7"),
        (lambda t: t.update(lora_tensors(modules={"model.layers.0.q_proj": (5, 4)})), "5 inputs"),
        (lambda t: t.update(lora_tensors(modules={"model.layers.0.q_proj": (6, 5)})), "5 outputs"),
        (lambda t: t.update(lora_tensors(3, 3, {"model.layers.0.q_proj": (6, 4)})), "mixes ranks"),
        (lambda t: t.update(lora_tensors(rank=3)), "rank 3, its description says 2"),
    ],
)
def test_names_shapes_and_ranks(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], match: str
) -> None:
    tensors = lora_tensors()
    change(tensors)
    refused(placed(tmp_path, file_bytes(tensors)), match)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", [0, 11])
def test_numbers_that_are_not_finite(tmp_path: Path, value: float, index: int) -> None:
    tensors = lora_tensors()
    numbers = np.frombuffer(tensors[Q_A][2], np.float32).copy()
    numbers[index] = value
    tensors[Q_A] = ("F32", (2, 6), numbers.tobytes())
    refused(placed(tmp_path, file_bytes(tensors)), "NaN or infinity")


def test_one_changed_bit_is_noticed(tmp_path: Path) -> None:
    path, metadata = write_adapter(tmp_path)
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)
    with pytest.raises(AdapterInvalidError, match="sha256"):
        check_against(path, metadata, Base())


@given(st.binary(min_size=4, max_size=64).filter(lambda raw: len(raw) % 4 == 0))
def test_finite_agrees_with_torch_for_any_bits(raw: bytes) -> None:
    import torch

    for name, dtype in (
        ("F32", torch.float32),
        ("F16", torch.float16),
        ("BF16", torch.bfloat16),
    ):
        numbers = torch.frombuffer(bytearray(raw), dtype=dtype)
        assert is_finite(name, raw) == bool(torch.isfinite(numbers).all())


def test_finite_looks_at_every_window() -> None:
    numbers = np.zeros(600_000, np.float32)
    for place in (0, 262_143, 262_144, 599_999):
        changed = numbers.copy()
        changed[place] = np.nan
        assert not is_finite("F32", changed.tobytes())
    assert is_finite("F32", numbers.tobytes())


# --- anything at all --------------------------------------------------------------------------

SOUND = file_bytes(lora_tensors())


@st.composite
def corrupted(draw: st.DrawFn) -> bytes:
    content = bytearray(SOUND)
    for _ in range(draw(st.integers(1, 4))):
        # The header is where most checks are; a third of the file.
        place = draw(st.integers(0, len(content) - 1))
        kind = draw(st.sampled_from(["flip", "cut", "insert", "remove", "copy"]))
        if kind == "flip":
            content[place] = draw(st.integers(0, 255))
        elif kind == "cut":
            content = content[: max(place, 1)]
        elif kind == "insert":
            content[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "remove" and len(content) > 8:
            del content[place : place + draw(st.integers(1, 8))]
        else:
            content[place : place + 8] = content[:8]
        content = content or bytearray(b"\0")
    return bytes(content)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(corrupted())
def test_corrupted_files_are_refused_or_mean_what_they_say(tmp_path: Path, content: bytes) -> None:
    from safetensors import safe_open

    path = placed(tmp_path, content)
    if content != SOUND:
        with pytest.raises(AdapterInvalidError):
            check_against(path, metadata_for(SOUND), Base())
    # Without the checksum's help: what is accepted, the format's own library reads the same way.
    try:
        check_against(path, metadata_for(content), Base())
    except AdapterInvalidError:
        return
    with safe_open(path, "np") as stored:
        shapes = {name: list(stored.get_tensor(name).shape) for name in stored.keys()}  # noqa: SIM118
    assert shapes == {tensor.name: list(tensor.shape) for tensor in check_file(path).tensors}


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from([Q_A, "__metadata__", "dtype", "shape", "data_offsets"]), inner
    ),
    max_leaves=12,
))  # fmt: skip
def test_any_json_as_a_header_is_refused(tmp_path: Path, value: Any) -> None:
    path = placed(tmp_path, pack(json.dumps(value).encode(), b"\0" * 48))
    with pytest.raises(AdapterInvalidError):
        check_against(path, metadata_for(b""), Base())


def test_looking_at_adapters_does_not_import_torch() -> None:
    code = (
        "import sys, shammah.adapters.library, shammah.adapters.peft_format\n"
        "assert not {'torch', 'peft', 'transformers', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
