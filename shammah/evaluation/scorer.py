"""What a scorer is: an output, what was wanted and what is known of the example -> a score.

Knows no particular scorer, no model and no data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from shammah.errors import DataError, InputError

ROUNDING = 1e-6
"""How far arithmetic may carry a value out of its range."""


@dataclass(frozen=True, slots=True)
class Score:
    """How good one answer is, from 0 to 1, and why.

    `detail` can be written as JSON: what was found in the answer, the parts of the value, counts
    that an aggregate is computed from.

    Raises:
        DataError: the value is not in [0, 1], by more than rounding.
    """

    value: float
    detail: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not -ROUNDING <= self.value <= 1.0 + ROUNDING:
            raise DataError(f"A score is {self.value}; it has to lie between 0 and 1.")
        object.__setattr__(self, "value", min(1.0, max(0.0, float(self.value))))


class Scorer(Protocol):
    """Something that scores answers, one at a time and in any order."""

    @property
    def name(self) -> str:
        """What it is called where scores are listed."""
        ...

    async def score(self, output: str, target: str, metadata: Mapping[str, Any]) -> Score:
        """The score of an output.

        May be awaited several times at once.

        Args:
            output: what the model wrote.
            target: the answer that is known.
            metadata: what else is known of the example.

        Raises:
            InputError: the example has not what the scorer needs (a target, a field).
            PortError: what stands behind the scorer fails.
        """
        ...


class Tally(Protocol):
    """Counts up the details of scores, one at a time and in any order."""

    def add(self, detail: Mapping[str, Any]) -> None:
        """Count the detail of one score."""
        ...

    def figures(self) -> dict[str, Any]:
        """What they come to so far, by name, as JSON. Empty where nothing was counted."""
        ...


@runtime_checkable
class Aggregating(Protocol):
    """A scorer with figures of a whole data set that are not the mean of its scores. It is a
    `Scorer` too."""

    def tally(self) -> Tally:
        """A new count. It takes details that were written as JSON and read again."""
        ...


def wanted(target: str, name: str) -> str:
    """The target, which must say something.

    Raises:
        InputError: it does not.
    """
    if not target.strip():
        raise InputError(f"{name} compares with a target, and the example has none.")
    return target


def known(metadata: Mapping[str, Any], key: str, name: str) -> Any:
    """What the metadata hold under a key.

    Raises:
        InputError: they do not have it.
    """
    if metadata.get(key) is None:
        held = ", ".join(map(str, metadata)) or "nothing"
        raise InputError(f"{name} needs {key!r} of the example's metadata, which hold {held}.")
    return metadata[key]
