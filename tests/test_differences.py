"""The difference of two adapters, against the same computed with whole matrices."""

from __future__ import annotations

import pytest
import torch

from shammah.adapters.differences import layer_changes
from shammah.adapters.weights import LoraWeights


def weights(seed: int, layers: dict[str, int], scaling: float) -> LoraWeights:
    random = torch.Generator().manual_seed(seed)
    return LoraWeights(
        {
            name: (
                torch.randn(rank, 12, generator=random),
                torch.randn(9, rank, generator=random),
            )
            for name, rank in layers.items()
        },
        scaling,
    )


def whole(adapter: LoraWeights, layer: str) -> torch.Tensor:
    if layer not in adapter.modules:
        return torch.zeros(9, 12, dtype=torch.float64)
    a, b = adapter.modules[layer]
    return adapter.scaling * b.double() @ a.double()


def test_norms_are_those_of_the_whole_matrices() -> None:
    first = weights(1, {"q": 4, "k": 2}, 2.0)
    second = weights(2, {"q": 3, "v": 5}, 0.5)
    changes = layer_changes(first, second)
    assert [change.layer for change in changes] == ["k", "q", "v"]
    for change in changes:
        one, two = whole(first, change.layer), whole(second, change.layer)
        expected = [matrix.norm().item() for matrix in (one, two, two - one)]
        assert [change.first, change.second, change.difference] == pytest.approx(expected)


def test_the_same_adapter_differs_nowhere() -> None:
    adapter = weights(3, {"q": 4}, 2.0)
    (change,) = layer_changes(adapter, adapter)
    assert change.difference == pytest.approx(0.0, abs=1e-5)
    assert change.first == change.second > 0


def test_beside_the_base_an_adapter_is_its_own_change() -> None:
    (change,) = layer_changes(LoraWeights({}, 1.0), weights(4, {"q": 4}, 2.0))
    assert change.first == 0.0 and change.second == pytest.approx(change.difference)
