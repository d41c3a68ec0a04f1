"""Several adapters made one, as tensors: PEFT combines, here it is kept honest.

PEFT's `add_weighted_adapter` works on LoRA layers inside a model. What it reads of that model is
the size of each layer, so it gets a skeleton: linear layers of the right sizes whose weight is one
number, seen as often as needed. Each adapter is given with alpha = scaling * rank and without
rsLoRA, since PEFT carries `use_rslora` of the first one over to the result and scales that by
sqrt(rank) once more.

Knows nothing about files, libraries or base models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shammah.adapters.differences import layer_changes
from shammah.adapters.merge_methods import CAT, OF_DELTAS, SVD
from shammah.adapters.weights import LoraWeights

RESULT = "merged"
SEED = 0
"""Of what the dare methods drop, so that merging twice gives the same."""


def combine(
    parts: Sequence[LoraWeights],
    weights: Sequence[float],
    method: str,
    *,
    rank: int | None = None,
    density: float | None = None,
) -> LoraWeights:
    """One adapter of several, in fp32 and with a scaling of 1.

    `cat` puts the factors side by side, which is the weighted sum exactly; `svd` is the best
    approximation of that sum by a rank (Eckart and Young 1936); the others are PEFT's
    (TIES: arXiv 2306.01708, DARE: arXiv 2311.03099).

    Args:
        parts: at least two; layers that only some of them change are taken from those.
        weights: one for each, above zero.
        method: one of METHODS.
        rank: of the result, for `svd` and the methods that end in it; default: the largest there.
        density: share of the numbers that PRUNING methods keep, above 0, at most 1.
    """
    largest = max(a.shape[0] for part in parts for a, _ in part.modules.values())
    if method == SVD:
        # The same as PEFT's svd, without ever making a matrix of a layer's size.
        return truncated(_by_peft(parts, weights, CAT, None, None), rank or largest)
    wanted = (rank or largest) if method in OF_DELTAS else None
    merged = _by_peft(parts, weights, method, wanted, density)
    return merged if wanted is None else _of_rank(merged, wanted)


def weighted_sum(parts: Sequence[LoraWeights], weights: Sequence[float]) -> LoraWeights:
    """sum(weight * scaling * B A), layer by layer, as one product in fp64: what a merge is
    measured against."""
    modules = {}
    for path in _paths(parts):
        held = [
            (part.modules[path], weight * part.scaling)
            for part, weight in zip(parts, weights, strict=True)
            if path in part.modules
        ]
        modules[path] = (
            torch.cat([a.double() for (a, _), _ in held]),
            torch.cat([b.double() * factor for (_, b), factor in held], dim=1),
        )
    return LoraWeights(modules, 1.0)


def relative_error(merged: LoraWeights, wanted: LoraWeights) -> float:
    """||merged - wanted|| / ||wanted|| over all layers (Frobenius); the difference itself where
    `wanted` is zero."""
    changes = layer_changes(wanted, merged)
    apart = sum(change.difference**2 for change in changes) ** 0.5
    whole = sum(change.first**2 for change in changes) ** 0.5
    return float(apart / whole if whole else apart)


def truncated(adapter: LoraWeights, rank: int) -> LoraWeights:
    """The nearest adapter of a rank, layer by layer, in fp32 and with a scaling of 1.

    With B = Q_b R_b and A^T = Q_a R_a the singular values of B A are those of R_b R_a^T, a matrix
    of the adapter's rank.
    """
    modules = {}
    for path, (a, b) in adapter.modules.items():
        b_basis, b_rest = torch.linalg.qr(b.double() * adapter.scaling)
        a_basis, a_rest = torch.linalg.qr(a.double().T)
        left, values, right = torch.linalg.svd(b_rest @ a_rest.T, full_matrices=False)
        root = values[:rank].sqrt()
        modules[path] = (
            (root[:, None] * (right[:rank] @ a_basis.T)).float(),
            (b_basis @ left[:, :rank] * root).float(),
        )
    return _of_rank(LoraWeights(modules, 1.0), rank)


def _of_rank(adapter: LoraWeights, rank: int) -> LoraWeights:
    """The same with rows and columns of zeros, where a layer is smaller than the rank."""
    modules = {}
    for path, (a, b) in adapter.modules.items():
        lacking = rank - a.shape[0]
        modules[path] = (
            torch.cat([a, a.new_zeros(lacking, a.shape[1])]).contiguous(),
            torch.cat([b, b.new_zeros(b.shape[0], lacking)], dim=1).contiguous(),
        )
    return LoraWeights(modules, adapter.scaling)


class _Skeleton(nn.Module):
    """Linear layers without weights to speak of: `layer0`, `layer1`, ... of these (in, out)."""

    def __init__(self, sizes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        for number, (inputs, outputs) in enumerate(sizes):
            with torch.device("meta"):
                layer = nn.Linear(inputs, outputs, bias=False)
            one = torch.zeros(())
            layer.weight = nn.Parameter(one.expand(outputs, inputs), requires_grad=False)
            self.add_module(f"layer{number}", layer)


def _by_peft(
    parts: Sequence[LoraWeights],
    weights: Sequence[float],
    method: str,
    rank: int | None,
    density: float | None,
) -> LoraWeights:
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    paths = _paths(parts)
    places = {path: f"layer{number}" for number, path in enumerate(paths)}
    skeleton = _Skeleton([_size(parts, path) for path in paths])
    names = [f"part{number}" for number in range(len(parts))]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(SEED)
        model: Any = None
        for name, part in zip(names, parts, strict=True):
            own = next(iter(part.modules.values()))[0].shape[0]
            config = LoraConfig(
                r=own,
                lora_alpha=part.scaling * own,
                target_modules=[places[path] for path in part.modules],
            )
            if model is None:
                model = LoraModel(skeleton, {name: config}, name)
            else:
                model.peft_config[name] = config
                model.inject_adapter(skeleton, name)
            for path, (a, b) in part.modules.items():
                layer: Any = getattr(skeleton, places[path])
                layer.lora_A[name].weight.data = a.float()
                layer.lora_B[name].weight.data = b.float()
        model.add_weighted_adapter(
            names,
            [float(weight) for weight in weights],
            RESULT,
            combination_type=method,
            svd_rank=rank,
            svd_full_matrices=False,
            density=density,
        )
        merged = {}
        scaling = 1.0
        for path in paths:
            layer = getattr(skeleton, places[path])
            scaling = float(layer.scaling[RESULT])
            merged[path] = (
                layer.lora_A[RESULT].weight.data.clone(),
                layer.lora_B[RESULT].weight.data.clone(),
            )
    return LoraWeights(merged, scaling)


def _paths(parts: Sequence[LoraWeights]) -> list[str]:
    """Every layer that one of them changes, in the order of the first that does."""
    return list(dict.fromkeys(path for part in parts for path in part.modules))


def _size(parts: Sequence[LoraWeights], path: str) -> tuple[int, int]:
    a, b = next(part.modules[path] for part in parts if path in part.modules)
    return int(a.shape[1]), int(b.shape[0])


def is_finite(adapter: LoraWeights) -> bool:
    """Whether no number of it is NaN or infinite."""
    factors: list[Tensor] = [factor for pair in adapter.modules.values() for factor in pair]
    return all(bool(torch.isfinite(factor).all()) for factor in factors)
