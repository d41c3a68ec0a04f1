"""What the name of a model stands for, registered names included."""

from __future__ import annotations

import re
from dataclasses import replace

from shammah.errors import ModelError, RegistryError
from shammah.models.registered import NAME, RegisteredModels
from shammah.models.source import ModelSource, source_of
from shammah.paths import Paths


def find_model(name: str) -> ModelSource:
    """What a `[model] name` stands for. A registered name comes before a folder or Hub id of that
    name.

    Raises:
        ModelNotFoundError: it is neither `embedded`, nor registered, nor a folder, nor shaped like
            a Hub id.
        ModelError: the file of registered models cannot be read.
    """
    name = name.strip()
    if name == "embedded" or not re.fullmatch(NAME, name):
        return source_of(name)
    try:
        model = RegisteredModels(Paths.default().models_file).find(name)
    except RegistryError as error:
        raise ModelError(error.message, hint=error.hint) from error
    if model is None:
        return source_of(name)
    return replace(source_of(model.source), revision=model.revision, renderer=model.renderer)
