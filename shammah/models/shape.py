"""The shape of a model, as adapters must fit it: its linear layers and their sizes, its stack.

Computed from a loaded model; knows no files and no adapters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ModelShape:
    """`modules` maps each linear layer's path, as in `named_modules()`, to (in, out) features.

    The output head is not among them: adapters leave it alone.
    """

    name: str
    fingerprint: str
    modules: dict[str, tuple[int, int]]


def model_shape(name: str, fingerprint: str, model: Any) -> ModelShape:
    """The shape of a loaded model, without computing anything."""
    head = model.get_output_embeddings()
    modules = {
        path: linear_size(module)
        for path, module in model.named_modules()
        if is_linear(module) and module is not head
    }
    return ModelShape(name, fingerprint, modules)


@dataclass(frozen=True, slots=True)
class DecoderLayers:
    """The list of a model's decoder layers, from below: `holder` has it by `name`."""

    holder: Any
    name: str
    layers: Any

    def replace(self, layers: Any) -> None:
        """Run other layers in their place."""
        setattr(self.holder, self.name, layers)


def decoder_layers(body: Any) -> DecoderLayers | None:
    """Where a model without its head has its decoder layers; None where they are in no list of
    their own."""
    import torch

    count = int(body.config.get_text_config(decoder=True).num_hidden_layers)
    for path, part in body.named_modules():
        if isinstance(part, torch.nn.ModuleList) and len(part) == count:
            holder, _, name = path.rpartition(".")
            return DecoderLayers(body.get_submodule(holder), name, part)
    return None


def is_linear(module: Any) -> bool:
    """Whether a module is a plain linear layer: torch's, or the transposed one of GPT-2."""
    import torch
    from transformers.pytorch_utils import Conv1D

    return type(module) in (torch.nn.Linear, Conv1D)


def linear_size(module: Any) -> tuple[int, int]:
    """(in_features, out_features) of a linear layer."""
    import torch

    first, second = (int(size) for size in module.weight.shape)
    return (second, first) if type(module) is torch.nn.Linear else (first, second)
