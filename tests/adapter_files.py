"""Adapter files made by hand, byte by byte, for the tests of the adapters room."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from shammah.adapters.metadata import AdapterMetadata, LessonRecord, LoraConfigRecord

FINGERPRINT = "f" * 64
RANK = 2
MODULES = {"model.layers.0.q_proj": (6, 4), "model.layers.0.down_proj": (8, 6)}

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]


@dataclass(frozen=True)
class Base:
    """The shape of a base model that is not there."""

    name: str = "tiny"
    fingerprint: str = FINGERPRINT
    modules: Mapping[str, tuple[int, int]] = field(default_factory=lambda: dict(MODULES))


def lora_tensors(seed: int = 0, rank: int = RANK, modules: Any = MODULES) -> Tensors:
    """Random float32 factors with PEFT's key names: name -> (dtype, shape, bytes)."""
    random = np.random.default_rng(seed)
    tensors: Tensors = {}
    for module, (inputs, outputs) in modules.items():
        for factor, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
            content = random.standard_normal(shape, dtype=np.float32).tobytes()
            tensors[f"base_model.model.{module}.lora_{factor}.weight"] = ("F32", shape, content)
    return tensors


def header_of(tensors: Tensors) -> dict[str, Any]:
    header: dict[str, Any] = {}
    place = 0
    for name, (dtype, shape, content) in tensors.items():
        end = place + len(content)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, end]}
        place = end
    return header


def pack(header: Mapping[str, Any] | bytes, data: bytes) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def file_bytes(tensors: Tensors) -> bytes:
    return pack(header_of(tensors), b"".join(content for _, _, content in tensors.values()))


def metadata_for(content: bytes, **changes: Any) -> AdapterMetadata:
    """A description that fits `lora_tensors` and the bytes of its file."""
    values: dict[str, Any] = {
        "name": "",
        "created_at": datetime(2026, 2, 6, 14, 30, 25, tzinfo=UTC),
        "base_model": "tiny",
        "base_fingerprint": FINGERPRINT,
        "lora": LoraConfigRecord(rank=RANK, alpha=4.0, target_modules=["q_proj", "down_proj"]),
        "lessons": [
            LessonRecord(feedback_id=1, query="Who am I?", target="Ada.", weight=10.0, learned=True)
        ],
        "metrics": {"final_loss": 0.25},
        "sha256": hashlib.sha256(content).hexdigest(),
        "tensors": 4,
        "parameters": 60,
        "origin": "trained",
    }
    return AdapterMetadata(**values | changes)


def write_adapter(folder: Path, seed: int = 0, **changes: Any) -> tuple[Path, AdapterMetadata]:
    """A sound weights file with its description."""
    folder.mkdir(parents=True, exist_ok=True)
    content = file_bytes(lora_tensors(seed))
    path = folder / f"adapter-{seed}.safetensors"
    path.write_bytes(content)
    return path, metadata_for(content, **changes)
