"""Recipes that run: what a configuration does with the stages, checks and launch below it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from shammah.recipes.recipe import Recipe
from shammah.recipes.training_recipe import TrainingRecipe

if TYPE_CHECKING:
    from shammah.paths import Paths
    from shammah.recipes.place import RunPlace
    from shammah.recipes.preview import Preview
    from shammah.recipes.workflows.backends import Backends
    from shammah.recipes.workflows.running import Result
    from shammah.recipes.workflows.workflow import Workflow


class RunnableRecipe(Recipe):
    """A recipe with a `run`."""

    def check(self, paths: Paths) -> None:
        """See `Recipe.check`: the names of the adapter, the model, the renderer and the loggers."""
        from shammah.recipes.checking import check_names

        check_names(self, paths)

    async def run(
        self,
        *,
        paths: Paths | None = None,
        run_id: str | None = None,
        resume: bool = False,
        should_stop: Callable[[], bool] | None = None,
        backends: Mapping[str, Any] | None = None,
    ) -> Result:
        """Train, and publish the adapter in the library. See `launching.launch`."""
        from shammah.recipes.launching import launch

        return await launch(
            self, paths=paths, run_id=run_id, resume=resume, should_stop=should_stop,
            backends=backends,
        )  # fmt: skip


class TrainableRecipe(RunnableRecipe, TrainingRecipe):
    """A recipe that reads data, trains on them by one loop, and publishes the adapter."""

    def workflow(self) -> Workflow:
        """See `Recipe.workflow`."""
        from shammah.recipes.fitting import fit
        from shammah.recipes.preparing import prepare
        from shammah.recipes.publishing import publish
        from shammah.recipes.workflows.workflow import workflow

        return workflow(self.kind, prepare, fit, publish)

    def provide(self, backends: Backends, place: RunPlace) -> None:
        """See `Recipe.provide`: `place`, `base`, `material`, `library`, `client`, and what a kind
        needs beside them."""
        from shammah.recipes.provision import provide

        provide(self, backends, place)

    def check(self, paths: Paths) -> None:
        """See `Recipe.check`: also the first row of the data, and names of losses and hooks."""
        from shammah.recipes.checking import check_training

        super().check(paths)
        check_training(self, paths)

    async def preview(self, *, paths: Paths | None = None) -> Preview:
        """What a run would train, found out without training or writing anything.

        Raises:
            ShammahError: whatever would keep the run from beginning.
        """
        from shammah.paths import Paths
        from shammah.recipes.preview import preview

        return await preview(self, paths or Paths.default())
