"""What the loop of `engine` asks of a method, and what it tells of a run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from shammah.ports.training_client import TrainingClient


@dataclass(frozen=True, slots=True)
class StepFigures:
    """What a method found in one step: `loss` is the mean over its window, in units of its loss,
    `measures` whatever else it wants to be logged. Where `skip` is true it gathered no gradients,
    as there is nothing to be learned: the loop leaves the adapter as it is and counts the step."""

    loss: float
    tokens: int
    measures: Mapping[str, float] = field(default_factory=dict)
    skip: bool = False


class Method(Protocol):
    """What is learned. Its steps depend on nothing but its material, its seed and its state."""

    @property
    def name(self) -> str:
        """`supervised`, `preference`, ...; runs are called so."""
        ...

    @property
    def steps_per_epoch(self) -> int: ...

    def mark(self) -> str:
        """Tells its material and settings apart from others: a checkpoint of others is refused."""
        ...

    async def step(self, client: TrainingClient, number: int) -> StepFigures:
        """Gather the gradients of optimiser step `number`, counted from 0; the loop steps, unless
        the figures say that there are none.

        Raises:
            DivergenceError: the loss is not finite.
        """
        ...

    async def evaluate(self, client: TrainingClient) -> Mapping[str, float]:
        """Figures of the adapter as it is; none where there is nothing to evaluate on."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where its data and random numbers stand, as plain JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        ...


Callback = Callable[[dict[str, Any]], Awaitable[None] | None]


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Called with plain dictionaries, one after the other, and awaited where they are async.

    - `on_step_end`: step, steps, epoch, loss, learning_rate, grad_norm, tokens (since the run
      began), skipped (so many steps since then), tokens_per_second, seconds_left, and the measures
      of the method
    - `on_epoch_end`: epoch, step
    - `on_eval`: step, and the figures
    - `on_checkpoint`, once it is written: step, folder, seconds (of writing)
    """

    on_step_end: Sequence[Callback] = ()
    on_epoch_end: Sequence[Callback] = ()
    on_checkpoint: Sequence[Callback] = ()
    on_eval: Sequence[Callback] = ()


@dataclass(frozen=True, slots=True)
class LoopResult:
    """How a run ended: `figures` are those of the last evaluation, `before` those of the first;
    `losses` one for each step since the run began or went on, `recent` the last ones, also from
    before it went on. `ended` is why: `done`, `stopped` or
    `nothing gets better`. Where the best adapter was restored, `figures` are its own, and
    `best_step` is the step that it is from. `skipped` of the `steps` had no gradients and left the
    adapter as it was."""

    steps: int
    epochs: int
    seconds: float
    tokens: int
    losses: tuple[float, ...]
    recent: tuple[float, ...]
    before: Mapping[str, float]
    figures: Mapping[str, float]
    best_step: int | None
    ended: str
    skipped: int = 0

    @property
    def stopped(self) -> bool:
        """Whether it was asked to stop, and can be gone on with."""
        return self.ended == "stopped"
