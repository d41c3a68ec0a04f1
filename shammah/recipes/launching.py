"""From a recipe to a run: its folder, its backends, its record; and going on with one.

The stages know what to do; here is what they do it with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shammah.adapters.library import NAME
from shammah.adapters.validate import sha256_of
from shammah.errors import UsageError
from shammah.files import private_folder, storage_error
from shammah.own_code import own_module
from shammah.paths import Paths
from shammah.recipes.backends import Backends
from shammah.recipes.configuration import made
from shammah.recipes.manifest import Manifest, machine, read
from shammah.recipes.place import RunPlace
from shammah.recipes.recipe import Recipe
from shammah.recipes.recording import recorded
from shammah.recipes.running import Result, run
from shammah.settings_file import load
from shammah.tracking.loggers.base import Artifact


async def launch(
    recipe: Recipe,
    *,
    paths: Paths | None = None,
    run_id: str | None = None,
    resume: bool = False,
    should_stop: Callable[[], bool] | None = None,
    backends: Mapping[str, Any] | None = None,
    tell: Callable[[str], object] = lambda text: None,
) -> Result:
    """Run a recipe, or go on with a run of it.

    Args:
        paths: the data folder; None is the user's own.
        run_id: what the run is called; None takes the recipe's name and the time.
        resume: go on with the run of that id.
        should_stop: asked between steps; the run can be gone on with then.
        backends: instead of the recipe's own, by name.
        tell: is given lines about what is worth knowing beside the result.

    Returns:
        `state["adapter"]` is the adapter's name, `artifacts["adapter"]` its file, `metrics` has
        `final_loss` and what was evaluated `before/` and `after/`.

    Raises:
        WorkflowError: a stage failed; it names the stage, and its cause is the error. Or another
            process runs it.
        UsageError: there is such a run already, or none to go on with.
    """
    paths = (paths or Paths.default()).ensure()
    recipe = recipe.absolute()
    for source in recipe.plugins:
        own_module(source)
    if not resume:
        recipe.check(paths)
    place = _place(recipe, paths, run_id, resume)
    tracking = load(paths.config_file).tracking
    hparams = {"recipe": recipe.kind, **recipe.model_dump(mode="json"), "versions": machine()}
    live = Backends()
    recipe.provide(live, place)
    for name, thing in (backends or {}).items():
        live[name] = thing
    with recorded(recipe, place, tracking, resumed=resume, hparams=hparams, tell=tell) as record:
        result = await run(
            recipe.workflow(),
            recipe,
            backends=live,
            folder=place.folder,
            resume=resume,
            should_stop=should_stop,
            run_id=place.folder.name,
        )
        if result.ended == "stopped":
            record.outcome = "interrupted"
        elif place.weights.exists():
            record.adapter(_artifact(place, result))
    return result


async def resumed(
    run_id: str, *, paths: Paths | None = None, **options: Any
) -> tuple[Recipe, Result]:
    """Go on with a run as it was configured; options as of `launch`.

    Raises:
        InputError: there is no such run.
    """
    paths = paths or Paths.default()
    recipe = recipe_of(paths.runs / run_id)
    return recipe, await launch(recipe, paths=paths, run_id=run_id, resume=True, **options)


def recipe_of(folder: Path) -> Recipe:
    """The recipe of a run.

    Raises:
        InputError: there is no such run, or it cannot be read.
    """
    found = read(folder)
    return made(str(found.get("recipe")), found.get("config") or {}, source=str(folder))


def _place(recipe: Recipe, paths: Paths, run_id: str | None, resume: bool) -> RunPlace:
    """The folder of a run, with its manifest begun."""
    name = run_id or _by_the_time(recipe.kind, paths.runs)
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a run.", hint="Use letters, digits, '.', '_' and '-'."
        )
    folder = paths.runs / name
    if run_id and folder.exists() and not resume:
        raise UsageError(
            f"There is a run {name} already.",
            hint=f"Name another one, or go on with it: `shammah train resume {name}`.",
        )
    place = RunPlace(paths, private_folder(folder), Manifest(folder))
    if not resume:
        place.manifest.update(
            run_id=name,
            recipe=recipe.kind,
            started_at=datetime.now(UTC).isoformat(),
            config=recipe.model_dump(mode="json"),
            versions=machine(),
            seeds={"seed": recipe.seed},
        )
    return place


def _by_the_time(kind: str, runs: Path) -> str:
    """A name that no run has, also of those that begin in the same second; its folder is made."""
    stamp = f"{kind}-{datetime.now():%Y%m%d-%H%M%S}"
    private_folder(runs)
    name, number = stamp, 1
    while True:
        try:
            (runs / name).mkdir(mode=0o700)
            return name
        except FileExistsError:
            number += 1
            name = f"{stamp}-{number}"
        except OSError as error:
            raise storage_error(error, runs / name) from error


def _artifact(place: RunPlace, result: Result) -> Artifact:
    trained = result.context.state.get("trained") or {}
    lineage: dict[str, str | int | float] = {
        "base_model": trained["base_model"],
        "base_fingerprint": trained["base_fingerprint"],
        "parent": trained.get("parent") or "none",
        "sha256": sha256_of(place.weights),
        "parameters": trained["parameters"],
        "adapter": result.context.state.get("adapter") or "",
        **{key: result.metrics[key] for key in ("final_loss",) if key in result.metrics},
    }
    return Artifact(place.weights, f"adapter-{place.folder.name}", lineage=lineage)
