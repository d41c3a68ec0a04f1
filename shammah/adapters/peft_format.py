"""To PEFT's own layout and back: `adapter_model.safetensors` with `adapter_config.json`.

Only plain LoRA is taken in; what an adapter of another kind computes would not be kept.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shammah.adapters.header import check_file, refusal
from shammah.adapters.library import Adapter, AdapterLibrary
from shammah.adapters.metadata import AdapterMetadata, LoraConfigRecord
from shammah.adapters.regular_file import open_regular
from shammah.adapters.validate import BaseModelShape, check_against, lora_pairs, sha256_of
from shammah.errors import AdapterExistsError, AdapterInvalidError
from shammah.files import private_folder, write_atomic

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
LESSONS = "lessons.jsonl"


MAX_CONFIG_BYTES = 2**20
# Of PEFT's initialisations, the others change the base model's weights as well.
INITIALISATIONS = ("gaussian", "eva", "orthogonal")
# GPT-2's layers keep their weights transposed, and PEFT wants to be told.
TRANSPOSED = {"c_attn", "c_fc", "c_proj"}
# Settings of PEFT that change nothing about what saved plain LoRA matrices compute.
NEUTRAL = {
    "auto_mapping", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size", "revision",
    "runtime_config", "target_modules", "task_type",
}  # fmt: skip


class PeftConfig(BaseModel):
    """PEFT's configuration: what plain LoRA computes by, and in `model_extra` all else."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    peft_type: str
    base_model_name_or_path: str | None = None
    r: int = Field(ge=1)
    lora_alpha: float = Field(gt=0)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    use_rslora: bool = False
    bias: str = "none"
    init_lora_weights: bool | str | None = True
    rank_pattern: dict[str, Any] | None = None
    alpha_pattern: dict[str, Any] | None = None


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
    modules = list(lora_pairs(adapter.path, check_file(adapter.path).tensors))
    if sha256_of(adapter.path) != metadata.sha256:
        raise refusal(adapter.path, "sha256", "it was changed after it was made")
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
        "target_modules": _targets(modules, metadata.lora.target_modules),
        "bias": "none",
        "fan_in_fan_out": all(path.rpartition(".")[2] in TRANSPOSED for path in modules),
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
            if lesson.target is not None
        ]
        write_atomic(folder / LESSONS, "".join(line + "\n" for line in lines))
    # Last, as the folder is an adapter only with it.
    write_atomic(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    return folder


def import_peft(folder: Path, base: BaseModelShape, library: AdapterLibrary) -> Adapter:
    """Check an adapter in PEFT's layout against a base model and publish it in the library.

    Raises:
        AdapterInvalidError: it is a pickle, not plain LoRA, broken, or does not fit the model.
        StorageError: the library cannot be written.
    """
    weights = folder / WEIGHTS
    if not folder.is_dir():
        raise AdapterInvalidError(
            f"{folder} is no folder.", hint=f"Give the folder that holds {CONFIG} and {WEIGHTS}."
        )
    if not weights.is_file():
        pickled = folder / "adapter_model.bin"
        raise AdapterInvalidError(
            f"{folder} holds a pickle ({pickled.name}), and pickles are never read."
            if pickled.exists()
            else f"{folder} has no {WEIGHTS}.",
            hint="Save it with PEFT's `save_pretrained(..., safe_serialization=True)`.",
        )
    config = _config(folder / CONFIG)
    header = check_file(weights)
    modules = list(lora_pairs(weights, header.tensors))
    metadata = AdapterMetadata(
        name="",
        created_at=datetime.now(UTC),
        base_model=base.name,
        base_fingerprint=base.fingerprint,
        lora=LoraConfigRecord(
            rank=config.r,
            alpha=config.lora_alpha,
            dropout=config.lora_dropout,
            target_modules=target_names(modules, base),
            rslora=config.use_rslora,
        ),
        sha256=sha256_of(weights),
        tensors=len(header.tensors),
        parameters=header.parameters,
        origin="imported",
    )
    check_against(weights, metadata, base)
    return library.publish(weights, metadata)


def _targets(modules: list[str], names: list[str]) -> list[str]:
    """The names that the adapter was trained with, if they cover its modules; else their paths."""
    covered = all(_matches(module, names) for module in modules)
    return sorted(names if covered else modules)


def target_names(modules: list[str], base: BaseModelShape) -> list[str]:
    """Last path components if they select exactly these modules of the base model, else paths."""
    names = sorted({module.rpartition(".")[2] for module in modules})
    selected = {path for path in base.modules if _matches(path, names)}
    return names if selected == set(modules) else sorted(modules)


def _matches(path: str, names: Iterable[str]) -> bool:
    """As PEFT reads a list of target modules."""
    return any(path == name or path.endswith(f".{name}") for name in names)


def _config(path: Path) -> PeftConfig:
    try:
        with open_regular(path) as stream:
            config = PeftConfig.model_validate_json(stream.read(MAX_CONFIG_BYTES))
    except FileNotFoundError as error:
        raise AdapterInvalidError(
            f"{path.parent} has no {CONFIG}.", hint="It lies beside the weights that PEFT saves."
        ) from error
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the file"
        raise AdapterInvalidError(
            f"{path} is not usable: {where}: {problem['msg']}.", hint="Save it with PEFT again."
        ) from error
    initialised = config.init_lora_weights
    kinds = {
        f"is of the type {config.peft_type}": config.peft_type.upper() != "LORA",
        f"has biases ({config.bias})": config.bias != "none",
        "has ranks or alphas of single modules (rank_pattern, alpha_pattern)": bool(
            config.rank_pattern or config.alpha_pattern
        ),
        f"changed the base model when it was initialised ({initialised})": (
            isinstance(initialised, str) and initialised not in INITIALISATIONS
        ),
    }
    for name, value in (config.model_extra or {}).items():
        kinds[f"uses {name}"] = bool(value) and name not in NEUTRAL
    for kind, found in kinds.items():
        if found:
            raise AdapterInvalidError(
                f"The adapter in {path.parent} {kind}, and only plain LoRA can be used.",
                hint="Train or convert it as plain LoRA with one rank.",
            )
    return config
