"""`shammah train sft` and its kin: a recipe from options, a file or a run that was interrupted."""

from __future__ import annotations

import asyncio
import signal
import sys
from argparse import Namespace
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shammah.cli.context import log_changes, paths_of, settings_of, start_log
from shammah.cli.gradient_flow import HOOK, say_flow
from shammah.cli.output import coloured, emit, say, tell
from shammah.cli.recipe_options import given
from shammah.cli.training_progress import TrainingProgress
from shammah.errors import UsageError
from shammah.recipes.company import LedError
from shammah.recipes.configuration import from_file, made
from shammah.recipes.launching import launch, resumed
from shammah.repl.wording import recipes as wording
from shammah.training.processes import leading

if TYPE_CHECKING:
    from shammah.recipes.recipe import Recipe
    from shammah.recipes.workflows.running import Result

INTERRUPTED = 130


def train(options: Namespace) -> int:
    """A recipe from the command line."""
    kind = options.recipe
    return _train(options, made(kind, given(options, kind), source="the command line"))


def train_file(options: Namespace) -> int:
    """A recipe from a TOML file, with what `--set` says instead."""
    path = Path(options.file).expanduser()
    if not path.is_file():
        raise UsageError(f"There is no file {path}.")
    changes = {}
    for pair in options.set or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set takes NAME=VALUE, not {pair!r}.")
        changes[name.strip().replace("-", "_")] = value
    return _train(options, from_file(path, changes))


def go_on(options: Namespace) -> int:
    """A run that was interrupted."""
    return asyncio.run(_run(options, lambda about: resumed(options.name, **about)))


def _train(options: Namespace, recipe: Recipe) -> int:
    if getattr(options, "report", False):
        recipe = _looked_at(recipe)
    if options.dry_run:
        return asyncio.run(_preview(options, recipe))

    async def begin(about: dict[str, Any]) -> tuple[Recipe, Result]:
        return recipe, await launch(recipe, run_id=options.run_id, **about)

    return asyncio.run(_run(options, begin))


def _looked_at(recipe: Recipe) -> Recipe:
    """The recipe with the hook that `--report` draws from."""
    from shammah.recipes.training_recipe import TrainingRecipe

    if not isinstance(recipe, TrainingRecipe):
        raise UsageError(f"The recipe {recipe.kind} has no --report.")
    return recipe.model_copy(update={"hooks": tuple(dict.fromkeys([*recipe.hooks, HOOK]))})


async def _preview(options: Namespace, recipe: Recipe) -> int:
    from shammah.recipes.preview import preview
    from shammah.recipes.training_recipe import TrainingRecipe

    if not isinstance(recipe, TrainingRecipe):
        raise UsageError(f"The recipe {recipe.kind} has no --dry-run: its rounds are its plan.")
    planned = await preview(recipe, paths_of(options))
    if options.json:
        emit(planned)
    else:
        say(wording.preview(planned, coloured=coloured()))
    return 0


async def _run(
    options: Namespace,
    begin: Callable[[dict[str, Any]], Awaitable[tuple[Recipe, Result]]],
) -> int:
    paths = paths_of(options)
    start_log(paths, settings_of(paths, log_changes(options)))
    leads = leading()
    quiet = not leads or (options.json and not sys.stderr.isatty())
    with TrainingProgress(quiet=quiet) as progress, _stop_signals(progress) as stopped:
        about = {"paths": paths, "should_stop": stopped, "tell": progress.note}
        try:
            recipe, result = await begin(about)
        except LedError as error:
            return error.exit_code
    run_id = result.context.metadata.run_id
    if not leads:
        return INTERRUPTED if result.ended == "stopped" else 0
    if result.ended == "stopped":
        tell(f"Interrupted. `shammah train resume {run_id}` goes on.")
        return INTERRUPTED
    if options.json:
        emit(wording.record(recipe, result))
    else:
        say(wording.summary(recipe, result, coloured=coloured()))
        if getattr(options, "report", False):
            say("")
            say_flow(paths, run_id)
    return 0


@contextmanager
def _stop_signals(progress: TrainingProgress) -> Iterator[Callable[[], bool]]:
    """Whether somebody has asked to stop: the first time the step is ended, the second time not.

    Not the loop's own handlers: a step of training does not give way to them.
    """
    stopping = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        if stopping:
            raise KeyboardInterrupt
        stopping = True
        progress.note("Stopping after this step; once more stops at once.")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
