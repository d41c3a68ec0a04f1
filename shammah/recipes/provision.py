"""What the stages of a training recipe work with: each thing is made when it is first asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from shammah.errors import AdapterInvalidError
from shammah.paths import Paths
from shammah.recipes.place import RunPlace
from shammah.recipes.reading import material_of
from shammah.recipes.workflows.backends import Backends, Factory

if TYPE_CHECKING:
    from shammah.adapters.library import AdapterLibrary
    from shammah.models.load import BaseModel
    from shammah.ports.training_client import TrainingClient
    from shammah.recipes.material import Material
    from shammah.recipes.recipe import Recipe
    from shammah.recipes.training_recipe import TrainingRecipe


def provide(recipe: TrainingRecipe, backends: Backends, place: RunPlace) -> None:
    """See `TrainingRecipe.provide`."""
    backends["place"] = place
    backends["base"] = Factory(lambda: _base(recipe))
    backends["material"] = Factory(lambda: material_of(recipe, backends["base"]))
    backends["library"] = Factory(lambda: library(place.paths))
    backends["client"] = Factory(lambda: _client(recipe, place, backends))


def _base(recipe: Recipe) -> BaseModel:
    from shammah.training.parallel import base_of

    return base_of(recipe.model_settings())


def library(paths: Paths) -> AdapterLibrary:
    """The user's own."""
    from shammah.adapters.library import AdapterLibrary
    from shammah.storage.database import Database

    return AdapterLibrary(paths.adapters, Database(paths.database))


def _client(recipe: TrainingRecipe, place: RunPlace, backends: Backends) -> TrainingClient:
    from shammah.settings import TrainingSettings
    from shammah.training.hooks import make_hooks

    base: BaseModel = backends["base"]
    material: Material = backends["material"]
    parent: Path | None = None
    scaling: float | None = None
    if recipe.adapter:
        library: AdapterLibrary = backends["library"]
        adapter = library.get(recipe.adapter)
        metadata = adapter.require_metadata()
        if metadata.base_fingerprint != base.fingerprint:
            raise AdapterInvalidError(
                f"{adapter.name} was made for {metadata.base_model}, not for {base.name}.",
                hint="Train it on its own base model: --model.",
            )
        parent, scaling = adapter.path, metadata.lora.scaling
    training = TrainingSettings(seed=recipe.seed, micro_batch_tokens=recipe.micro_batch_tokens)
    client = recipe.client(
        base,
        recipe.shape(len(material.examples)),
        training,
        parent=parent,
        parent_scaling=scaling,
        hooks=make_hooks(recipe.hooks),
    )
    client.on_batch = place.manifest.first_batch
    return client
