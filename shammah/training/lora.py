"""Adapters on a base model: where they go, how they begin, how they are written.

PEFT puts the layers in and names them (Hu et al. 2021, arXiv 2106.09685). Their parameters are
float32 whatever the base model's dtype: steps of a small learning rate vanish in bf16. Knows
nothing about data or optimisers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shammah.errors import AdapterInvalidError, TrainingError
from shammah.files import write_atomic
from shammah.models.load import PROCESS_DEFAULTS
from shammah.settings import LoraSettings
from shammah.training.frozen import FrozenPart, recompress
from shammah.training.trunk import layers_of

ADAPTER = "default"
_MLP = {"mlp", "feed_forward", "ffn", "block_sparse_moe"}
"""What the part of a layer behind its attention is called."""
PREFIX = "base_model.model."


@dataclass(slots=True)
class AttachedLora:
    """An adapter that is part of a model: `layers` maps module paths to PEFT's LoRA layers.

    The configuration is what was really attached: starting from a parent can raise the rank and
    add modules.
    """

    model: Any
    layers: dict[str, Any]
    rank: int
    alpha: float
    dropout: float
    rslora: bool
    target_modules: list[str]
    """Names as in the model's last path component (`q_proj`), or paths where names do not tell."""
    frozen: FrozenPart | None = None
    """The parent, where only what is new is trained."""

    @property
    def scaling(self) -> float:
        return scaling(self.alpha, self.rank, self.rslora)

    def factors(self, path: str) -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
        """A [rank, in] and B [out, rank] of a module, float32."""
        layer = self.layers[path]
        return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight

    def named_parameters(self) -> dict[str, torch.nn.Parameter]:
        """All parameters under PEFT's key names, in the order of the model."""
        named = {}
        for path in self.layers:
            a, b = self.factors(path)
            named[f"{PREFIX}{path}.lora_A.weight"] = a
            named[f"{PREFIX}{path}.lora_B.weight"] = b
        return named

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Overwrite the parameters by tensors of the same names and shapes.

        Raises:
            AdapterInvalidError: names or shapes differ.
        """
        own = self.named_parameters()
        if own.keys() != tensors.keys():
            odd = sorted(own.keys() ^ tensors.keys())[0]
            raise AdapterInvalidError(f"The adapter's tensors are not the model's: {odd}.")
        with torch.no_grad():
            for name, parameter in own.items():
                if parameter.shape != tensors[name].shape:
                    raise AdapterInvalidError(
                        f"{name} is {list(tensors[name].shape)}, not {list(parameter.shape)}."
                    )
                parameter.copy_(tensors[name])

    def save(self, path: Path) -> None:
        """Write the parameters as float32 safetensors with PEFT's key names.

        Raises:
            StorageError: the disk is full or the folder cannot be written.
        """
        from safetensors.torch import save

        tensors = {
            name: parameter.detach().float().cpu().contiguous()
            for name, parameter in self.named_parameters().items()
        }
        write_atomic(path, save(tensors, {"format": "pt"}))

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within it the model computes what the base model does. Without gradients alone."""
        factors = [self.factors(path)[1] for path in self.layers]
        kept = [b.data for b in factors]
        for b in factors:
            b.data = torch.zeros_like(b.data)
        try:
            yield
        finally:
            for b, data in zip(factors, kept, strict=True):
                b.data = data

    def detach(self) -> None:
        """Take the adapter out: the model is the base model again."""
        for path, layer in self.layers.items():
            parent, _, name = path.rpartition(".")
            setattr(self.model.get_submodule(parent), name, layer.get_base_layer())
        for name in ("peft_config", "peft_type", "active_adapter"):
            if hasattr(self.model, name) and name in vars(self.model):
                delattr(self.model, name)


def scaling(alpha: float, rank: int, rslora: bool) -> float:
    """What B A is multiplied by: alpha / r, or alpha / sqrt(r) (rsLoRA, arXiv 2312.03732)."""
    return alpha / (math.sqrt(rank) if rslora else rank)


def attach_lora(
    model: Any,
    settings: LoraSettings,
    parent: Path | None = None,
    *,
    parent_scaling: float | None = None,
    frozen_rank: int | None = None,
    seed: int = 0,
) -> AttachedLora:
    """Put a fresh adapter into a model, or one that begins as a parent adapter.

    A parent of lower rank, other alpha or fewer modules still gives the same function at the
    start: its B is rescaled, what is new begins with B = 0. A parent of higher rank, or with more
    modules, keeps them.

    Args:
        model: a transformers causal LM; changed in place until `AttachedLora.detach`.
        parent: safetensors file with PEFT's key names, already validated against the model.
        parent_scaling: alpha / r of the parent; default: from the metadata file beside it, or
            that of the settings at the parent's rank.
        frozen_rank: keep the parent as it is, in so many ranks at most (recompressed if it has
            more), and train the ranks of the settings beside it.
        seed: of A's random values.

    Raises:
        TrainingError: a target module does not exist in the model, or is its output head.
        AdapterInvalidError: the parent does not fit the model.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    linear = linear_modules(model)
    paths = set(_targets(model, settings, linear))
    inherited: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    own = 0
    rank, alpha, frozen = settings.rank, settings.alpha, 0
    if parent is not None:
        inherited = _read_parent(parent, linear)
        own = max(a.shape[0] for a, _ in inherited.values())
        paths |= inherited.keys()
        if frozen_rank is not None:
            inherited = {
                path: recompress(*factors, frozen_rank) for path, factors in inherited.items()
            }
        held = max(a.shape[0] for a, _ in inherited.values())
        if frozen_rank is None:
            rank = max(rank, held)
        else:
            frozen, rank = held, held + rank
            # What is new is scaled as it would be alone.
            alpha *= (rank / settings.rank) ** (0.5 if settings.rslora else 1.0)
    chosen = [path for path in linear if path in paths]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=settings.dropout,
        target_modules=chosen,
        use_rslora=settings.rslora,
        fan_in_fan_out=any(linear[path] for path in chosen),
        bias="none",
    )
    with PROCESS_DEFAULTS, torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, model, ADAPTER)
        except ValueError as error:
            raise TrainingError(
                f"No adapter can be put into this model: {error}",
                hint="Name other layers in lora.target_modules.",
            ) from error
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    modules = dict(model.named_modules())
    layers = {path: modules[path] for path in chosen if isinstance(modules[path], BaseTunerLayer)}
    attached = AttachedLora(
        model=model,
        layers=layers,
        rank=rank,
        alpha=alpha,
        dropout=settings.dropout,
        rslora=settings.rslora,
        target_modules=_names(chosen, linear),
    )
    for path in layers:
        for parameter in attached.factors(path):
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    if inherited:
        _inherit(attached, inherited, _scaling_of(parent, parent_scaling, settings, own))
    if frozen:
        attached.frozen = FrozenPart({path: attached.factors(path) for path in layers}, frozen)
    return attached


def linear_modules(model: Any) -> dict[str, bool]:
    """Path of every linear layer but the output head -> whether its weight is transposed (GPT-2's
    Conv1D)."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return {
        path: isinstance(module, Conv1D)
        for path, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head
    }


def trainable_parameters(model: Any, settings: LoraSettings) -> int:
    """How many parameters an adapter of these settings has on a model: rank * (in + out) of each
    layer that it is on.

    Raises:
        TrainingError: a target module does not exist in the model.
    """
    chosen = _targets(model, settings, linear_modules(model))
    return sum(settings.rank * sum(model.get_submodule(path).weight.shape) for path in chosen)


def _targets(model: Any, settings: LoraSettings, linear: dict[str, bool]) -> Iterable[str]:
    """The paths that the settings ask for, in the upper part of the model that they ask for."""
    upper = _upper(model, settings.layers)
    if upper is not None:
        return [path for path in _named(model, settings, linear) if path in upper]
    return _named(model, settings, linear)


def _upper(model: Any, share: float) -> set[str] | None:
    """What lies in the upper share of the layers; None for everything, and for a model whose layers
    are in no list of their own."""
    numbers = layers_of(model) if share < 1 else {}
    count = max(numbers.values(), default=-1) + 1
    lowest = count - max(1, round(share * count))
    return {path for path, number in numbers.items() if number >= lowest} or None


def _named(model: Any, settings: LoraSettings, linear: dict[str, bool]) -> Iterable[str]:
    """The paths of the modules that the settings name."""
    wanted: str | list[str] = settings.target_modules
    if wanted == "auto":
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

        known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type)
        fits = isinstance(known, list) and any(_matches(path, known) for path in linear)
        wanted = known if fits else "all-linear"
    if wanted == "mlp":
        inner = [path for path in linear if _MLP & set(path.split("."))]
        return inner or linear
    if wanted == "all-linear":
        return linear
    for name in wanted:
        if not any(_matches(path, [name]) for path in linear):
            known_names = sorted({path.rpartition(".")[2] for path in linear})
            raise TrainingError(
                f"The model has no linear module named {name!r} (lora.target_modules).",
                hint=f"It has: {', '.join(known_names)}. Or use auto, mlp or all-linear.",
            )
    return [path for path in linear if _matches(path, wanted)]


def _matches(path: str, names: Iterable[str]) -> bool:
    return any(path == name or path.endswith(f".{name}") for name in names)


def _names(chosen: list[str], linear: dict[str, bool]) -> list[str]:
    """Short names if they select exactly the chosen paths, else the paths."""
    names = sorted({path.rpartition(".")[2] for path in chosen})
    exact = [path for path in linear if _matches(path, names)] == chosen
    return names if exact else chosen


def _read_parent(
    parent: Path, linear: dict[str, bool]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(parent)
    except (SafetensorError, OSError) as error:
        raise AdapterInvalidError(f"{parent} cannot be read: {error}.") from error
    pairs = {}
    for name, a in tensors.items():
        path, mark, _ = name.removeprefix(PREFIX).partition(".lora_A.weight")
        if not mark:
            continue
        b = tensors.get(f"{PREFIX}{path}.lora_B.weight")
        if b is None or path not in linear:
            raise AdapterInvalidError(f"{parent} holds {name}, which does not fit the base model.")
        pairs[path] = (a.float(), b.float())
    if not pairs:
        raise AdapterInvalidError(f"{parent} holds no adapter with PEFT's key names.")
    return pairs


def _scaling_of(
    parent: Path | None,
    given: float | None,
    settings: LoraSettings,
    rank: int,
) -> float:
    if given is not None:
        return given
    beside = parent.with_suffix(".json") if parent else None
    if beside is not None and beside.is_file():
        record = json.loads(beside.read_text())["lora"]
        return scaling(float(record["alpha"]), int(record["rank"]), bool(record["rslora"]))
    return scaling(settings.alpha, rank, settings.rslora)


@torch.no_grad()
def _inherit(
    attached: AttachedLora,
    inherited: dict[str, tuple[torch.Tensor, torch.Tensor]],
    parent_scaling: float,
) -> None:
    """Copy the parent's factors into the first rows of A and columns of B."""
    for path, (parent_a, parent_b) in inherited.items():
        a, b = attached.factors(path)
        rank = parent_a.shape[0]
        if parent_a.shape[1] != a.shape[1] or parent_b.shape != (b.shape[0], rank):
            raise AdapterInvalidError(
                f"The parent adapter's {path} is {parent_b.shape[0]} x {parent_a.shape[1]}, "
                f"the base model's {b.shape[0]} x {a.shape[1]}."
            )
        a[:rank] = parent_a
        b.zero_()
        b[:, :rank] = parent_b * (parent_scaling / attached.scaling)
