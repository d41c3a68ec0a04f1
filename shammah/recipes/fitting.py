"""The second stage of a recipe: train, with checkpoints that a killed run goes on from."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from shammah.ports.training_client import TrainingClient
from shammah.recipes.material import Material
from shammah.recipes.place import RunPlace
from shammah.recipes.training_recipe import TrainingRecipe
from shammah.recipes.workflows.context import Context
from shammah.recipes.workflows.stage import stage


@stage(needs=("data",), gives=("trained", "lessons"))
async def fit(context: Context) -> None:
    """Train the adapter."""
    import torch

    from shammah.training.loops.engine import Callbacks, run_loop

    recipe: TrainingRecipe = context.config
    place: RunPlace = context.backends["place"]
    material: Material = context.backends["material"]
    material.check_same(context.state["data"]["digest"], recipe.data)
    torch.set_num_threads(material.base.threads)
    client: TrainingClient = context.backends["client"]
    method = recipe.method(material, client, context.backends)
    data = context.state["data"]
    too_long = sum(material.lacking.values()) - sum(data["lacking"].values())
    data |= {"examples": data["examples"] - too_long, "lacking": dict(material.lacking)}
    width = int(material.base.model.config.get_text_config(decoder=True).hidden_size)
    loop = recipe.loop(width, method.steps_per_epoch)
    info = await client.info()
    place.manifest.update(data=data, loop=loop.model_dump(mode="json"), adapter=asdict(info))

    def on_checkpoint(written: dict[str, Any]) -> None:
        place.manifest.checkpoint(int(written["step"]), str(written["folder"]))

    result = await run_loop(
        client,
        method,
        loop,
        folder=place.checkpoints,
        callbacks=Callbacks(on_checkpoint=[on_checkpoint]),
        should_stop=context.stopping,
    )
    if result.stopped:
        context.interrupt()
    if place.leads:
        await client.save_weights(place.weights)
        context.artifacts["weights"] = place.weights
    context.state["lessons"] = await recipe.lessons(material, client)
    if result.recent:
        # A mean: that of one batch says little.
        context.metrics["final_loss"] = sum(result.recent) / len(result.recent)
    for when, figures in (("before", result.before), ("after", result.figures)):
        context.metrics.update({f"{when}/{name}": value for name, value in figures.items()})
    context.state["trained"] = {
        "steps": result.steps,
        "epochs": result.epochs,
        "tokens": result.tokens,
        "seconds": result.seconds,
        "ended": result.ended,
        "best_step": result.best_step,
        "learning_rate": loop.learning_rate,
        "rank": info.rank,
        "alpha": info.alpha,
        "rslora": info.rslora,
        "dropout": recipe.lora.dropout,
        "target_modules": list(info.target_modules),
        "parameters": info.trainable_parameters,
        "parent": recipe.adapter or None,
        "base_model": info.model,
        "base_fingerprint": info.fingerprint,
        "renderer": material.renderer.name,
    }
