"""A hub that models and data sets are fetched from and published to.

Knows repositories, revisions and files; not what is in them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

RepoKind = Literal["model", "dataset"]
Progress = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes there will be, from downloading threads."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository: its path there and its size in bytes."""

    path: str
    size: int


class HubClient(Protocol):
    """Something that keeps repositories of files, with revisions.

    A revision is a branch, a tag or a commit; without one it is the hub's default branch. A pickle
    is never fetched: reading one can run any code.
    """

    @property
    def name(self) -> str:
        """Which hub, in a line."""
        ...

    async def list_files(
        self, repo: str, *, revision: str | None = None, kind: RepoKind = "model"
    ) -> tuple[HubFile, ...]:
        """All files of a repository, by path.

        Raises:
            HubError: no such repository or revision, no access to it, or no way to the hub.
        """
        ...

    async def download(
        self, repo: str, path: str, *, revision: str | None = None, kind: RepoKind = "model"
    ) -> Path:
        """One file, kept in a cache; the cached one where the hub cannot be reached.

        Raises:
            HubError: as `list_files`; no such file; a pickle; the disk is full.
        """
        ...

    async def snapshot(
        self,
        repo: str,
        *,
        revision: str | None = None,
        kind: RepoKind = "model",
        allow: Sequence[str] | None = None,
        cached: bool = False,
        on_progress: Progress | None = None,
    ) -> Path:
        """A folder with the files of a repository, kept in a cache.

        Args:
            allow: only files that match one of these patterns (`*.json`); None is all of them.
            cached: what is in the cache, without asking the hub.

        Raises:
            HubError: as `download`; with `cached`, it is not in the cache.
        """
        ...

    async def upload(
        self,
        repo: str,
        source: Path,
        *,
        to: str = "",
        revision: str | None = None,
        kind: RepoKind = "model",
        message: str = "",
        private: bool = True,
    ) -> str:
        """Publish a file, or a folder with all that is in it, in one commit.

        Args:
            to: the place in the repository: of a folder, the folder that its files go into; of a
                file, its path, or nothing for its own name.
            message: of the commit.
            private: whether a repository that is made for it is private; one that is there
                already stays as it is.

        Returns:
            Where the commit can be seen.

        Raises:
            HubError: nothing to publish, no right to, or no way to the hub.
        """
        ...
