"""Feedback in rounds, as a chat would have it: what is learned of it, and what is held.

Runs the assistant itself on a data folder of its own, so that the user's chat is not touched: each
round's feedback goes into the buffer, a job learns it behind the gate, and all lessons so far are
asked again. Only the last adapter goes into the user's library.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from shammah.errors import InputError, TrainingError, UsageError
from shammah.paths import Paths
from shammah.recipes.place import RunPlace
from shammah.recipes.recipe import paired
from shammah.recipes.runnable import RunnableRecipe
from shammah.recipes.workflows.backends import Backends, Factory
from shammah.recipes.workflows.context import Context
from shammah.recipes.workflows.stage import stage

if TYPE_CHECKING:
    from shammah.adapters.library import AdapterLibrary
    from shammah.assistant import Assistant
    from shammah.feedback.records import Draft
    from shammah.learning.queue import Job
    from shammah.learning.supervisor import Trainer
    from shammah.recipes.workflows.workflow import Workflow
    from shammah.settings import FeedbackSettings, Settings

HOME = "home"
RESUMES = 3
"""How often an interrupted job goes on in one process; oftener is no accident."""
LOOK_SECONDS = 0.2
"""How often it is asked whether to stop while a job runs."""
SHOWN = 5
"""Bad lines that are named."""


class FeedbackLoop(RunnableRecipe):
    """Learn feedback in rounds, as it would come in a chat, and see after each what is held. The
    data are lines as `shammah feedback export` writes them."""

    kind: ClassVar[str] = "feedback"
    purpose: ClassVar[str] = "learn feedback in rounds, and see what is held"

    per_round: int = Field(default=10, ge=1)
    """Lines of feedback that each round learns."""
    rounds: int = Field(default=0, ge=0)
    """Rounds at most; 0 goes through all of the data."""
    asked: int = Field(default=100, ge=1)
    """Lessons that are asked again after each round, the newest ones."""
    settings: dict[str, str] = Field(default_factory=dict)
    """Settings instead of your own, as NAME=VALUE with commas between:
    training.mode=delta,lora.rank=8."""

    @field_validator("settings", mode="before")
    @classmethod
    def _paired(cls, value: object) -> object:
        return paired(value)

    def workflow(self) -> Workflow:
        """See `Recipe.workflow`."""
        from shammah.recipes.workflows.workflow import loop, workflow

        rounds = loop(learn, examine, over="rounds", name="rounds")
        return workflow(self.kind, gather, rounds, hand_over)

    def provide(self, backends: Backends, place: RunPlace) -> None:
        """See `Recipe.provide`: `place`, `assistant`, and the user's `library`."""
        from shammah.recipes.provision import library

        backends["place"] = place
        backends["assistant"] = Factory(lambda: self._assistant(place))
        backends["library"] = Factory(lambda: library(place.paths))

    def _assistant(self, place: RunPlace) -> Assistant:
        from shammah.assistant import Assistant

        home = place.folder / HOME
        return Assistant(self.chosen(place), Paths(home, home).ensure(), train=False)

    def chosen(self, place: RunPlace) -> Settings:
        """The user's settings with those of the recipe.

        Raises:
            ConfigError: one of them is none.
        """
        from shammah.settings import Settings
        from shammah.settings_file import load, parse_value

        values = load(place.paths.config_file).model_dump()
        for key, text in {**self.settings, "training.seed": str(self.seed)}.items():
            section, _, name = key.partition(".")
            values[section][name] = parse_value(key, text)
        values["feedback"]["auto_train"] = False  # the rounds say when
        values["model"] |= self.model_settings().model_dump()
        return Settings.from_dict(values, source="the recipe")


@stage(gives=("rounds", "feedback"))
def gather(context: Context) -> None:
    """Read the feedback, and divide it into rounds."""
    recipe: FeedbackLoop = context.config
    drafts = _read(recipe, recipe.chosen(context.backends["place"]).feedback)
    context.state["feedback"] = {"digest": _digest(drafts), "lines": len(drafts)}
    context.state["rounds"] = list(range(-(-len(drafts) // recipe.per_round)))


@stage(needs=("feedback",), gives=("adapter_of_round",))
async def learn(context: Context) -> None:
    """Put a round's feedback into the buffer, and train."""
    recipe: FeedbackLoop = context.config
    helper: Assistant = context.backends["assistant"]
    workspace = await helper.workspace()
    number = int(context.item)
    done = workspace.queue.list(statuses=("done",))[::-1]
    if len(done) > number:  # an earlier process has done it, and could not say so any more
        context.state["adapter_of_round"] = done[number].adapter
        return
    drafts = _read(recipe, workspace.feedback.settings)
    if _digest(drafts) != context.state["feedback"]["digest"]:
        raise TrainingError(
            f"{recipe.data} is not what it was when this run began.",
            hint="Start a new run, or put the old data back.",
        )
    begun = number * recipe.per_round
    if len(workspace.feedback.list(None)) <= begun:
        workspace.feedback.add_all(drafts[begun : begun + recipe.per_round])
    trainer = await helper.trainer()
    current, held = workspace.queue.current(), workspace.queue.resumable()
    job: Job
    if current is None and held is not None:
        job = await trainer.resume(held.id)
    else:
        job = current or await trainer.request("recipe")
    job = await _ended(trainer, job, context)
    if job.status != "done":
        raise TrainingError(f"Round {number + 1} was not learned: {job.error}")
    context.state["adapter_of_round"] = job.adapter


@stage(needs=("adapter_of_round",))
async def examine(context: Context) -> None:
    """Ask all lessons so far again."""
    recipe: FeedbackLoop = context.config
    helper: Assistant = context.backends["assistant"]
    check = await helper.check_lessons(recipe.asked)
    number = int(context.item) + 1
    context.metrics[f"round {number}/as_taught"] = check.as_taught / max(1, check.asked)
    adapter = (await helper.workspace()).library.get(context.state["adapter_of_round"])
    about = adapter.require_metadata()
    context.metrics[f"round {number}/refused"] = float(bool(about.failures))
    if about.metrics.get("other_answers"):
        unchanged = about.metrics["other_answers_unchanged"] / about.metrics["other_answers"]
        context.metrics[f"round {number}/unchanged"] = unchanged


async def take_back(context: Context) -> None:
    """Take the adapter out of the user's library again."""
    if context.state.get("adapter"):
        context.backends["library"].delete(context.state["adapter"])


@stage(needs=("adapter_of_round",), gives=("adapter",), rollback=take_back)
async def hand_over(context: Context) -> None:
    """Put the last adapter that passed its checks into the user's library."""
    from shammah.recipes.publishing import published_once

    recipe: FeedbackLoop = context.config
    helper: Assistant = context.backends["assistant"]
    library: AdapterLibrary = context.backends["library"]
    own = (await helper.workspace()).library
    fingerprint = own.get(context.state["adapter_of_round"]).require_metadata().base_fingerprint
    name = own.active(fingerprint)
    if name is None:
        raise TrainingError(
            "No adapter passed its checks.",
            hint="`shammah runs show` tells why; settings=adapters.activate=always takes it.",
        )
    adapter = own.get(name)
    about = adapter.require_metadata()
    # The rounds before it stay in the run's folder; the library would not find them.
    place: RunPlace = context.backends["place"]
    about = about.model_copy(
        update={
            "parent": None,
            "lessons": _all_lessons(own, name),
            "run": place.folder.name,
        }
    )
    published = published_once(library, adapter.path, about, recipe.name or None)
    context.state["adapter"] = published.name
    context.artifacts["adapter"] = published.path
    if recipe.activate:
        library.activate(fingerprint, published.name)


async def _ended(trainer: Trainer, job: Job, context: Context) -> Job:
    """The job once it has ended; one that was interrupted, as by an earlier process that was
    killed, goes on. Where somebody asks to stop, it is checkpointed and the run interrupted."""
    for _ in range(RESUMES):
        waiting = asyncio.create_task(trainer.wait(job.id))
        try:
            while not waiting.done() and not context.stopping():
                await asyncio.wait({waiting}, timeout=LOOK_SECONDS)
            if not waiting.done():
                await trainer.stop(checkpoint=True)
                context.interrupt()
        finally:
            waiting.cancel()
        job = waiting.result()
        if job.status != "interrupted":
            break
        job = await trainer.resume(job.id)
    return job


def _read(recipe: FeedbackLoop, settings: FeedbackSettings) -> list[Draft]:
    """The feedback of all rounds.

    Raises:
        InputError: it cannot be read, holds nothing, or a line of it is bad.
        UsageError: a round has more than the buffer holds.
    """
    from shammah.feedback.transfer import read_jsonl

    if recipe.per_round > settings.capacity:
        raise UsageError(
            f"A round of {recipe.per_round} does not fit into the buffer of {settings.capacity}.",
            hint="Lower per_round, or raise it: --settings feedback.capacity=...",
        )
    read, rejected = read_jsonl(Path(recipe.data).expanduser(), settings)
    if rejected:
        shown = [f"Line {number} of {recipe.data} is bad: {why}" for number, why in rejected]
        more = [f"And {len(shown) - SHOWN} more."] if len(shown) > SHOWN else []
        raise InputError("\n".join(shown[:SHOWN] + more))
    if not read:
        raise InputError(f"{recipe.data} holds no feedback.")
    drafts = [draft for _, draft in read]
    return drafts[: recipe.rounds * recipe.per_round] if recipe.rounds else drafts


def _digest(drafts: Sequence[Draft]) -> str:
    return hashlib.sha256("\n".join(map(repr, drafts)).encode(errors="replace")).hexdigest()


def _all_lessons(library: AdapterLibrary, name: str) -> list[Any]:
    """What an adapter and those before it were taught, each question as it was taught last."""
    lessons: dict[str, Any] = {}
    known = {each.name for each in library.list()}  # old ones may have been removed for room
    seen: str | None = name
    while seen is not None and seen in known:
        about = library.get(seen).require_metadata()
        lessons = {**{lesson.query: lesson for lesson in about.lessons}, **lessons}
        seen = about.parent
    return list(lessons.values())
