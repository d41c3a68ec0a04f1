"""How far two adapters are apart: in their weights, layer by layer, and in what was taught."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shammah.adapters.library import Adapter
from shammah.adapters.metadata import LessonRecord
from shammah.adapters.weights import LoraWeights, load_weights


@dataclass(frozen=True, slots=True)
class LayerChange:
    """Frobenius norms of what two adapters add to one layer's weight, and of the difference."""

    layer: str
    first: float
    second: float
    difference: float


@dataclass(frozen=True, slots=True)
class AdapterDifference:
    """What `second` has that `first` has not. `first` None is the base model."""

    first: str | None
    second: str
    layers: tuple[LayerChange, ...]
    added: tuple[LessonRecord, ...]
    removed: tuple[LessonRecord, ...]

    @property
    def norm(self) -> float:
        """Of the whole difference."""
        return float(sum(layer.difference**2 for layer in self.layers) ** 0.5)


def difference(first: Adapter | None, second: Adapter) -> AdapterDifference:
    """Compare the files of two adapters.

    Raises:
        AdapterInvalidError: one of them is broken.
        StorageError: one of them cannot be read.
    """
    lessons = [_lessons(adapter) for adapter in (first, second)]
    weights = [_weights(adapter) for adapter in (first, second)]
    return AdapterDifference(
        first.name if first else None,
        second.name,
        layer_changes(*weights),
        tuple(lesson for key, lesson in lessons[1].items() if key not in lessons[0]),
        tuple(lesson for key, lesson in lessons[0].items() if key not in lessons[1]),
    )


def layer_changes(first: LoraWeights, second: LoraWeights) -> tuple[LayerChange, ...]:
    """For each layer that either changes, in the order of their names.

    With B A written as a product, ||B A||^2 = sum((B^T B) * (A A^T)): two matrices of the rank's
    size in place of one of the layer's. The difference is a product too, of both side by side.
    """
    changes = []
    for layer in sorted({*first.modules, *second.modules}):
        one, two = (_factors(weights, layer) for weights in (first, second))
        signed = [(one[0], -one[1])] if one else []
        signed += [two] if two else []
        apart = (torch.cat([a for a, _ in signed]), torch.cat([b for _, b in signed], dim=1))
        changes.append(LayerChange(layer, _norm(one), _norm(two), _norm(apart)))
    return tuple(changes)


def _factors(weights: LoraWeights, layer: str) -> tuple[Tensor, Tensor] | None:
    """A [rank, in] and B [out, rank] with the scaling in it, in fp64."""
    if layer not in weights.modules:
        return None
    a, b = weights.modules[layer]
    return a.double(), b.double() * weights.scaling


def _norm(factors: tuple[Tensor, Tensor] | None) -> float:
    if factors is None:
        return 0.0
    a, b = factors
    squared = ((b.T @ b) * (a @ a.T)).sum()
    return float(squared.clamp(min=0).sqrt())


def _weights(adapter: Adapter | None) -> LoraWeights:
    if adapter is None:
        return LoraWeights({}, 1.0)
    return load_weights(adapter.path, adapter.require_metadata())


def _lessons(adapter: Adapter | None) -> dict[tuple[int | None, str, str], LessonRecord]:
    if adapter is None:
        return {}
    return {
        (lesson.feedback_id, lesson.query, lesson.aim): lesson
        for lesson in adapter.require_metadata().lessons
    }
