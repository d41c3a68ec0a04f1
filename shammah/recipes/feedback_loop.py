"""Feedback in rounds, as a chat would have it: what is learned of it, and what is held.

Runs the assistant itself on a data folder of its own, so that the user's chat is not touched: each
round's feedback goes into the buffer, a job learns it behind the gate, and all lessons so far are
asked again. Only the last adapter goes into the user's library.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from shammah.errors import InputError, TrainingError
from shammah.paths import Paths
from shammah.recipes.backends import Backends, Factory
from shammah.recipes.context import Context
from shammah.recipes.place import RunPlace
from shammah.recipes.recipe import Recipe, paired
from shammah.recipes.stage import stage

if TYPE_CHECKING:
    from shammah.adapters.library import AdapterLibrary
    from shammah.assistant import Assistant
    from shammah.feedback.store import FeedbackStore
    from shammah.learning.queue import Job
    from shammah.recipes.workflow import Workflow
    from shammah.settings import Settings

HOME = "home"


class FeedbackLoop(Recipe):
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
        from shammah.recipes.workflow import loop, workflow

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
        values["model"] |= self.model_settings().model_dump()
        return Settings.from_dict(values, source="the recipe")


@stage(gives=("rounds", "lines"))
def gather(context: Context) -> None:
    """Read the feedback, and divide it into rounds."""
    recipe: FeedbackLoop = context.config
    try:
        text = Path(recipe.data).expanduser().read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{recipe.data} cannot be read: {error}.") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if recipe.rounds:
        lines = lines[: recipe.rounds * recipe.per_round]
    if not lines:
        raise InputError(f"{recipe.data} holds no feedback.")
    context.state["lines"] = lines
    context.state["rounds"] = list(range(-(-len(lines) // recipe.per_round)))


@stage(needs=("lines",), gives=("adapter_of_round",))
async def learn(context: Context) -> None:
    """Put a round's feedback into the buffer, and train."""
    recipe: FeedbackLoop = context.config
    helper: Assistant = context.backends["assistant"]
    workspace = await helper.workspace()
    begun = int(context.item) * recipe.per_round
    lines = context.state["lines"][begun : begun + recipe.per_round]
    if len(workspace.feedback.list(None)) == begun:  # else a process that was killed has done it
        _take(workspace.feedback, lines, begun)
    trainer = await helper.trainer()
    current, held = workspace.queue.current(), workspace.queue.resumable()
    job: Job
    if current is None and held is not None:
        job = await trainer.resume(held.id)
    elif current is not None or workspace.feedback.state().count:
        job = current or await trainer.request("recipe")
    else:
        job = workspace.queue.list()[0]  # done, before the process was killed
    job = await trainer.wait(job.id)
    if job.status != "done":
        raise TrainingError(f"Round {int(context.item) + 1} was not learned: {job.error}")
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


def _take(feedback: FeedbackStore, lines: Sequence[str], begun: int) -> None:
    from shammah.feedback.transfer import import_jsonl

    report = import_jsonl(feedback, io.StringIO("\n".join(lines)), strict=True)
    if report.rejected:
        number, reason = report.rejected[0]
        raise InputError(f"Line {begun + number} of the feedback is bad: {reason}")


def _all_lessons(library: AdapterLibrary, name: str) -> list[Any]:
    """What an adapter and those before it were taught, each question as it was taught last."""
    lessons: dict[str, Any] = {}
    seen: str | None = name
    while seen is not None:
        about = library.get(seen).require_metadata()
        lessons = {**{lesson.query: lesson for lesson in about.lessons}, **lessons}
        seen = about.parent
    return list(lessons.values())
