"""The shape of a model, as adapters must fit it: its linear layers and their sizes.

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
