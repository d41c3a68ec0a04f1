"""Holding a model where it is: a price on changing what its layers say about what they knew.

For a layer with weights W whose inputs x have second moments C = E[x x^T] over the model's own
answers, an adapter that adds D changes its output by E |D x|^2 = tr(D C D^T). The price is the sum
of that over the layers, each as a share of E |W x|^2 = tr(W C W^T). It is the diagonal-free form of
elastic weight consolidation (arXiv 1612.00796) with the input half of the Kronecker factors
(arXiv 1503.05671), and costs next to nothing: of every answer that was looked at once, in every
step. Knows layers and factors, not what they are trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from shammah.training.lora import AttachedLora, linear_modules


@dataclass(slots=True)
class Moments:
    """`sums[path]` is the sum of x x^T over the inputs of a layer, float32 [in, in]; `energy[path]`
    that of |W x|^2."""

    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    energy: dict[str, float] = field(default_factory=dict)


@contextmanager
def moments_of(model: Any) -> Iterator[Moments]:
    """Within it the model's linear layers note what they are given; complete on leaving it."""
    moments = Moments()
    layers = {path: model.get_submodule(path) for path in linear_modules(model)}

    def note(path: str, x: torch.Tensor) -> None:
        flat = x.detach().reshape(-1, x.shape[-1]).float()
        if path not in moments.sums:
            moments.sums[path] = flat.new_zeros(flat.shape[1], flat.shape[1])
        moments.sums[path].addmm_(flat.t(), flat)

    handles = [
        layer.register_forward_pre_hook(lambda layer, given, path=path: note(path, given[0]))
        for path, layer in layers.items()
    ]
    try:
        yield moments
    finally:
        for handle in handles:
            handle.remove()
    transposed = linear_modules(model)
    for path, moment in moments.sums.items():
        weight = layers[path].weight.detach().float()
        weight = weight.t() if transposed[path] else weight
        moments.energy[path] = float(((weight @ moment) * weight).sum())


class Holding:
    """The price of an adapter, and its gradients.

    Args:
        lora: the adapter; its whole change is priced, a parent's too.
        moments: of its base model.
    """

    def __init__(self, lora: AttachedLora, moments: Moments) -> None:
        self._lora = lora
        self._metric: Mapping[str, torch.Tensor] = {
            path: moments.sums[path] / moments.energy[path]
            for path in lora.layers
            if moments.energy.get(path, 0.0) > 0
        }

    def price(self) -> float:
        """Sum over the layers of E |D x|^2 / E |W x|^2."""
        total = 0.0
        for path, metric in self._metric.items():
            a, b = (factor.detach() for factor in self._lora.factors(path))
            total += float(((b.t() @ b) * (a @ metric @ a.t())).sum())
        return total * self._lora.scaling**2

    @torch.no_grad()
    def add_gradients(self, strength: float) -> None:
        """Add the gradients of `strength` times the price to those gathered."""
        factor = 2.0 * strength * self._lora.scaling**2
        for path, metric in self._metric.items():
            a, b = self._lora.factors(path)
            seen = a @ metric
            for gathered, gradient in (
                (a.grad, (b.t() @ b) @ seen),
                (b.grad, b @ (seen @ a.t())),
            ):
                if gathered is not None:
                    gathered.add_(gradient, alpha=factor)
