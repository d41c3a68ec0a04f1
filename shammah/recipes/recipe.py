"""What all recipes are: a configuration, and what is asked of one.

A recipe is frozen and checked when it is made; it loads nothing. Whatever takes long or lives (the
model, the material, the client) its stages take from the backends, which `launching` provides.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from shammah.settings import ModelSettings

if TYPE_CHECKING:
    from shammah.paths import Paths
    from shammah.recipes.place import RunPlace
    from shammah.recipes.workflows.backends import Backends
    from shammah.recipes.workflows.workflow import Workflow


class Recipe(BaseModel):
    """What every recipe is configured with. Each kind adds its own.

    Raises:
        pydantic.ValidationError: a value is none; `configuration.made` gives an error in words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: ClassVar[str]
    """What it is called on the command line and in a file."""
    purpose: ClassVar[str]
    """What it does, in a line."""

    data: str
    """A file (JSONL, JSON, CSV, TSV, Parquet), a folder or pattern of them, or a data set of the
    Hub."""
    model: str = "embedded"
    """The base model: `embedded`, a registered name, a folder, or a Hub name."""
    renderer: str = "auto"
    """How conversations are written for it; one of your own is `file.py:name`."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """Where it runs."""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """What it computes in."""
    name: str = ""
    """What to call the adapter in the library; empty is the time."""
    activate: bool = False
    """Answer with it in the chat from now on."""
    loggers: tuple[str, ...] = ()
    """Tools to write the run to beside the run's own files, with commas between."""
    plugins: tuple[str, ...] = ()
    """Your own Python files or modules to import first, with commas between: they can register
    losses, hooks, renderers, loggers and scorers."""
    seed: int = Field(default=0, ge=0)
    """Of the order and of all that is drawn."""

    @field_validator("loggers", "plugins", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return listed(value)

    # --- what it does -----------------------------------------------------------------------

    def workflow(self) -> Workflow:
        """Its stages, for `running.run`; they can be part of a workflow of one's own, too."""
        raise NotImplementedError

    def provide(self, backends: Backends, place: RunPlace) -> None:
        """Put what its stages work with among the backends, each to be made when it is asked
        for."""
        raise NotImplementedError

    def check(self, paths: Paths) -> None:
        """Find what would keep a run from beginning, before anything is written or loaded.

        Raises:
            ShammahError: what it is.
        """
        raise NotImplementedError

    # --- parts of the configuration ---------------------------------------------------------

    def model_settings(self) -> ModelSettings:
        """The base model's."""
        return ModelSettings(
            name=self.model, renderer=self.renderer, device=self.device, dtype=self.dtype
        )

    def absolute(self) -> Self:
        """The same with paths that hold wherever it is gone on with."""
        changes: dict[str, Any] = {
            name: str(Path(value).expanduser().absolute())
            for name in self.path_fields()
            if isinstance(value := getattr(self, name), str)
            and value not in ("", "embedded")
            and Path(value).expanduser().exists()
        }
        changes["plugins"] = tuple(
            str(Path(each).expanduser().absolute()) if each.endswith(".py") else each
            for each in self.plugins
        )
        changes |= {name: own_code(getattr(self, name)) for name in self.code_fields()}
        return self.model_copy(update=changes)

    @classmethod
    def path_fields(cls) -> tuple[str, ...]:
        """Those that can name a file."""
        return ("model", "data")

    @classmethod
    def code_fields(cls) -> tuple[str, ...]:
        """Those that can name one's own code, as `file.py:name`."""
        return ("renderer",)


def own_code(reference: str, folder: Path | None = None) -> str:
    """`file.py:name` with the whole path; anything else as it is.

    Args:
        folder: where it is looked for; None is the working directory.
    """
    source, colon, name = reference.rpartition(":")
    if not colon or not source.endswith(".py"):
        return reference
    return f"{(folder or Path()).absolute() / Path(source).expanduser()}:{name}"


def listed(value: Any) -> Any:
    """A text with commas as its parts; anything else as it is."""
    if isinstance(value, str):
        return tuple(each.strip() for each in value.split(",") if each.strip())
    return value


def paired(value: object) -> object:
    """A text of NAME=VALUE with commas between as a mapping; anything else as it is.

    Raises:
        ValueError: it is not such a text.
    """
    if not isinstance(value, str):
        return value
    pairs = [each.partition("=") for each in value.split(",") if each.strip()]
    if not all(equals and key.strip() for key, equals, _ in pairs):
        raise ValueError("takes NAME=VALUE, with commas between")
    return {key.strip(): text for key, _, text in pairs}
