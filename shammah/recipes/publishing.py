"""The last stage of a recipe: the adapter goes into the library, where the chat finds it."""

from __future__ import annotations

from pathlib import Path

from shammah.adapters.library import Adapter, AdapterLibrary
from shammah.adapters.metadata import AdapterMetadata, LessonRecord, LoraConfigRecord
from shammah.adapters.validate import sha256_of
from shammah.learning.job import now
from shammah.recipes.place import RunPlace
from shammah.recipes.training_recipe import TrainingRecipe
from shammah.recipes.workflows.context import Context
from shammah.recipes.workflows.stage import stage


def published_once(
    library: AdapterLibrary, weights: Path, about: AdapterMetadata, name: str | None
) -> Adapter:
    """The adapter of a run in the library: that which a process that died here has put there, else
    it is put there now. Another run with the same weights has an adapter of its own.

    Raises:
        ShammahError: see `AdapterLibrary.publish`.
    """
    for each in library.list():
        known = each.metadata
        if known is not None and (known.run, known.sha256) == (about.run, about.sha256):
            return each
    return library.publish(weights, about, name)


async def unpublish(context: Context) -> None:
    """Take the adapter out of the library again."""
    name = context.state.get("adapter")
    if name:
        library: AdapterLibrary = context.backends["library"]
        fingerprint = context.state["trained"]["base_fingerprint"]
        if library.active(fingerprint) == name:
            library.activate(fingerprint, context.state.get("active_before"))
        library.delete(name)


@stage(needs=("trained", "lessons"), gives=("adapter",), rollback=unpublish)
def publish(context: Context) -> None:
    """Put the adapter into the library."""
    place: RunPlace = context.backends["place"]
    if not place.leads:
        context.state["adapter"] = ""
        return
    recipe: TrainingRecipe = context.config
    library: AdapterLibrary = context.backends["library"]
    trained = context.state["trained"]
    figures = {name: trained[name] for name in ("steps", "epochs", "tokens", "seconds")}
    about = AdapterMetadata(
        name="",
        created_at=now(),
        base_model=trained["base_model"],
        base_fingerprint=trained["base_fingerprint"],
        lora=LoraConfigRecord(**{name: trained[name] for name in LoraConfigRecord.model_fields}),
        parent=trained["parent"],
        renderer=trained.get("renderer"),  # runs that were begun before it was kept have none
        lessons=[LessonRecord(**each) for each in context.state["lessons"]],
        metrics={
            **{name: value for name, value in context.metrics.items() if "/" not in name},
            **{
                name.removeprefix("after/"): value
                for name, value in context.metrics.items()
                if name.startswith("after/")
            },
            "examples": context.state["data"]["examples"],
            **figures,
        },
        sha256=sha256_of(place.weights),
        tensors=0,
        parameters=0,
        origin="trained",
        run=place.folder.name,
    )
    adapter = published_once(library, place.weights, about, recipe.name or None)
    context.state["adapter"] = adapter.name
    context.artifacts["adapter"] = adapter.path
    if recipe.activate:
        fingerprint = trained["base_fingerprint"]
        context.state["active_before"] = library.active(fingerprint)
        library.activate(fingerprint, adapter.name)
