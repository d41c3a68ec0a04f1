"""What a run of a recipe would do, found out without training: `--dry-run`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shammah.own_code import own_module
from shammah.recipes.manifest import Manifest
from shammah.recipes.place import RunPlace
from shammah.recipes.workflows.backends import Backends
from shammah.recipes.workflows.drawing import describe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shammah.paths import Paths
    from shammah.recipes.material import Material
    from shammah.recipes.training_recipe import TrainingRecipe


@dataclass(frozen=True, slots=True)
class Preview:
    """`steps` is None where the method is only known once the run has begun."""

    workflow: str
    model: str
    renderer: str
    format: str
    examples: int
    held_out: int
    lacking: Mapping[str, int]
    bad_rows: int
    parameters: int
    learning_rate: float
    steps: int | None
    first_sample: Mapping[str, Any]


async def preview(recipe: TrainingRecipe, paths: Paths) -> Preview:
    """Read the data and load the model, and say what would be trained. Writes nothing.

    Raises:
        ShammahError: whatever would keep the run from beginning.
    """
    for source in recipe.plugins:
        own_module(source)
    recipe = recipe.absolute()
    recipe.check(paths)
    place = RunPlace(paths, Path("dry-run"), Manifest(None), leads=False)
    backends = Backends()
    recipe.provide(backends, place)
    try:
        material: Material = backends["material"]
        client = backends["client"]
        info = await client.info()
        steps, rate = None, recipe.learning_rate
        width = int(material.base.model.config.get_text_config(decoder=True).hidden_size)
        if recipe.ready:
            method = recipe.method(material, client, backends)
            loop = recipe.loop(width, method.steps_per_epoch)
            total = method.steps_per_epoch * loop.epochs
            steps = min(total, loop.max_steps) if loop.max_steps else total
            rate = loop.learning_rate
        return Preview(
            workflow=describe(recipe.workflow()),
            model=f"{info.model} ({info.dtype} on {info.device})",
            renderer=material.renderer.name,
            format=material.format,
            examples=len(material.examples),
            held_out=len(material.held_out),
            lacking=material.lacking,
            bad_rows=material.bad,
            parameters=info.trainable_parameters,
            learning_rate=rate,
            steps=steps,
            first_sample=material.shown(1)[0],
        )
    finally:
        await backends.close()
