"""What answers are tried out in: conversations that go on, or end with a reward.

Rewards come from callables, so that whatever scores can be one. Knows no model and no tokens.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from shammah.datasets.formatters.base import ChatExample
from shammah.errors import TrainingError
from shammah.messages import Conversation

Reward: TypeAlias = "float | Mapping[str, float]"
"""A number, or named parts whose sum is the reward."""
RewardFunction: TypeAlias = "Callable[[str, ChatExample], Reward | Awaitable[Reward]]"
"""`fn(output, example)`: what an answer is worth; it may be async."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What follows an answer: a reward, and the messages that the next answer is to, unless the
    episode is over."""

    reward: Reward = 0.0
    done: bool = True
    messages: Conversation = ()


class Environment(Protocol):
    """One episode. The rewards of its turns add up."""

    def reset(self) -> Conversation | Awaitable[Conversation]:
        """Begin: the conversation that the first answer is to."""
        ...

    def step(self, answer: str) -> Outcome | Awaitable[Outcome]:
        """Take the text of an answer."""
        ...


Begin: TypeAlias = Callable[[ChatExample], Environment]
"""A new episode of an example, called once for each sample."""


def rewarded(reward: RewardFunction) -> Begin:
    """Episodes of one turn: the example's prompt, an answer, its reward."""
    return _Rewarded(reward)


@dataclass(frozen=True, slots=True)
class _Rewarded:
    reward: RewardFunction

    def __call__(self, example: ChatExample) -> Environment:
        return _OneTurn(example, self.reward)


@dataclass(slots=True)
class _OneTurn:
    example: ChatExample
    reward: RewardFunction

    def reset(self) -> Conversation:
        return self.example.prompt

    async def step(self, answer: str) -> Outcome:
        found = self.reward(answer, self.example)
        return Outcome(await found if inspect.isawaitable(found) else found)


@dataclass(slots=True)
class Tally:
    """Rewards as they add up, by part."""

    total: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)

    def add(self, reward: Reward) -> None:
        """
        Raises:
            TrainingError: it is not finite.
        """
        parts = reward if isinstance(reward, Mapping) else {}
        value = math.fsum(parts.values()) if isinstance(reward, Mapping) else float(reward)
        if not math.isfinite(value):
            raise TrainingError(f"A reward is {reward}; rewards are finite numbers.")
        self.total += value
        for name, part in parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + float(part)
