"""The user's own code: Python files and modules that are named on the command line.

Knows nothing of what is in them; what they raise while they are imported becomes an error in words.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from shammah.errors import UsageError


def own_function(reference: str) -> Any:
    """What `module:name` or `file.py:name` stands for; modules of the working directory count.

    Raises:
        UsageError: there is no such module, file or name, or it cannot be called.
    """
    source, _, path = reference.rpartition(":")
    found: Any = own_module(source)
    for part in path.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise UsageError(f"{source} has no function {path}.")
    return found


def own_module(source: str) -> Any:
    """A module, by its name or by the path of its file. A file is imported once.

    Raises:
        UsageError: there is none, or importing it fails.
    """
    try:
        return _from_file(Path(source)) if source.endswith(".py") else _by_name(source)
    except UsageError:
        raise
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if source == missing or source.startswith(missing + "."):
            raise UsageError(
                f"There is no module {source}.",
                hint="Run from its folder, or put that into PYTHONPATH; a file ends with .py.",
            ) from error
        raise UsageError(f"{source} cannot be imported: {error}.") from error
    except Exception as error:  # whatever the user's module does
        raise UsageError(f"{source} cannot be imported: {error!r}.") from error


def _by_name(name: str) -> Any:
    here = os.getcwd()  # noqa: PTH109
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    return importlib.import_module(name)


def _from_file(given: Path) -> Any:
    path = given.expanduser().resolve()
    if not path.is_file():
        raise UsageError(f"There is no file {given}.")
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == str(path):
            return module
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # it ends with .py
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pydantic look their module up. One of the same name may be imported already.
    name = path.stem if path.stem not in sys.modules else f"{path.stem}@{path}"
    module.__name__ = module.__spec__.name = name  # type: ignore[union-attr]
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
