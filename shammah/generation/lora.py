"""LoRA in the model that answers: each linear layer reads a slot that holds the adapter or nothing.

    y = x W^T + b + (x A^T)(s B)^T        (Hu et al. 2021, arXiv 2106.09685)

An adapter is made ready as a whole beside the one in use; using it is setting one reference. The
layers are not replaced and keep their names. Knows nothing about files, and nothing of PEFT.

On a CPU the adapter's part is computed in fp32 whatever the model computes in. That is how it was
trained, and for one row it is faster: torch's bf16 product with a [896 x 4864] layer's B takes
150 us, the fp32 one 5 us.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from shammah.errors import AdapterInvalidError, ModelError
from shammah.models.shape import is_linear, linear_size


class Weights(Protocol):
    """An adapter's tensors: module path -> (A [rank, in], B [out, rank]), and its scaling."""

    @property
    def modules(self) -> Mapping[str, tuple[Tensor, Tensor]]: ...

    @property
    def scaling(self) -> float: ...


@dataclass(frozen=True, slots=True)
class AdapterState:
    """One adapter, ready to compute with, or the base model alone.

    `layers[i]` belongs to the i-th adaptable layer: A [rank, in] and B^T [rank, out] with the
    scaling in it, or None where the base layer answers alone.
    """

    name: str | None
    generation: int
    layers: tuple[tuple[Tensor, Tensor] | None, ...]


class AdapterSlot:
    """The adapter that the layers of one model use. Set by the one thread that computes."""

    __slots__ = ("layers",)

    def __init__(self) -> None:
        self.layers: tuple[tuple[Tensor, Tensor] | None, ...] = ()


class AdaptableModel:
    """A model whose linear layers read an adapter slot.

    Args:
        model: a transformers causal language model; its layers' `forward` is replaced until
            `restore`.

    Raises:
        ModelError: it has been made adaptable already.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.slot = AdapterSlot()
        head = model.get_output_embeddings()
        layers = {path: module for path, module in model.named_modules() if is_linear(module)}
        if any("forward" in module.__dict__ for module in layers.values()):
            raise ModelError(
                "The model is answering for another engine.", hint="Close that engine first."
            )
        self._patched: list[Any] = list(layers.values())
        self.paths = tuple(path for path, module in layers.items() if module is not head)
        self._sizes = {path: linear_size(layers[path]) for path in self.paths}
        self._weights = {path: layers[path].weight for path in self.paths}
        self.slot.layers = (None,) * len(self.paths)
        for index, path in enumerate(self.paths):
            layers[path].forward = _adapted_forward(layers[path], self.slot, index)
        if head is not None and is_linear(head):
            head.forward = _plain_forward(head)

    def prepare(self, weights: Weights | None, name: str | None, generation: int) -> AdapterState:
        """An adapter as the layers want it, on the model's device.

        Raises:
            AdapterInvalidError: a module is not in the model, or a tensor has another shape.
        """
        if weights is None:
            return AdapterState(None, generation, (None,) * len(self.paths))
        unknown = [path for path in weights.modules if path not in self._sizes]
        if unknown:
            raise AdapterInvalidError(
                f"The adapter {name} changes {unknown[0]}, which this model does not have.",
                hint="It was trained on another base model.",
            )
        layers: list[tuple[Tensor, Tensor] | None] = []
        for path in self.paths:
            pair = weights.modules.get(path)
            layers.append(None if pair is None else self._fit(path, *pair, weights.scaling, name))
        return AdapterState(name, generation, tuple(layers))

    def restore(self) -> None:
        """Give the layers their own `forward` back."""
        for module in self._patched:
            module.__dict__.pop("forward", None)

    def _fit(
        self, path: str, a: Tensor, b: Tensor, scaling: float, name: str | None
    ) -> tuple[Tensor, Tensor]:
        inputs, outputs = self._sizes[path]
        rank = a.shape[0]
        if tuple(a.shape) != (rank, inputs) or tuple(b.shape) != (outputs, rank):
            raise AdapterInvalidError(
                f"The adapter {name} has tensors of {tuple(a.shape)} and {tuple(b.shape)} for "
                f"{path}, which takes ({rank}, {inputs}) and ({outputs}, {rank}).",
                hint="It was trained on another base model.",
            )
        weight = self._weights[path]
        dtype = torch.float32 if weight.device.type == "cpu" else weight.dtype
        # The scaling is multiplied in fp32, so that it is rounded once.
        scaled = b.detach().float() * scaling
        return (
            a.detach().to(weight.device, dtype, copy=True).contiguous(),
            scaled.t().to(weight.device, dtype).contiguous(),
        )


def without_adapter(module: Any) -> Any:
    """The same part of a model with layers of its own that read no adapter slot.

    Its tensors are those of the original; only the small objects around them are copied. So it can
    be used by another thread while the original computes.
    """
    tensors = [*module.parameters(), *module.buffers()]
    copied = copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
    for layer in copied.modules():
        layer.__dict__.pop("forward", None)
    return copied


def _adapted_forward(module: Any, slot: AdapterSlot, index: int) -> Callable[[Tensor], Tensor]:
    compute = _base(module)

    def forward(x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = compute(rows)
        pair = slot.layers[index]
        if pair is not None:
            a, b = pair
            out.add_(torch.mm(functional.linear(rows.to(a.dtype), a), b))
        return out.view(*x.shape[:-1], out.shape[-1])

    return forward


def _plain_forward(module: Any) -> Callable[[Tensor], Tensor]:
    """The output head, given rows: a slice of a longer sequence makes torch copy the whole head."""
    compute = _base(module)

    def forward(x: Tensor) -> Tensor:
        out = compute(x.reshape(-1, x.shape[-1]))
        return out.view(*x.shape[:-1], out.shape[-1])

    return forward


def _base(module: Any) -> Callable[[Tensor], Tensor]:
    weight, bias = module.weight, module.bias
    if type(module) is torch.nn.Linear:
        return lambda rows: functional.linear(rows, weight, bias)
    return lambda rows: torch.addmm(bias, rows, weight)  # GPT-2's transposed layer
