"""The layers below the lowest adapter: what they say about an example never changes in training.

So it is computed once for each example and kept, and every step begins at the first layer that has
something to learn. Knows a model's layers and hidden states; not what they are states of.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

KEPT_BYTES = 512 << 20
"""What is kept of all examples together, at most."""

Row = Sequence[int]


class Trunk:
    """Hidden states behind the frozen lower layers of a model.

    `depth` is how many layers those are; 0 where there are none, or where they cannot be told from
    the others.
    """

    def __init__(self, model: Any, adapted: Iterable[str]) -> None:
        """
        Args:
            model: a transformers causal LM.
            adapted: paths of the modules with an adapter.
        """
        self._body = model.base_model
        self._holder, self._name, self._layers = _layers(model)
        modules = [model.get_submodule(path) for path in adapted]
        self.depth = _lowest(self._layers, modules)
        self._kept: dict[tuple[int, ...], torch.Tensor] = {}
        self._bytes = 0

    def knows(self, rows: Iterable[Row]) -> bool:
        """Whether the states of all these rows of tokens are kept."""
        return bool(self._kept) and all(tuple(row) in self._kept for row in rows)

    def states(self, rows: Iterable[Row]) -> torch.Tensor:
        """The kept states of rows, one after the other: [T, H]."""
        return torch.cat([self._kept[tuple(row)] for row in rows])

    def keep(self, rows: Sequence[Row], states: torch.Tensor) -> None:
        """Keep the states [T, H] of rows that lie one after the other, while there is room."""
        lengths = [len(row) for row in rows]
        for row, own in zip(rows, torch.split(states, lengths), strict=True):
            size = own.numel() * own.element_size()
            if self._bytes + size <= KEPT_BYTES and tuple(row) not in self._kept:
                # Of its own: a view would keep all the others alive.
                self._kept[tuple(row)] = own.clone()
                self._bytes += size

    @torch.no_grad()
    def below(self, **inputs: Any) -> torch.Tensor:
        """Hidden states [1, T, H] behind the lower layers; the others are not run."""

        def stop(layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Reached(args[0] if args else kwargs["hidden_states"])

        handle = self._layers[self.depth].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self._body(**inputs)
        except _Reached as reached:
            return reached.hidden
        finally:
            handle.remove()
        raise RuntimeError("the model ended without coming to its own layer")

    def above(self, hidden: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """Final hidden states [1, T, H] from those behind the lower layers; these are not run."""
        given = [_Given(hidden, self._layers[0])]
        setattr(
            self._holder, self._name, torch.nn.ModuleList([*given, *self._layers[self.depth :]])
        )
        try:
            final: torch.Tensor = self._body(**inputs)[0]
            return final
        finally:
            setattr(self._holder, self._name, self._layers)


class _Reached(Exception):
    """Raised where the layers below end, with what they said."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.hidden = hidden


class _Given(torch.nn.Module):
    """Stands in the place of the layers below and says what they said."""

    def __init__(self, hidden: torch.Tensor, first: torch.nn.Module) -> None:
        super().__init__()
        self._hidden = hidden
        if hasattr(first, "attention_type"):
            # Models ask each layer for the kind of mask it wants.
            self.attention_type = first.attention_type

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self._hidden


def layers_of(model: Any) -> dict[str, int]:
    """Path of each module inside the model's layers -> number of its layer, from below; empty where
    the layers are in no list of their own."""
    _, _, layers = _layers(model)
    numbers = {
        id(module): number
        for number, layer in enumerate(layers or ())
        for module in layer.modules()
    }
    return {
        path: numbers[id(module)] for path, module in model.named_modules() if id(module) in numbers
    }


def layer_list(model: Any) -> Any:
    """The list of a model's layers, from below; None where they are in no list of their own."""
    return _layers(model)[2]


def _layers(model: Any) -> tuple[Any, str, Any]:
    """The list of the model's layers, what holds it and by which name."""
    count = int(model.config.get_text_config(decoder=True).num_hidden_layers)
    for path, part in model.base_model.named_modules():
        if isinstance(part, torch.nn.ModuleList) and len(part) == count:
            holder, _, name = path.rpartition(".")
            return model.base_model.get_submodule(holder), name, part
    return None, "", None


def _lowest(layers: Any, adapted: Sequence[torch.nn.Module]) -> int:
    """The lowest of the layers that one of these modules is in; 0 where one is in none."""
    if layers is None:
        return 0
    numbers = {id(module): n for n, layer in enumerate(layers) for module in layer.modules()}
    return min((numbers.get(id(module), 0) for module in adapted), default=0)
