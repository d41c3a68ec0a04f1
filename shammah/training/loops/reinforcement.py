"""Reinforcement: answers that did better than others of their group become likelier.

A step draws a group of answers for each of some prompts, has them rewarded, and takes as a token's
advantage how much better its answer did than the mean of its group (group-relative policy
optimisation, arXiv 2402.03300, with token weights as in DAPO, arXiv 2503.14476). Written against
`TrainingClient` and callables; knows no particular reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from shammah.datasets.formatters.base import ChatExample
from shammah.errors import UsageError
from shammah.ports.sampling_client import Scoring
from shammah.ports.training_client import TrainingClient
from shammah.renderers.base import Renderer
from shammah.training.loops.draws import EVALUATION, FromDraws, marked, policy_loss
from shammah.training.loops.environments import Begin
from shammah.training.loops.rollouts import Batch, Drawing, Episode, drawn, k3, score

__all__ = ["Reinforcement", "ReinforcementSettings", "advantages", "policy_loss"]


class ReinforcementSettings(BaseModel):
    """Settings of `Reinforcement`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: int = Field(4, ge=1)
    """Examples that a draw takes."""
    group: int = Field(8, ge=2)
    """Answers to each of them."""
    max_tokens: int = Field(256, ge=1)
    temperature: float = Field(1.0, gt=0)
    """Of the drawing. Ratios are of the model's own probabilities, at temperature 1: elsewhere the
    samples are those of another policy, which is not made up for."""
    max_turns: int = Field(8, ge=1)
    """Answers of an episode at most."""
    loss: str = "importance_sampling"
    """Or `ppo`, `ppo:clip_high=0.28`: a policy loss by name."""
    inner_epochs: int = Field(1, ge=1)
    """Optimiser steps with each draw. More than one wants `ppo`, which bounds them."""
    divide_by_std: bool = False
    """Divide advantages by the standard deviation of their group's rewards."""
    weigh: Literal["token", "sample"] = "token"
    """Whether all drawn tokens weigh the same, or all episodes."""
    equal_groups: Literal["drop", "keep"] = "drop"
    """What becomes of groups whose rewards are all the same, from which nothing can be learned.
    Kept ones count in the mean. A step in which all are such keeps them: the term that holds to the
    base is learned, and where there is none the step is skipped, as momentum would move the adapter
    on."""
    kl: Literal["none", "reward", "loss"] = "none"
    """How the base is held to: not, by `kl_weight` times log(p / base) of the whole episode taken
    off its reward, or by a k3 term in the loss."""
    kl_weight: float = Field(0.05, ge=0)
    measure_after: bool = True
    """Whether each draw and each evaluation begins with how far the steps since the last draw went
    (`kl_after_k3`), which costs one pass without gradients over its samples."""
    seed: int = Field(0, ge=0)


class Reinforcement(FromDraws[ReinforcementSettings]):
    """A `Method` of `engine.run_loop`.

    Its evaluations have `reward` with its parts, `unended` and `unfinished`, of one greedy episode
    of each that is held out. Its measures: `reward`, `reward_std` and `reward/<part>`; `entropy` in
    nats a token, estimated from the drawn tokens; `kl_before_k3`, from the policy that drew to the
    one that the step starts with; `kl_after_k3`, of the draw before this one, after the last step
    with it, and in an evaluation of the last one; `kl_base_k3`, from the drawing policy to the
    base; `tokens` drawn; `dropped`, the share of groups that were left out, and `equal` of those
    whose rewards are the same; `unended`, of the samples that `max_tokens` or the context cut;
    `unfinished`, of the episodes that their environment did not end; `turns` of an episode; and
    what the loss reports. k3 is an estimate from samples, see `rollouts.k3`.

    Args:
        examples: what is begun with; each epoch goes through all of them.
        begin: episodes: `environments.rewarded(reward)`, or what makes an environment.
        held_out: for evaluations.
        reference: the base model, for `kl`; of a local client its `base_sampler`.
    """

    name = "reinforcement"

    def __init__(
        self,
        examples: Sequence[ChatExample],
        begin: Begin,
        renderer: Renderer,
        settings: ReinforcementSettings,
        *,
        held_out: Sequence[ChatExample] = (),
        reference: Scoring | None = None,
    ) -> None:
        """
        Raises:
            TrainingError: there is no example, or the loss is none for samples.
            UsageError: the base is to be held to, and is not given.
        """
        if settings.kl != "none" and reference is None:
            raise UsageError(
                "kl needs the base model's log-probabilities.", hint="Give reference, or kl='none'."
            )
        loss = policy_loss(settings.loss, settings.kl_weight if settings.kl == "loss" else 0.0)
        mark = marked(renderer, examples, settings, begin, reference)
        super().__init__(examples, renderer, settings, loss, mark, held_out)
        self._begin = begin
        self._reference = reference

    async def _evaluated(self, client: TrainingClient) -> Mapping[str, float]:
        drawing = await self._drawing(client, 0.0)
        found = [self._begin(example) for example in self._held_out]
        episodes = await drawing.play(client.sampler, found, (self.settings.seed, EVALUATION))
        return summed(episodes)

    async def _drawing(self, client: TrainingClient, temperature: float) -> Drawing:
        context = (await client.info()).max_tokens
        chosen = self.settings
        return Drawing(self._renderer, chosen.max_tokens, temperature, chosen.max_turns, context)

    async def _draw(
        self, client: TrainingClient, examples: Sequence[ChatExample], number: int
    ) -> Batch:
        settings = self.settings
        begun = [self._begin(example) for example in examples for _ in range(settings.group)]
        drawing = await self._drawing(client, settings.temperature)
        episodes = await drawing.play(client.sampler, begun, (settings.seed, number))
        figures = summed(episodes)
        rewards = np.array([episode.tally.total for episode in episodes]).reshape(len(examples), -1)
        figures["reward_std"] = float(rewards.std(axis=1).mean())
        await self._add_reference(episodes, figures)
        equal = np.array([_same(group) for group in rewards])
        figures["equal"] = float(equal.mean())
        if settings.kl == "reward":
            rewards = rewards - settings.kl_weight * np.reshape(
                [_distance(episode) for episode in episodes], rewards.shape
            )
        drops = settings.equal_groups == "drop" and not equal.all()
        kept = ~equal if drops else np.ones_like(equal)
        figures["dropped"] = float(1.0 - kept.mean())
        everything = [row for episode in episodes for row in episode.rows]
        logprobs = drawn(everything, "logprobs")
        figures["entropy"] = float(-logprobs.mean())
        figures["tokens"] = float(len(logprobs))
        rows = []
        for group in np.flatnonzero(kept).tolist():
            members = episodes[group * settings.group : (group + 1) * settings.group]
            # Of rewards that are the same nothing is made but by their price.
            still = bool(equal[group]) and settings.kl != "reward"
            gains = (
                np.zeros(len(members))
                if still
                else advantages(rewards[group], divide_by_std=settings.divide_by_std)
            )
            for episode, gain in zip(members, gains.tolist(), strict=True):
                for row in episode.rows:
                    row.advantages = [gain] * len(row.at)
                    row.weight = 1.0 if settings.weigh == "token" else 1.0 / episode.tokens
                    rows.append(row)
        return Batch(number, rows, figures)

    async def _add_reference(self, episodes: Sequence[Episode], figures: dict[str, float]) -> None:
        if self._reference is None:
            return
        rows = [row for episode in episodes for row in episode.rows]
        for row, values in zip(rows, await score(self._reference, rows), strict=True):
            row.reference = values
        figures["kl_base_k3"] = k3(drawn(rows, "logprobs"), drawn(rows, "reference"))


def advantages(
    rewards: Sequence[float] | np.ndarray[Any, np.dtype[np.float64]], *, divide_by_std: bool = False
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """How much better each of a group did than their mean, float64[n]; optionally in units of the
    group's standard deviation (of these rewards, not of what they are drawn from). Zero where all
    are the same."""
    given = np.asarray(rewards, dtype=np.float64)
    if _same(given):
        return np.zeros_like(given)
    gains: np.ndarray[Any, np.dtype[np.float64]] = given - given.mean()
    if divide_by_std:
        gains /= given.std()
    return gains


def _same(rewards: np.ndarray[Any, np.dtype[np.float64]]) -> bool:
    """But for what rounding can have made of sums of the same parts."""
    return bool(np.ptp(rewards) <= 1e-9 * max(1.0, float(np.abs(rewards).max())))


def summed(episodes: Sequence[Episode]) -> dict[str, float]:
    """Figures of episodes, as means."""
    count = len(episodes)
    parts = sorted({name for episode in episodes for name in episode.tally.parts})
    return {
        "reward": sum(episode.tally.total for episode in episodes) / count,
        **{
            f"reward/{name}": sum(each.tally.parts.get(name, 0.0) for each in episodes) / count
            for name in parts
        },
        "unended": sum(each.unended for each in episodes) / sum(each.samples for each in episodes),
        "unfinished": sum(not episode.done for episode in episodes) / count,
        "turns": sum(episode.samples for episode in episodes) / count,
    }


def _distance(episode: Episode) -> float:
    """log(p / base) of all that was drawn."""
    return float(sum(np.sum(np.subtract(row.logprobs, row.reference)) for row in episode.rows))
