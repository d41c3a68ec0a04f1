"""What the methods share that learn from the model's own samples: draws, and the steps with each.

A draw is made with the model as it is, and learned from for one optimiser step or some. The last
one is the method's state: what it was drawn with says how far the steps with it went. Knows policy
losses, and neither what is rewarded nor who teaches.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from pydantic import BaseModel

from shammah.datasets.formatters.base import ChatExample
from shammah.errors import TrainingError
from shammah.ports.training_client import TrainingClient
from shammah.renderers.base import Renderer
from shammah.training import losses
from shammah.training.loops.identity import named
from shammah.training.loops.method import StepFigures
from shammah.training.loops.rollouts import Batch, chosen, drawn, k3, moved, now
from shammah.training.losses.registry import name_of

EVALUATION = 1 << 40
"""Where the seeds of evaluations begin: no step is as late."""

PLAIN = ("importance_sampling", "ppo", "clipped_advantage")
"""Losses that are nothing but advantages: without these they have no gradient."""


class DrawSettings(Protocol):
    """What there is to know of settings here; `ReinforcementSettings` has the words."""

    @property
    def prompts(self) -> int: ...
    @property
    def inner_epochs(self) -> int: ...
    @property
    def measure_after(self) -> bool: ...
    @property
    def seed(self) -> int: ...


S = TypeVar("S", bound=DrawSettings)


class FromDraws(ABC, Generic[S]):
    """The part of a `Method` that draws, and steps with what was drawn.

    Args:
        examples: what is begun with; each epoch goes through all of them.
        loss: of samples, by name.
        mark: what tells it apart from others, see `marked`.
        held_out: for evaluations.

    Raises:
        TrainingError: there is no example.
    """

    def __init__(
        self,
        examples: Sequence[ChatExample],
        renderer: Renderer,
        settings: S,
        loss: str,
        mark: str,
        held_out: Sequence[ChatExample],
    ) -> None:
        if not examples:
            raise TrainingError("There is no prompt to answer.")
        self.loss = loss
        self.settings = settings
        self.steps_per_epoch = -(-len(examples) // settings.prompts) * settings.inner_epochs
        self._examples = examples
        self._held_out = held_out
        self._renderer = renderer
        self._mark = mark
        self._batch: Batch | None = None

    @abstractmethod
    async def _draw(
        self, client: TrainingClient, examples: Sequence[ChatExample], number: int
    ) -> Batch:
        """Draw number `number`."""

    @abstractmethod
    async def _evaluated(self, client: TrainingClient) -> Mapping[str, float]:
        """Figures of what is held out."""

    def mark(self) -> str:
        """See `Method.mark`."""
        return self._mark

    async def step(self, client: TrainingClient, number: int) -> StepFigures:
        """See `Method.step`."""
        draw, inner = divmod(number, self.settings.inner_epochs)
        measures: dict[str, float] = {}
        if self._batch is None or self._batch.number != draw:
            measures.update(await self._since(client))
            indices = chosen(len(self._examples), self.settings.prompts, self.settings.seed, draw)
            examples = [self._examples[index] for index in indices]
            self._batch = await self._draw(client, examples, draw)
        batch = self._batch
        skip = name_of(self.loss) in PLAIN and not any(any(row.advantages) for row in batch.rows)
        learn = client.forward if skip else client.forward_backward
        output = await learn([row.datum() for row in batch.rows], self.loss)
        measures["kl_before_k3"] = k3(
            drawn(batch.rows, "logprobs"), now(batch.rows, output.logprobs)
        )
        return StepFigures(
            output.mean_loss,
            output.tokens,
            {**batch.figures, **measures, **output.metrics, "inner_epoch": inner + 1},
            skip,
        )

    async def evaluate(self, client: TrainingClient) -> Mapping[str, float]:
        """See `Method.evaluate`: of what is held out; and, once there is a draw, `kl_after_k3` of
        the last one, which no later one tells of at the end."""
        since = await self._since(client)
        return {**await self._evaluated(client), **since} if self._held_out else since

    def state_dict(self) -> dict[str, Any]:
        """See `Method.state_dict`: the last draw, which inner epochs and `kl_after_k3` need."""
        return {"batch": self._batch.state_dict() if self._batch else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Method.load_state_dict`."""
        self._batch = Batch.of(state["batch"]) if state["batch"] else None

    async def _since(self, client: TrainingClient) -> dict[str, float]:
        if self._batch is None or not self.settings.measure_after:
            return {}
        return {"kl_after_k3": await moved(client, self._batch)}


def policy_loss(name: str, kl_weight: float = 0.0) -> str:
    """A loss of sampled tokens as `TrainingClient` takes it, with a k3 term to the base.

    Raises:
        TrainingError: there is no such loss, or it is none of sampled tokens.
    """
    loss = losses.get(name)
    if "advantages" not in loss.needs:
        raise TrainingError(f"{name} takes no advantages.", hint="Use importance_sampling or ppo.")
    if not kl_weight:
        return name
    called, _, parameters = name.partition(":")
    given = f"({parameters})" if parameters else ""
    return f"1 {called}{given}, {kl_weight!r} kl_divergence"


def marked(
    renderer: Renderer, examples: Sequence[ChatExample], settings: BaseModel, *who: object
) -> str:
    """A digest of what is asked and how, and of who rewards or teaches (`identity.named`)."""
    digest = hashlib.sha256(settings.model_dump_json().encode())
    digest.update(repr([named(each) for each in who]).encode())
    for example in examples:
        digest.update(repr(renderer.generation_prompt(example.prompt)).encode())
        digest.update(repr(example.answer.text if example.answer else None).encode())
    return digest.hexdigest()
