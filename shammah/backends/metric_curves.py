"""From the values of a metric to as many places as can be drawn. Knows numbers alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Place(NamedTuple):
    """Neighbouring values of a metric (or one): from which step to which, their mean, least and
    greatest, and how many they are."""

    first_step: int
    last_step: int
    mean: float
    least: float
    greatest: float
    number: int


@dataclass(frozen=True, slots=True)
class Curve:
    """A metric to be drawn: the mean of neighbouring values with their least and greatest, at the
    last step of each; `exact` where each is one value."""

    steps: tuple[int, ...]
    values: tuple[float, ...]
    least: tuple[float, ...]
    greatest: tuple[float, ...]
    exact: bool


def standing(places: Iterable[Place]) -> list[Place]:
    """The places in the order of their steps. Where a run went on from a checkpoint, what had been
    recorded after that step was thrown away, and is left out."""
    kept: list[Place] = []
    for place in places:
        while kept and kept[-1].first_step >= place.first_step:
            kept.pop()
        kept.append(place)
    return kept


def drawn(places: Sequence[Place], width: int) -> Curve:
    """Neighbouring places joined until there are no more than `width`."""
    groups: list[list[Place]]
    if len(places) <= width:
        groups = [[place] for place in places]
    else:
        first, last = places[0].first_step, places[-1].last_step
        cells: dict[int, list[Place]] = {}
        for place in places:
            cell = (place.last_step - first) * width // max(1, last - first)
            cells.setdefault(min(width - 1, cell), []).append(place)
        groups = list(cells.values())
    return Curve(
        steps=tuple(group[-1].last_step for group in groups),
        values=tuple(
            sum(place.mean * place.number for place in group) / sum(place.number for place in group)
            for group in groups
        ),
        least=tuple(min(place.least for place in group) for group in groups),
        greatest=tuple(max(place.greatest for place in group) for group in groups),
        exact=all(len(group) == 1 and group[0].number == 1 for group in groups),
    )
