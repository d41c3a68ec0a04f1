"""Vectors with what they stand for, found again by direction.

Knows no model and no tensor library but numpy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shammah.errors import VectorStoreError

Scalar = str | int | float | bool | None
"""A value of metadata. Floats are finite, ints fit into 64 bits."""


@dataclass(frozen=True, slots=True, eq=False)
class VectorRecord:
    """One vector, float32 [d], and what it stands for. Any length but zero; only the direction
    counts when records are compared."""

    id: str
    vector: NDArray[np.float32]
    text: str = ""
    metadata: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VectorHit:
    """A record that a query found. `score` is the cosine of the two: 1 for the same direction,
    0 for directions that have nothing to do with each other, -1 for opposite ones."""

    id: str
    score: float
    text: str
    metadata: Mapping[str, Scalar]


@dataclass(frozen=True, slots=True)
class Collection:
    """Records of one dimension under one name."""

    name: str
    dimension: int
    size: int


class VectorStore(Protocol):
    """Something that keeps records in collections. Each change is whole or not at all."""

    @property
    def name(self) -> str:
        """Where the store is, in a line."""
        ...

    async def create(self, collection: str, dimension: int) -> Collection:
        """Make a collection; one that is there already is given as it is.

        Raises:
            VectorStoreError: it is there with another dimension.
        """
        ...

    async def collections(self) -> tuple[Collection, ...]:
        """All collections, by name."""
        ...

    async def drop(self, collection: str) -> None:
        """Forget a collection and all that is in it.

        Raises:
            VectorStoreError: there is no such collection.
        """
        ...

    async def add(self, collection: str, records: Sequence[VectorRecord]) -> None:
        """Keep records; one whose id is there already takes the place of the earlier one.

        Raises:
            VectorStoreError: no such collection, a vector of another dimension or without a
                direction, metadata of another kind. None of the records was kept.
        """
        ...

    async def get(
        self, collection: str, ids: Sequence[str] | None = None
    ) -> tuple[VectorRecord, ...]:
        """The records with these ids, in their order, without those that are not there; all in the
        order they came in without ids.

        Raises:
            VectorStoreError: there is no such collection.
        """
        ...

    async def delete(self, collection: str, ids: Sequence[str]) -> int:
        """Forget the records with these ids; how many were there.

        Raises:
            VectorStoreError: there is no such collection.
        """
        ...

    async def query(
        self,
        collection: str,
        vector: ArrayLike,
        n: int = 10,
        *,
        where: Mapping[str, Scalar] | None = None,
    ) -> tuple[VectorHit, ...]:
        """The n records whose direction is nearest to a vector's [d], the nearest first; of equals
        the one that came first.

        Args:
            where: only records whose metadata has these values.

        Raises:
            VectorStoreError: no such collection, or a vector that does not fit.
        """
        ...


def check_vector(vector: ArrayLike, dimension: int, *, backend: str) -> NDArray[np.float32]:
    """The vector as float32 [dimension].

    Raises:
        VectorStoreError: another shape, or no direction that float32 can compute with.
    """
    try:
        checked = np.asarray(vector, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise VectorStoreError(f"not a vector: {error}", backend=backend) from error
    if checked.shape != (dimension,):
        raise VectorStoreError(
            f"a vector of shape {list(checked.shape)} came to a collection of [{dimension}].",
            backend=backend,
            hint="Vectors of one collection come from one embedding model.",
        )
    norm = float(np.linalg.norm(checked.astype(np.float64)))
    if not 1e-15 < norm < 1e15:
        raise VectorStoreError(
            f"a vector of length {norm:g} has no direction to compare.", backend=backend
        )
    return checked


def check_metadata(metadata: Mapping[str, Scalar], *, backend: str) -> dict[str, Scalar]:
    """The metadata as a dict.

    Raises:
        VectorStoreError: a key is no text, or a value is none of the kinds of `Scalar`.
    """
    for key, value in metadata.items():
        sound = isinstance(key, str) and (
            value is None
            or isinstance(value, str | bool)
            or (isinstance(value, int) and -(1 << 63) <= value < 1 << 63)
            or (isinstance(value, float) and math.isfinite(value))
        )
        if not sound:
            raise VectorStoreError(
                f"metadata {key!r} cannot be {value!r}.",
                backend=backend,
                hint="Texts, finite floats, ints of 64 bits, true, false and none can be kept.",
            )
    return dict(metadata)
