"""Looks at gradients before a step: hooks, by name or one's own.

| name | measures |
| --- | --- |
| `norm` | the L2 norm of all, and the largest and smallest of one tensor |
| `distribution` | mean, standard deviation, least, greatest, share of zeros |
| `flow` | the norm of each layer, in the order of the model |
| `health` | how many tensors vanish, explode or are not finite, and says so when one begins to |

A hook is called once for each optimiser step, after gradients were accumulated and before they are
clipped, on float32 gradients of all trained tensors, as they are after division by the window's
weight. It gives figures, which become the event `training.gradients` with `gradients/...` for the
loggers, and sentences about what is wrong, which become `training.issue`. Knows tensors by their
names, no model, and imports torch where it computes.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, cast

from shammah.errors import ShammahError, TrainingError
from shammah.tracking.telemetry import emit

if TYPE_CHECKING:
    import torch

VANISHING, EXPLODING = 1e-7, 1e3
"""Norms of one tensor's gradient below and above which it is told of."""

Status = Literal["fine", "vanishing", "exploding", "nonfinite"]

_LAYER = re.compile(r"(?:^|\.)((?:layers|h|blocks|block)\.\d+)(?:\.|$)")
_A, _B = ".lora_A.", ".lora_B."


@dataclass(frozen=True)
class Gradients:
    """Gradients of one step.

    `sums[i]` float32 is the gradient of `names[i]` times `weight`; not to be changed. `step` counts
    from 1 and is the one that will be made.
    """

    step: int
    names: tuple[str, ...]
    sums: tuple[torch.Tensor, ...]
    weight: float
    parameters: Mapping[str, torch.Tensor]
    frozen: int = 0
    """Ranks, the first ones, that are not trained."""

    @cached_property
    def together(self) -> tuple[tuple[tuple[int, ...], torch.Tensor], ...]:
        """Indices of gradients of one shape, and these as rows of one tensor: a few large
        reductions cost far less than many small ones."""
        import torch

        by_shape: dict[torch.Size, list[int]] = {}
        for index, tensor in enumerate(self.sums):
            by_shape.setdefault(tensor.shape, []).append(index)
        return tuple(
            (tuple(members), torch.stack([self.sums[index].flatten() for index in members]))
            for members in by_shape.values()
        )

    @cached_property
    def norms(self) -> tuple[float, ...]:
        """The L2 norm of each, read from the device together."""
        import torch

        found = torch.cat([torch.linalg.vector_norm(rows, dim=1) for _, rows in self.together])
        order = [index for members, _ in self.together for index in members]
        by_index = dict(zip(order, found.tolist(), strict=True))
        return tuple(by_index[index] / self.weight for index in range(len(order)))

    @property
    def norm(self) -> float:
        """The L2 norm of all."""
        return math.sqrt(math.fsum(norm**2 for norm in self.norms))

    def not_begun(self, name: str) -> bool:
        """Whether a gradient is zero because it has to be: B of an adapter begins at zero, and
        while it is, nothing reaches A."""
        partner = self.parameters.get(name.replace(_A, _B))
        if _A not in name or partner is None:
            return False
        return not bool(partner[:, self.frozen :].any())

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Names, and gradients divided by the weight."""
        for name, gradient in zip(self.names, self.sums, strict=True):
            yield name, gradient / self.weight


@dataclass(frozen=True, slots=True)
class Report:
    """What a hook found: figures, and sentences about what is wrong."""

    figures: Mapping[str, float] = field(default_factory=dict)
    issues: tuple[str, ...] = ()


class Hook(Protocol):
    """Looks at gradients."""

    @property
    def name(self) -> str: ...

    def look(self, gradients: Gradients) -> Report:
        """What there is to say of a step."""
        ...


class Norm:
    """The L2 norm of all gradients, and the largest and smallest of one tensor."""

    name = "norm"

    def look(self, gradients: Gradients) -> Report:
        norms = gradients.norms
        return Report({"norm": gradients.norm, "largest": max(norms), "smallest": min(norms)})


@dataclass(frozen=True, slots=True)
class Spread:
    """How the values of a gradient are spread; `sparsity` is the share that is exactly zero."""

    mean: float
    std: float
    min: float
    max: float
    sparsity: float


class Distribution:
    """Mean, standard deviation, least, greatest and share of zeros, of all values together;
    `tensors` has them of each tensor at the last step."""

    name = "distribution"

    def __init__(self) -> None:
        self.tensors: Mapping[str, Spread] = {}

    def look(self, gradients: Gradients) -> Report:
        import torch

        found_rows: list[tuple[int, int, list[float]]] = []
        for members, rows in gradients.together:
            # The sum of signs without a sign counts what is not zero, and is the quickest way to.
            nonzero = rows.sign().abs_().sum(1)
            table = torch.stack([rows.sum(1), rows.amin(1), rows.amax(1), nonzero], 1).tolist()
            found_rows += [
                (index, rows.shape[1], row) for index, row in zip(members, table, strict=True)
            ]
        weight, norms = gradients.weight, gradients.norms
        found = {
            index: _Sums(
                size, row[0] / weight, norms[index] ** 2, row[1] / weight, row[2] / weight, row[3]
            )
            for index, size, row in sorted(found_rows)
        }
        self.tensors = {gradients.names[index]: sums.spread for index, sums in found.items()}
        every = list(found.values())
        whole = _Sums(
            sum(sums.size for sums in every),
            math.fsum(sums.total for sums in every),
            math.fsum(sums.squares for sums in every),
            min(sums.least for sums in every),
            max(sums.greatest for sums in every),
            sum(sums.nonzero for sums in every),
        ).spread
        return Report(
            {
                "mean": whole.mean,
                "std": whole.std,
                "min": whole.min,
                "max": whole.max,
                "sparsity": whole.sparsity,
            }
        )


class Flow:
    """The L2 norm of each layer's gradients, in the order of the model: `flow/layers.0` and so on;
    `layers` has those of the last step."""

    name = "flow"

    def __init__(self) -> None:
        self.layers: Mapping[str, float] = {}

    def look(self, gradients: Gradients) -> Report:
        squares: dict[str, float] = {}
        for name, norm in zip(gradients.names, gradients.norms, strict=True):
            layer = layer_of(name)
            squares[layer] = squares.get(layer, 0.0) + norm**2
        self.layers = {layer: math.sqrt(square) for layer, square in squares.items()}
        return Report({f"flow/{layer}": norm for layer, norm in self.layers.items()})


class Health:
    """How many tensors have a gradient that vanishes, explodes or is not finite. A tensor is told
    of when it becomes so, not at every step that it stays so.

    Args:
        vanishing: a norm below this; one that is zero because B still is does not count.
        exploding: a norm above this.
    """

    name = "health"

    def __init__(self, *, vanishing: float = VANISHING, exploding: float = EXPLODING) -> None:
        if not 0.0 <= vanishing < exploding:
            raise TrainingError(
                f"Gradients cannot vanish below {vanishing} and explode above {exploding}."
            )
        self.vanishing = vanishing
        self.exploding = exploding
        self.statuses: dict[str, Status] = {}

    def look(self, gradients: Gradients) -> Report:
        counts = {"vanishing": 0, "exploding": 0, "nonfinite": 0}
        new: dict[Status, list[tuple[str, float]]] = {}
        for index, (name, norm) in enumerate(zip(gradients.names, gradients.norms, strict=True)):
            status = self._status(gradients, index, norm)
            if status != "fine":
                counts[status] += 1
                if self.statuses.get(name) != status:
                    new.setdefault(status, []).append((name, norm))
            self.statuses[name] = status
        total = len(gradients.names)
        issues = [
            f"Step {gradients.step}: the gradient {_SAID[status]} in {len(found)} of {total} "
            f"tensors, first in {found[0][0]} (norm {found[0][1]:.3g})."
            for status, found in new.items()
        ]
        return Report(counts, tuple(issues))

    def _status(self, gradients: Gradients, index: int, norm: float) -> Status:
        if not math.isfinite(norm):
            # The squares of finite values may be too large for a sum.
            return "exploding" if _finite(gradients.sums[index]) else "nonfinite"
        if norm > self.exploding:
            return "exploding"
        if norm < self.vanishing:
            idle = norm == 0.0 and gradients.not_begun(gradients.names[index])
            return "fine" if idle else "vanishing"
        return "fine"


class Custom:
    """A function of one's own: it is given the gradients and gives figures, or nothing."""

    def __init__(
        self, name: str, fn: Callable[[Gradients], Report | Mapping[str, float] | None]
    ) -> None:
        self.name = name
        self._fn = fn

    def look(self, gradients: Gradients) -> Report:
        try:
            found = self._fn(gradients)
        except ShammahError:
            raise
        except Exception as error:
            raise TrainingError(
                f"The gradient hook {self.name} failed: {type(error).__name__}: {error}"
            ) from error
        return found if isinstance(found, Report) else Report(found or {})


HOOKS: dict[str, Callable[[], Hook]] = {
    "norm": Norm,
    "distribution": Distribution,
    "flow": Flow,
    "health": Health,
}


Look: TypeAlias = Callable[[Gradients], "Report | Mapping[str, float] | None"]
"""A hook as a function: figures of the gradients, a report, or nothing."""


def register(name: str, made: Look | Callable[[], Hook]) -> None:
    """Give a hook a name.

    Args:
        made: a function of the gradients that gives figures; or what makes a hook and takes
            nothing, such as its class.

    Raises:
        TrainingError: the name is taken.
    """
    if name in HOOKS:
        raise TrainingError(f"There is a gradient hook {name} already.")
    if inspect.signature(made).parameters:
        look = cast("Look", made)
        HOOKS[name] = lambda: Custom(name, look)
    else:
        HOOKS[name] = cast("Callable[[], Hook]", made)


def make_hooks(specs: Sequence[str]) -> list[Hook]:
    """Hooks by name; `health:vanishing=1e-9,exploding=100` has thresholds of its own.

    Raises:
        TrainingError: there is no such hook, or a threshold is none.
    """
    made: list[Hook] = []
    for spec in specs:
        name, _, rest = spec.partition(":")
        if name not in HOOKS or (rest and name != "health"):
            raise TrainingError(
                f"There is no gradient hook {spec!r}.", hint=f"There are: {', '.join(HOOKS)}."
            )
        if not rest:
            made.append(HOOKS[name]())
            continue
        try:
            given = dict(pair.split("=") for pair in rest.split(","))
            thresholds = {key.strip(): float(value) for key, value in given.items()}
            made.append(Health(**thresholds))
        except (TypeError, ValueError):
            raise TrainingError(
                f"{spec!r} has no such thresholds.",
                hint="Write health:vanishing=1e-7,exploding=1e3.",
            ) from None
    return made


def look(hooks: Sequence[Hook], gradients: Gradients) -> None:
    """Call hooks, and tell of what they find."""
    if not gradients.names:
        return
    for hook in hooks:
        report = hook.look(gradients)
        figures = {key: value for key, value in report.figures.items() if math.isfinite(value)}
        emit("training.gradients", {"step": gradients.step, **figures}, {"hook": hook.name})
        for issue in report.issues:
            emit("training.issue", {"step": gradients.step}, {"hook": hook.name, "text": issue})


def layer_of(name: str) -> str:
    """The layer that a tensor belongs to: `layers.3`, or its module where it is in none."""
    found = _LAYER.search(name)
    return found[1] if found else name.partition(_A)[0].partition(_B)[0]


@dataclass(frozen=True, slots=True)
class _Sums:
    size: int
    total: float
    squares: float
    least: float
    greatest: float
    nonzero: float

    @property
    def spread(self) -> Spread:
        mean = self.total / self.size
        variance = max(0.0, self.squares / self.size - mean**2)
        zeros = 1.0 - self.nonzero / self.size
        return Spread(mean, math.sqrt(variance), self.least, self.greatest, zeros)


_SAID: Mapping[Status, str] = {
    "vanishing": "vanishes",
    "exploding": "explodes",
    "nonfinite": "is not finite",
}


def _finite(tensor: torch.Tensor) -> bool:
    import torch

    return bool(torch.isfinite(tensor).all())
