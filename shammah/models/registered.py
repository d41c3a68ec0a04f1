"""A `ModelRegistry` in a TOML file, one table a model:

    [small]
    source = "Qwen/Qwen2.5-0.5B-Instruct"
    revision = "main"

A user may write it by hand too: comments and order are kept. Knows what may stand there; where a
source leads is for `source` to say.
"""

from __future__ import annotations

import asyncio
import re
import tomllib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from shammah.errors import ModelError, RegistryError, ShammahError
from shammah.files import private_folder, write_atomic
from shammah.models.source import source_of
from shammah.ports.model_registry import RegisteredModel

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
"""What a registered model may be called. It has no slash, as a folder or a Hub id may have."""
TAKEN = "embedded"
LOCK_SECONDS = 10.0


class _Entry(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(min_length=1)
    revision: str | None = Field(None, min_length=1)
    renderer: str | None = Field(None, min_length=1)
    notes: str = ""


_FILE = TypeAdapter(dict[str, _Entry])


class RegisteredModels:
    """The port on a file, which is read anew each time.

    Args:
        path: the TOML file; made when something is registered.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def name(self) -> str:
        return str(self._path)

    async def register(self, model: RegisteredModel, *, replace: bool = False) -> None:
        """The port's `register`; a folder is kept with its full path."""
        await asyncio.to_thread(self._register, model, replace)

    async def get(self, name: str) -> RegisteredModel:
        """The port's `get`."""
        found = await asyncio.to_thread(self.find, name)
        if found is None:
            raise self._unknown(name)
        return found

    async def list(self) -> tuple[RegisteredModel, ...]:
        """The port's `list`."""
        return await asyncio.to_thread(lambda: tuple(sorted(self.read(), key=lambda m: m.name)))

    async def forget(self, name: str) -> None:
        """The port's `forget`."""

        def remove(text: str) -> str:
            import tomlkit

            if self.find(name) is None:
                raise self._unknown(name)
            document = tomlkit.parse(text)
            del document[name]
            return document.as_string()

        await asyncio.to_thread(self._change, remove)

    def find(self, name: str) -> RegisteredModel | None:
        """The model of a name, in the calling thread; None if there is none.

        Raises:
            RegistryError: the file cannot be read.
        """
        return next((model for model in self.read() if model.name == name), None)

    def read(self) -> tuple[RegisteredModel, ...]:
        """All models in the order of the file, in the calling thread.

        Raises:
            RegistryError: the file cannot be read.
        """
        try:
            tables = tomllib.loads(self._path.read_text("utf-8"))
            entries = _FILE.validate_python(tables)
            for name in entries:
                self._check_name(name)
        except FileNotFoundError:
            return ()
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise self._broken(f"{place}: {first['msg'].lower()}") from error
        except (OSError, ValueError) as error:
            raise self._broken(str(error)) from error
        return tuple(RegisteredModel(name, **dict(entry)) for name, entry in entries.items())

    def _register(self, model: RegisteredModel, replace: bool) -> None:
        self._check_name(model.name)
        try:
            source = source_of(model.source)
        except ModelError as error:
            raise RegistryError(error.message, backend=self.name, hint=error.hint) from error
        if model.revision is not None and source.hub_id is None:
            raise RegistryError(
                f"{model.source} has no revisions.", backend=self.name, hint="Only the Hub has."
            )
        kept = {key: value for key, value in asdict(model).items() if value and key != "name"}
        if source.path is not None and source.name != TAKEN:
            kept["source"] = str(source.path)

        def add(text: str) -> str:
            import tomlkit

            if self.find(model.name) is not None and not replace:
                raise RegistryError(
                    f"{model.name} is registered already.",
                    backend=self.name,
                    hint="Give --replace to have it lead elsewhere.",
                )
            document = tomlkit.parse(text)
            document.pop(model.name, None)
            if document.as_string().strip():
                document.add(tomlkit.nl())
            table = tomlkit.table()
            table.update(kept)
            document.add(model.name, table)
            return document.as_string()

        self._change(add)

    def _change(self, work: Callable[[str], str]) -> None:
        """Write what the work makes of the file's text, while no other process does."""
        from filelock import FileLock, Timeout

        try:
            private_folder(self._path.parent)
            with FileLock(f"{self._path}.lock", timeout=LOCK_SECONDS, mode=0o600):
                text = self._path.read_text("utf-8") if self._path.exists() else ""
                target = self._path.resolve() if self._path.is_symlink() else self._path
                write_atomic(target, work(text))
        except RegistryError:
            raise
        except ShammahError as error:
            raise RegistryError(error.message, backend=self.name, hint=error.hint) from error
        except (OSError, Timeout) as error:
            raise RegistryError(f"it cannot be written: {error}", backend=self.name) from error

    def _check_name(self, name: str) -> None:
        if not re.fullmatch(NAME, name) or name == TAKEN:
            raise RegistryError(
                f"a model cannot be registered as {name!r}.",
                backend=self.name,
                hint=f"Letters, digits, _, . and -, at most 64 of them, and not {TAKEN}.",
            )

    def _broken(self, problem: str) -> RegistryError:
        return RegistryError(
            f"it cannot be read: {problem}.",
            backend=self.name,
            hint="Mend the file, or remove it and register the models again.",
        )

    def _unknown(self, name: str) -> RegistryError:
        return RegistryError(
            f"no model is registered as {name!r}.",
            backend=self.name,
            hint="`shammah model list` shows which are.",
        )
