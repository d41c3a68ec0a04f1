"""The first stage of a recipe: read the data, hold some out, look at the first ones."""

from __future__ import annotations

from shammah.recipes.material import Material
from shammah.recipes.place import RunPlace
from shammah.recipes.training_recipe import TrainingRecipe
from shammah.recipes.workflows.context import Context
from shammah.recipes.workflows.stage import stage


@stage(gives=("data",))
def prepare(context: Context) -> None:
    """Read the data, hold some out, note what the model is given."""
    recipe: TrainingRecipe = context.config
    place: RunPlace = context.backends["place"]
    material: Material = context.backends["material"]
    known = place.manifest.parts.get("data")
    if known is not None and place.checkpoints.exists():
        # A run that failed begins anew, and goes on from its checkpoint.
        material.check_same(known["digest"], recipe.data)
    data = {
        "source": recipe.data,
        "format": material.format,
        "digest": material.digest,
        "examples": len(material.examples),
        "held_out": len(material.held_out),
        "lacking": dict(material.lacking),
        "bad_rows": material.bad,
        "first_bad_rows": [
            {"place": row.place, "reason": row.reason} for row in material.first_bad
        ],
    }
    place.manifest.update(
        data=data,
        model={
            "name": material.base.name,
            "fingerprint": material.base.fingerprint,
            "dtype": str(material.base.dtype).removeprefix("torch."),
            "device": material.base.device,
            "renderer": material.renderer.name,
        },
        first_samples=material.shown(),
    )
    context.state["data"] = data
