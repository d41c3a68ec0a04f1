"""What is known about an adapter: the JSON file beside its weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from shammah.adapters.regular_file import DAMAGED, open_regular
from shammah.errors import AdapterInvalidError
from shammah.settings import DOMAIN

MAX_BYTES = 64 * 2**20
"""A description larger than this is not read."""


class Record(BaseModel):
    """Part of the JSON file. Keys that a newer version has added are kept when it is rewritten."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)


class LoraConfigRecord(Record):
    """The shape of an adapter, target modules spelled out."""

    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: list[str] = Field(min_length=1)
    rslora: bool = False

    @property
    def scaling(self) -> float:
        """What B A is multiplied with: alpha / rank, or alpha / sqrt(rank) for rsLoRA
        (arXiv 2312.03732)."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class LessonRecord(Record):
    """One lesson that an adapter was trained on; private, as it quotes the user."""

    feedback_id: int | None
    query: str
    target: str | None
    """The answer to give; None where there is only one to keep from, `rejected`."""
    weight: float
    learned: bool
    rejected: str | None = None
    objective: str = "towards"
    before: str | None = None
    """What the question was answered before training: the answer that was judged, else the greedy
    one; None where it was not asked. `after` is the greedy one."""
    after: str | None = None

    @property
    def aim(self) -> str:
        """What is to come of it, in words for the user."""
        return self.target if self.target is not None else f"not: {self.rejected}"


class RoundRecord(Record):
    """So many ranks of an adapter, and the lessons (by feedback id) that were taught in them."""

    rank: int = Field(ge=1)
    lessons: tuple[int | None, ...] = ()


class MergedParent(Record):
    """An adapter that went into a merged one: what it was called and which file it was."""

    name: str
    weight: float
    sha256: str


class MergeRecord(Record):
    """How a merged adapter was made. `relative_error` is the distance of its change from the
    weighted sum of its parents' changes, as a share of that sum (Frobenius norms)."""

    parents: list[MergedParent] = Field(min_length=2)
    method: str
    rank: int
    density: float | None = None
    relative_error: float


class AdapterMetadata(Record):
    """Everything about an adapter but its weights. `name` is the file's name without suffix."""

    name: str
    created_at: AwareDatetime
    base_model: str
    base_fingerprint: str
    lora: LoraConfigRecord
    parent: str | None = None
    domain: str | None = Field(None, pattern=f"^{DOMAIN}$")
    """What it is for, such as `rust`: questions near its lessons can be routed to it."""
    lessons: list[LessonRecord] = []
    renderer: str | None = None
    """What conversations were written with in its training; None where that is not known."""
    rounds: list[RoundRecord] = []
    """Of one that was trained as a difference to its parent: the ranks in their order."""
    metrics: dict[str, float] = {}
    failures: list[str] = []
    """The checks it failed after training; with any it was not made active by itself."""
    sha256: str
    """Of the weights file, in hexadecimal."""
    tensors: int
    parameters: int
    origin: Literal["trained", "imported", "merged"] = "trained"
    run: str | None = None
    """The run of a recipe that made it."""
    merge: MergeRecord | None = None
    """Of a merged one; the lessons are then those of its parents, learned where a parent had
    learned them."""

    @property
    def parents(self) -> tuple[str, ...]:
        """The adapters that it was made from, by name; of a merged one the heaviest first."""
        if self.merge is not None:
            heaviest = sorted(self.merge.parents, key=lambda parent: -parent.weight)
            return tuple(parent.name for parent in heaviest)
        return (self.parent,) if self.parent is not None else ()

    def renamed_parent(self, old: str, new: str) -> AdapterMetadata:
        """The same with a parent's new name."""
        changes: dict[str, object] = {"parent": new} if self.parent == old else {}
        if self.merge is not None:
            parents = [
                parent.model_copy(update={"name": new}) if parent.name == old else parent
                for parent in self.merge.parents
            ]
            changes["merge"] = self.merge.model_copy(update={"parents": parents})
        return self.model_copy(update=changes)

    @property
    def parts(self) -> list[RoundRecord]:
        """Its rounds; where it was trained in one piece, that is one."""
        whole = RoundRecord(
            rank=self.lora.rank, lessons=tuple(lesson.feedback_id for lesson in self.lessons)
        )
        return self.rounds or [whole]

    @classmethod
    def read(cls, path: Path, folder: Path | None = None) -> AdapterMetadata:
        """The metadata in a file, which must lie in `folder` where one is given.

        Raises:
            AdapterInvalidError: it is missing, no file of the folder, too large, or no adapter's
                metadata.
            StorageError: it cannot be read.
        """
        try:
            with open_regular(path, folder) as stream:
                content = stream.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise AdapterInvalidError(
                    f"{path.name} was refused (size): at most {MAX_BYTES:,} bytes are read.",
                    hint=DAMAGED,
                )
            return cls.model_validate_json(content)
        except FileNotFoundError as error:
            raise AdapterInvalidError(
                f"{path.name} is missing: nothing is known about the adapter beside it.",
                hint="Restore the file, or delete the adapter.",
            ) from error
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"]) or "the file"
            raise AdapterInvalidError(
                f"{path.name} does not describe an adapter: {where}: {problem['msg']}.",
                hint="Restore the file, or delete the adapter.",
            ) from error

    def to_json(self) -> str:
        return self.model_dump_json(indent=1) + "\n"
