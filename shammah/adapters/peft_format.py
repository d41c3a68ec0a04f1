"""To PEFT's own layout and back: `adapter_model.safetensors` with `adapter_config.json`.

Only plain LoRA is taken in; what an adapter of another kind computes would not be kept.
"""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from shammah.adapters.header import check_file
from shammah.adapters.library import Adapter, AdapterLibrary
from shammah.adapters.metadata import AdapterMetadata, LoraConfigRecord
from shammah.adapters.validate import BaseShape, check_finite, check_shapes
from shammah.adapters.weights import module_paths
from shammah.errors import AdapterExistsError, AdapterInvalidError
from shammah.files import private_folder, write_atomic

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
LESSONS = "lessons.jsonl"


class PeftConfig(BaseModel):
    """The part of PEFT's configuration that says what an adapter computes."""

    model_config = ConfigDict(extra="ignore")

    peft_type: str
    r: int
    lora_alpha: float
    lora_dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    bias: str = "none"
    modules_to_save: list[str] | None = None
    rank_pattern: dict[str, Any] | None = None
    alpha_pattern: dict[str, Any] | None = None
    lora_bias: bool = False
    layer_replication: list[Any] | None = None
    base_model_name_or_path: str | None = None


def export_peft(adapter: Adapter, folder: Path, *, with_lessons: bool = False) -> Path:
    """Write an adapter as `peft.PeftModel.from_pretrained` loads it.

    Lessons quote the user, so their text stays out unless `with_lessons` asks for it
    (`lessons.jsonl`).

    Raises:
        AdapterExistsError: there is an adapter in the folder already.
        AdapterInvalidError: the adapter is broken.
        StorageError: the folder cannot be written.
    """
    metadata = adapter.require_metadata()
    entries = check_file(adapter.path)
    if any((folder / name).exists() for name in (WEIGHTS, CONFIG)):
        raise AdapterExistsError(
            f"{folder} holds an adapter already.", hint="Give another folder, or remove it."
        )
    private_folder(folder)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": metadata.base_model,
        "r": metadata.lora.rank,
        "lora_alpha": metadata.lora.alpha,
        "lora_dropout": metadata.lora.dropout,
        "use_rslora": metadata.lora.rslora,
        "target_modules": sorted(module_paths(entries, WEIGHTS)),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write_atomic(folder / WEIGHTS, lambda path: shutil.copyfile(adapter.path, path))
    if with_lessons:
        lines = [
            json.dumps(
                {"query": lesson.query, "correction": lesson.target, "weight": lesson.weight},
                ensure_ascii=False,
            )
            for lesson in metadata.lessons
        ]
        write_atomic(folder / LESSONS, "".join(line + "\n" for line in lines))
    # Last, as the folder is an adapter only with it.
    write_atomic(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    return folder


def import_peft(folder: Path, base: BaseShape, library: AdapterLibrary) -> Adapter:
    """Check an adapter in PEFT's layout against a base model and publish it in the library.

    Raises:
        AdapterInvalidError: it is a pickle, not plain LoRA, broken, or does not fit the model.
        StorageError: the library cannot be written.
    """
    weights = folder / WEIGHTS
    if not weights.is_file():
        pickled = folder / "adapter_model.bin"
        raise AdapterInvalidError(
            f"{folder} holds a pickle ({pickled.name}), and pickles are never read."
            if pickled.exists()
            else f"{folder} has no {WEIGHTS}.",
            hint="Save it with PEFT's `save_pretrained(..., safe_serialization=True)`.",
        )
    config = _config(folder / CONFIG)
    entries = check_file(weights)
    modules = check_shapes(weights.name, entries, config.r, base)
    check_finite(weights)
    metadata = AdapterMetadata(
        name="",
        created_at=datetime.now(UTC),
        base_model=base.name,
        base_fingerprint=base.fingerprint,
        lora=LoraConfigRecord(
            rank=config.r,
            alpha=config.lora_alpha,
            dropout=config.lora_dropout,
            target_modules=sorted(modules),
            rslora=config.use_rslora,
        ),
        sha256="",
        tensors=len(entries),
        parameters=sum(entry.parameters for entry in entries.values()),
        origin="imported",
    )
    return library.publish(weights, metadata)


def _config(path: Path) -> PeftConfig:
    try:
        config = PeftConfig.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise AdapterInvalidError(f"{path.parent} has no {CONFIG}.") from error
    except OSError as error:
        raise AdapterInvalidError(f"{path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the file"
        raise AdapterInvalidError(f"{path} is not usable: {where}: {problem['msg']}.") from error
    kinds = {
        f"of the type {config.peft_type}": config.peft_type != "LORA",
        "DoRA": config.use_dora,
        "trained with bias": config.bias != "none" or config.lora_bias,
        "one that replaces whole modules": bool(config.modules_to_save),
        "of several ranks": bool(config.rank_pattern or config.alpha_pattern),
        "one that repeats layers": bool(config.layer_replication),
    }
    for kind, found in kinds.items():
        if found:
            raise AdapterInvalidError(
                f"The adapter in {path.parent} is {kind}; only plain LoRA can be used."
            )
    if config.r < 1:
        raise AdapterInvalidError(f"{path} gives the rank {config.r}.")
    return config
