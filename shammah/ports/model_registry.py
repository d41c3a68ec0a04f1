"""Models known by a short name.

Knows names and where they lead; loads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class RegisteredModel:
    """A model's short name and what it stands for.

    `source` is `embedded`, a folder, or a repository on the hub, there at `revision` (a branch, a
    tag or a commit; None is the default branch). `renderer` names how it is spoken to; None leaves
    that to the model.
    """

    name: str
    source: str
    revision: str | None = None
    renderer: str | None = None
    notes: str = ""


class ModelRegistry(Protocol):
    """Something that knows models by name."""

    @property
    def name(self) -> str:
        """Where the registry is, in a line."""
        ...

    async def register(self, model: RegisteredModel, *, replace: bool = False) -> None:
        """Know a model from now on.

        Raises:
            RegistryError: the name is taken (and not to be replaced) or none that a model can
                have, the source leads nowhere, or it cannot be written.
        """
        ...

    async def get(self, name: str) -> RegisteredModel:
        """The model of a name.

        Raises:
            RegistryError: there is none, or the registry cannot be read.
        """
        ...

    async def list(self) -> tuple[RegisteredModel, ...]:
        """All models, by name.

        Raises:
            RegistryError: the registry cannot be read.
        """
        ...

    async def forget(self, name: str) -> None:
        """No longer know a model; its files stay.

        Raises:
            RegistryError: there is none of that name, or it cannot be written.
        """
        ...
