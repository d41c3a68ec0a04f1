"""The last stage of a recipe: the adapter goes into the library, where the chat finds it."""

from __future__ import annotations

from shammah.adapters.library import AdapterLibrary
from shammah.adapters.metadata import AdapterMetadata, LessonRecord, LoraConfigRecord
from shammah.adapters.validate import sha256_of
from shammah.learning.job import now
from shammah.recipes.context import Context
from shammah.recipes.place import RunPlace
from shammah.recipes.stage import stage
from shammah.recipes.training_recipe import TrainingRecipe


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
    sha256 = sha256_of(place.weights)
    adapter = next(
        # A process that died here has published it already.
        (each for each in library.list() if each.metadata and each.metadata.sha256 == sha256),
        None,
    )
    if adapter is None:
        figures = {name: trained[name] for name in ("steps", "epochs", "tokens", "seconds")}
        about = AdapterMetadata(
            name="",
            created_at=now(),
            base_model=trained["base_model"],
            base_fingerprint=trained["base_fingerprint"],
            lora=LoraConfigRecord(
                **{name: trained[name] for name in LoraConfigRecord.model_fields}
            ),
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
            sha256=sha256,
            tensors=0,
            parameters=0,
            origin="trained",
        )
        adapter = library.publish(place.weights, about, recipe.name or None)
    context.state["adapter"] = adapter.name
    context.artifacts["adapter"] = adapter.path
    if recipe.activate:
        fingerprint = trained["base_fingerprint"]
        context.state["active_before"] = library.active(fingerprint)
        library.activate(fingerprint, adapter.name)
