"""Put the hand-written layers into a model, where they give what the model's own would.

A layer is replaced only after both were run on the same input and agreed, so that an architecture
that computes something else under a familiar name keeps its own. Undone by `Installed.remove`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from shammah.training.fused import Adapter, Frozen, Gate, lora_linear, rms_norm, swiglu
from shammah.training.lora import ADAPTER, AttachedLora
from shammah.training.sharding import whole_layer
from shammah.training.workspace import Workspace

Forward = Callable[..., torch.Tensor]


@dataclass(slots=True)
class Installed:
    """Which modules were given another forward.

    `dropout_on` switches the adapters' dropout; `keeping` says how many of the feed-forward blocks
    keep what is widest in them for the backward pass; `workspace` is where they keep it.
    """

    modules: list[torch.nn.Module] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)
    dropout_on: bool = False
    keeping: int = 1 << 30
    blocks: int = 0
    workspace: Workspace = field(default_factory=Workspace)

    def replace(self, kind: str, module: torch.nn.Module, forward: Forward) -> None:
        # An attribute of the instance hides the method of the class.
        module.forward = forward
        self.modules.append(module)
        self.kinds[kind] = self.kinds.get(kind, 0) + 1

    def remove(self) -> None:
        """Give every module its own forward back."""
        for module in self.modules:
            vars(module).pop("forward", None)
        self.modules.clear()


def install(model: Any, attached: AttachedLora) -> Installed:
    """Replace the forward of LoRA layers, SwiGLU blocks and RMS norms."""
    installed = Installed()
    for layer in attached.layers.values():
        installed.replace("lora", layer, _lora_forward(layer, attached.dropout, installed))
    agreed: dict[tuple[type, torch.dtype], Callable[[Any], Forward] | None] = {}
    for module in list(model.modules()):
        makers = _makers(module, attached, installed)
        if not makers:
            continue
        # One comparison a class: all its modules compute the same function of their weights.
        key = (type(module), _weight(module).dtype)
        if key not in agreed:
            with whole_layer(model, module):
                found = (make for make in makers if _agrees(module, make(module)))
                agreed[key] = next(found, None)
        make = agreed[key]
        if make is not None:
            installed.replace(type(module).__name__, module, make(module))
    return installed


def _makers(
    module: Any, attached: AttachedLora, installed: Installed
) -> list[Callable[[Any], Forward]]:
    """Ways to compute what a module looks like it computes."""
    if all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        silu = type(module.act_fn).__name__ in ("SiLU", "SiLUActivation")
        if not silu or attached.dropout:
            return []
        return [lambda block: _swiglu_forward(block, installed)]
    if type(module).__name__.endswith("RMSNorm") and getattr(module, "weight", None) is not None:
        return [_rms_forward, _rms_forward_plus_one]
    return []


def _frozen(module: Any) -> Frozen:
    """Its weights as they are now: of a divided model they are others in each pass."""
    from transformers.pytorch_utils import Conv1D

    if not isinstance(module, (torch.nn.Linear, Conv1D)):
        raise TypeError(f"{type(module).__name__} is not linear")
    return Frozen(module.weight, module.bias, isinstance(module, Conv1D))


def _adapter(layer: Any) -> Adapter:
    return Adapter(
        layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, float(layer.scaling[ADAPTER])
    )


def _lora_forward(layer: Any, dropout: float, installed: Installed) -> Forward:
    base, adapter = layer.get_base_layer(), _adapter(layer)

    def forward(x: torch.Tensor) -> torch.Tensor:
        dropped = F.dropout(x, dropout) if dropout and installed.dropout_on else None
        return lora_linear(x, _frozen(base), adapter, dropped)

    return forward


def _swiglu_forward(module: Any, installed: Installed) -> Forward:
    def part(layer: Any) -> tuple[Any, Adapter | None]:
        if hasattr(layer, "lora_A"):
            return layer.get_base_layer(), _adapter(layer)
        return layer, None

    parts = [part(layer) for layer in (module.gate_proj, module.up_proj, module.down_proj)]
    number = installed.blocks
    installed.blocks += 1

    def forward(x: torch.Tensor) -> torch.Tensor:
        gate, up, down = ((_frozen(base), adapter) for base, adapter in parts)
        keep = number < installed.keeping
        return swiglu(x, Gate(gate, up, down), installed.workspace, keep=keep)

    return forward


def _eps(module: Any) -> float:
    return float(module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps)


def _rms_forward(module: Any) -> Forward:
    weight, eps = module.weight, _eps(module)
    return lambda x: rms_norm(x, weight, eps)


def _rms_forward_plus_one(module: Any) -> Forward:
    weight, eps = module.weight.float() + 1.0, _eps(module)
    return lambda x: rms_norm(x, weight, eps)


def _weight(module: Any) -> torch.Tensor:
    weight: torch.Tensor = (module.gate_proj if hasattr(module, "gate_proj") else module).weight
    return weight


@torch.no_grad()
def _agrees(module: Any, forward: Forward) -> bool:
    weight = _weight(module)
    width = weight.shape[-1]
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, width, generator=draw).to(weight.dtype).to(weight.device)
    tolerance = 1e-4 if weight.dtype == torch.float32 else 3e-2
    try:
        expected, found = module(x), forward(x)
    except (TypeError, AttributeError, RuntimeError, ValueError):
        return False
    if not isinstance(expected, torch.Tensor) or expected.shape != found.shape:
        return False
    size = expected.float().abs().max().clamp(min=1e-6)
    return bool(((expected - found).float().abs().max() / size) < tolerance)
