"""A frozen base model divided among processes, each of which holds its share of every layer.

torch's `fully_shard` (FSDP, arXiv 2304.11277) puts a layer together before its forward pass and
before its backward pass, and takes it apart again after each. As the base is frozen, nothing is
sent back. Divided are the layers' matrices; norms, biases, embeddings, the output head and adapters
are whole in each process. Passes have to be made by all processes together. Knows a model's layers,
nothing of training.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from shammah.errors import TrainingError
from shammah.models.shape import decoder_layers
from shammah.training.processes import Processes


def divide(model: Any, processes: Processes, device: str) -> None:
    """Keep this process's share of a model's layers, on a device; all else is moved there as it is.

    Only one layer at a time is whole on the device. What was mapped from a file is copied and let
    go of.

    Args:
        model: a transformers causal LM without an adapter, on CPU or on the device.
        device: `cpu`, or `cuda` for the process's own.

    Raises:
        TrainingError: the model's layers cannot be told from the rest of it.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    stack = decoder_layers(model.base_model)
    if stack is None:
        raise TrainingError(
            "This model's layers are in no list of their own: it cannot be divided.",
            hint="Train it without FSDP, where it fits into each device.",
        )
    mesh = init_device_mesh(device, (processes.count,))
    for layer in stack.layers:
        whole = {parameter for parameter in layer.parameters() if parameter.ndim < 2}
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    # As their common root it has torch fetch a layer while the one before it computes.
    fully_shard(model.base_model, mesh=mesh, ignored_params=set(model.parameters()))
    here = torch.device(device, torch.cuda.current_device()) if device == "cuda" else device
    for tensor in (*model.parameters(), *model.buffers()):
        if not hasattr(tensor, "full_tensor"):
            tensor.data = tensor.data.to(here, copy=True)


def divided_layers(model: Any) -> list[Any]:
    """The layers that are divided; none of a model that is whole."""
    stack = decoder_layers(model.base_model)
    return [layer for layer in stack.layers if hasattr(layer, "unshard")] if stack else []


@contextmanager
def whole_layer(model: Any, module: Any) -> Iterator[None]:
    """Within it the layer that a module lies in is whole, for all processes; what is whole already
    or lies in no layer stays as it is."""
    holding = [
        layer
        for layer in divided_layers(model)
        if any(inner is module for inner in layer.modules())
    ]
    for layer in holding:
        layer.unshard()
    try:
        yield
    finally:
        for layer in holding:
            layer.reshard()


def missing_bytes(model: Any) -> int:
    """What the layers would take on this process's device beside what it holds of them."""
    return sum(
        (parameter.numel() - parameter.to_local().numel()) * parameter.element_size()
        for layer in divided_layers(model)
        for parameter in layer.parameters()
        if hasattr(parameter, "to_local")
    )


@contextmanager
def whole_model(model: Any) -> Iterator[None]:
    """Within it every layer is whole in each process, and passes need no other process: for many
    passes in a row, as when tokens are drawn one by one. Without gradients alone."""
    kept: list[tuple[Any, Any, Any]] = []
    try:
        for layer in divided_layers(model):
            kept.append((layer, layer._forward_pre_hooks, layer._forward_hooks))
            layer.unshard()
            # They would take it apart after its first pass.
            layer._forward_pre_hooks, layer._forward_hooks = OrderedDict(), OrderedDict()
        yield
    finally:
        for layer, before, after in kept:
            layer._forward_pre_hooks, layer._forward_hooks = before, after
            layer.reshard()
