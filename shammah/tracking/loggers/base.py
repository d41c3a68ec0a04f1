"""What every logger is, and what it is told about the run that it writes down.

Knows runs, numbers, texts and files; neither what trains nor any tool.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from shammah.ports.metrics_store import Number

Outcome = Literal["done", "failed", "interrupted"]
"""How a run ends; one that was interrupted may go on under the same id."""


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """Which run is written down.

    `name` is what this data folder knows it by (`job-3`), `key` what tools know it by, in which
    runs of other machines lie too; with the same key a run goes on where it was. `folder` is the
    run's own folder and `data` the one that all runs share. `resumed_step` is the step of the
    checkpoint it goes on from, 0 for a fresh start.
    """

    name: str
    key: str
    folder: Path
    data: Path
    project: str = "shammah"
    title: str = ""
    group: str = ""
    tags: Sequence[str] = ()
    resumed_step: int = 0
    online: bool = False
    """Whether anything may leave this machine."""
    mlflow_uri: str = ""
    otel_endpoint: str = ""

    @property
    def shown(self) -> str:
        """What people call it."""
        return self.title or self.name

    def tool_folder(self, tool: str) -> Path:
        """Where a tool keeps what it has on this machine."""
        return self.data / "tracking" / tool


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file that a run made. `lineage` says what it was made from: the base model and its
    fingerprint, the parent adapter, the checksum."""

    path: Path
    name: str
    kind: str = "adapter"
    lineage: Mapping[str, str | int | float] = field(default_factory=dict)


class RunLogger(ABC):
    """Writes one run into one tool. It is made when the run begins, used by one thread, and closed.

    Only `log_metrics` is a must: what a tool has no place for, its logger leaves as it is here,
    where nothing happens.
    """

    tool: ClassVar[str]
    """Its name in the settings."""
    immediate: ClassVar[bool] = False
    """Whether it is so quick, and so needed when the process is killed, that it does not go through
    a queue."""

    @abstractmethod
    def log_metrics(self, metrics: Mapping[str, Number], step: int) -> None:
        """What was measured at a step. A step comes again where a run went on from a checkpoint."""

    def log_hparams(self, hparams: Mapping[str, Any]) -> None:  # noqa: B027
        """What the run was made with: nested mappings of what JSON has."""

    def log_text(self, name: str, text: str, step: int | None = None) -> None:  # noqa: B027
        """Something to read."""

    def log_artifact(self, artifact: Artifact) -> None:  # noqa: B027
        """A file that the run made."""

    def sync(self) -> None:  # noqa: B027
        """Return when all so far is where it belongs."""

    @property
    def url(self) -> str | None:
        """Where to look at it: an address, or a folder."""
        return None

    def close(self, outcome: Outcome = "done") -> None:  # noqa: B027
        """The run has ended."""


def flat(hparams: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Nested mappings with dotted names, for tools that know no nesting; lists as text, None left
    out."""
    return dict(_flat(hparams, prefix))


def _flat(
    hparams: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, str | int | float | bool]]:
    for name, value in hparams.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, str | int | float | bool):
            yield f"{prefix}{name}", value
        elif value is not None:
            yield f"{prefix}{name}", ", ".join(map(str, value))
