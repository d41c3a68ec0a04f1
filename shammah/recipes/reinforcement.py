"""Reinforcement: answers that a reward likes better than others of their group become likelier."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from shammah.errors import InputError, ShammahError, TrainingError, UsageError
from shammah.own_code import own_function, own_module
from shammah.recipes.place import WEIGHTS
from shammah.recipes.runnable import TrainableRecipe
from shammah.recipes.workflows.backends import Backends, Factory

if TYPE_CHECKING:
    from shammah.datasets import ChatExample
    from shammah.paths import Paths
    from shammah.ports.training_client import TrainingClient
    from shammah.recipes.material import Material
    from shammah.recipes.place import RunPlace
    from shammah.training.loops.environments import Reward, RewardFunction
    from shammah.training.loops.method import Method


class Reinforcement(TrainableRecipe):
    """Draw a group of answers to each prompt, reward them, and make the better ones likelier."""

    kind: ClassVar[str] = "rl"
    purpose: ClassVar[str] = "make answers likelier that a reward likes"
    rate_share: ClassVar[float] = 0.5
    figure: ClassVar[tuple[str, bool]] = ("reward", False)

    reward: str
    """What an answer is worth: a scorer by name (`numeric`, `exact_match`, `regex:^Yes`), your own
    `file.py:function` of the answer and the example, or a run of `shammah train reward`."""
    prompts: int = Field(default=4, ge=1)
    """Examples that a draw takes."""
    group: int = Field(default=8, ge=2)
    """Answers to each of them."""
    max_tokens: int = Field(default=256, ge=1)
    """Tokens of an answer at most."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the drawing."""
    loss: str = "importance_sampling"
    """importance_sampling, ppo, or ppo:clip_high=0.28."""
    inner_epochs: int = Field(default=1, ge=1)
    """Optimiser steps with each draw; more than one wants ppo."""
    divide_by_std: bool = False
    """Divide advantages by the standard deviation of their group's rewards."""
    kl: Literal["none", "reward", "loss"] = "none"
    """How the base is held to: not, by a price on the reward, or by a term of the loss."""
    kl_weight: float = Field(default=0.05, ge=0)
    """How much."""

    @classmethod
    def code_fields(cls) -> tuple[str, ...]:
        """See `Recipe.code_fields`."""
        return (*super().code_fields(), "reward")

    def provide(self, backends: Backends, place: RunPlace) -> None:
        """See `Recipe.provide`: also `reward`, a function of an answer and its example."""
        super().provide(backends, place)
        backends["reward"] = Factory(lambda: reward_of(self.reward, backends))

    def check(self, paths: Paths) -> None:
        """See `Recipe.check`: also the reward."""
        super().check(paths)
        _found(self.reward, paths)

    def method(self, material: Material, client: TrainingClient, backends: Backends) -> Method:
        """See `TrainingRecipe.method`."""
        from shammah.training.local_client import LocalTrainingClient
        from shammah.training.loops.environments import rewarded
        from shammah.training.loops.reinforcement import Reinforcement as Method_
        from shammah.training.loops.reinforcement import ReinforcementSettings

        shared = {name: getattr(self, name) for name in ReinforcementSettings.model_fields.keys()
                  & type(self).model_fields.keys()}  # fmt: skip
        base = client.base_sampler if isinstance(client, LocalTrainingClient) else None
        return Method_(
            material.examples,
            rewarded(backends["reward"]),
            material.renderer,
            ReinforcementSettings(**shared),
            held_out=material.judged,
            reference=base if self.kl != "none" else None,
        )


def reward_of(spec: str, backends: Backends) -> RewardFunction:
    """The reward that a text stands for.

    Raises:
        UsageError: it stands for nothing.
    """
    place: RunPlace = backends["place"]
    found = _found(spec, place.paths)
    return _model(spec, found) if isinstance(found, Path) else found


def _found(spec: str, paths: Paths) -> RewardFunction | Path:
    """The reward, or the folder of the run that made a model of it."""
    folder = paths.runs / spec
    if folder.is_dir():
        if not (folder / WEIGHTS).exists():
            raise InputError(
                f"The run {spec} has no reward model yet.", hint="Go on with it first."
            )
        return folder
    source, colon, _ = spec.rpartition(":")
    if colon and (source.endswith(".py") or "/" in source or "." in source):
        return _own(spec)
    return _scorer(spec)


def _own(spec: str) -> RewardFunction:
    found: RewardFunction = own_function(spec)

    async def reward(answer: str, example: ChatExample) -> Reward:
        try:
            given = found(answer, example)
            value: object = await given if inspect.isawaitable(given) else given
        except ShammahError:
            raise
        except Exception as error:
            raise TrainingError(
                f"The reward {spec} failed: {type(error).__name__}: {error}"
            ) from error
        try:
            if isinstance(value, Mapping):
                return {str(name): float(part) for name, part in value.items()}
            return float(value)  # type: ignore[arg-type]  # that is found out
        except (TypeError, ValueError):
            raise TrainingError(
                f"The reward {spec} gave {value!r}.",
                hint="It gives a number, or a mapping of names to numbers, which add up.",
            ) from None

    reward.__qualname__ = spec
    return reward


def _scorer(spec: str) -> RewardFunction:
    from shammah.evaluation.registry import scorer

    try:
        found = scorer(spec)
    except UsageError as error:
        raise UsageError(
            f"{spec!r} is no reward: {error.message}",
            hint="A reward is a scorer, file.py:function, or a run of `shammah train reward`.",
        ) from error

    async def reward(answer: str, example: ChatExample) -> float:
        target = example.answer.text if example.answer else ""
        return (await found.score(answer, target, example.metadata)).value

    reward.__qualname__ = spec
    return reward


def _model(name: str, folder: Path) -> RewardFunction:
    """A reward model on a base model of its own: that of the training is being changed."""
    from shammah.messages import assistant
    from shammah.models.load import load_base_model
    from shammah.recipes.launching import recipe_of
    from shammah.renderers.registry import renderer_for
    from shammah.training.reward_model import RewardModel

    judge = recipe_of(folder)
    for source in judge.plugins:
        own_module(source)
    base = load_base_model(judge.model_settings())
    renderer = renderer_for(base.tokenizer, base.stop_tokens, base.renderer)
    model = RewardModel.load(base, renderer, folder / WEIGHTS)

    def reward(answer: str, example: ChatExample) -> float:
        return float(model.score([(*example.prompt, assistant(answer))])[0])

    reward.__qualname__ = name
    return reward
