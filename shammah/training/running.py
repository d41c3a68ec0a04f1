"""What the loops of training do alike: the optimiser's step at the rate of its place, the pace,
what diverges, and checkpoints that a run goes on from.

Knows a client and numbers; not what is learned, and not when it ends.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from shammah.errors import DivergenceError, TrainingError
from shammah.ports.training_client import (
    AdamParams,
    StateCopies,
    StateCopy,
    TrainingClient,
    leads,
)
from shammah.tracking.telemetry import emit
from shammah.tracking.trace import timed
from shammah.training.checkpoint import (
    CheckpointWriter,
    Written,
    begin_checkpoint,
    finish_checkpoint,
    latest_checkpoint,
    read_loop,
)
from shammah.training.schedule import ScheduleSettings, learning_rate

REMEMBERED = 20
"""Losses that an explosion is measured by."""

Good = tuple[StateCopy, Mapping[str, Any]]
"""A state whose loss was seen and good, and what its checkpoint would hold."""


class OptimizerSettings(ScheduleSettings, Protocol):
    """What the optimiser needs to know; `TrainingSettings` and `LoopSettings` have it."""

    @property
    def beta1(self) -> float: ...
    @property
    def beta2(self) -> float: ...
    @property
    def eps(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def max_grad_norm(self) -> float: ...


@contextmanager
def failure_told(step: Callable[[], int]) -> Iterator[None]:
    """Telemetry of a run that ends with an error, at which step and why."""
    try:
        yield
    except BaseException as error:
        why = {"kind": type(error).__name__, "message": str(error)}
        emit("training.failed", {"step": step()}, why)
        raise


@dataclass(slots=True)
class Pace:
    """How far a run is: `seconds` and `tokens` include what came before it was gone on with."""

    clock: Callable[[], float]
    step: int = 0
    """Steps that are made."""
    tokens: int = 0
    seconds: float = 0.0
    _began: float = 0.0

    def begin(self) -> None:
        """From here on the seconds count."""
        self._began = self.clock() - self.seconds

    def look(self) -> None:
        """Note what time it is."""
        self.seconds = self.clock() - self._began

    def count(self, tokens: int) -> None:
        """A step is made."""
        self.step, self.tokens = self.step + 1, self.tokens + tokens
        self.look()

    def figures(self, steps: int) -> dict[str, float]:
        """Of a run of so many steps."""
        return {
            "tokens_per_second": self.tokens / max(self.seconds, 1e-9),
            "seconds_left": (steps - self.step) * self.seconds / self.step,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "tokens": self.tokens, "seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]


async def optimised(
    client: TrainingClient,
    settings: OptimizerSettings,
    step: int,
    steps: int,
    *,
    skip: bool = False,
    **shape: float,
) -> dict[str, float]:
    """Step on the gradients that were gathered; `learning_rate` and `grad_norm`.

    Args:
        step: counts from 0. steps: of the whole run.
        skip: there are no gradients: nothing is stepped, and the norm is 0.
        shape: what `schedule.learning_rate` takes beside its settings.

    Raises:
        DivergenceError: the gradient is not finite.
    """
    rate, norm = learning_rate(step, steps, settings, **shape), 0.0
    if not skip:
        params = AdamParams(
            learning_rate=rate,
            beta1=settings.beta1,
            beta2=settings.beta2,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
        )
        norm = (await client.optim_step(params)).grad_norm
    return {"learning_rate": rate, "grad_norm": norm}


@dataclass(slots=True)
class LossWatch:
    """Looks at the loss of each step before it is stepped on.

    Args:
        explosion: a loss above so many times the mean of the last twenty is a divergence; 0 looks
            for what is not finite alone.
    """

    explosion: float = 0.0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def check(self, loss: float) -> None:
        """
        Raises:
            DivergenceError: it is not finite, or exploded.
        """
        if not math.isfinite(loss):
            raise DivergenceError(f"The loss is {loss}.", hint="Lower learning_rate.")
        usual = sum(self.recent) / len(self.recent) if self.recent else 0.0
        full = len(self.recent) == REMEMBERED
        if self.explosion and full and loss > self.explosion * usual > 0:
            raise DivergenceError(
                f"The loss is {loss:.3g}, and was {usual:.3g} in the last {REMEMBERED} steps.",
                hint="Lower learning_rate, or raise explosion.",
            )


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they lie; None writes none.
        keep: how many stay.
        beside: write in a thread while training goes on, where the client copies its state.
        on_written: called once one is there.
    """

    def __init__(
        self,
        client: TrainingClient,
        folder: Path | None,
        *,
        keep: int = 1,
        beside: bool = False,
        on_written: Callable[[Written], Awaitable[None]],
    ) -> None:
        self._client = client
        self._folder = folder
        self._keep = keep
        self._on_written = on_written
        self._copies = client if beside and isinstance(client, StateCopies) else None
        leading = leads(client)
        self._writes = folder is not None and leading
        self._writer = (
            CheckpointWriter(folder, keep) if folder is not None and leading and beside else None
        )
        self._saved_step = -1

    async def resume(self, key: str, mark: str, *, refused: str, hint: str) -> dict[str, Any]:
        """Bring the client to the latest checkpoint; what it holds beside the client's state, and
        nothing where there is none.

        Args:
            key: under which it holds what it is of, which has to be `mark`.
            refused, hint: what is said of others.

        Raises:
            TrainingError: it is of something else, or cannot be read.
        """
        found = latest_checkpoint(self._folder) if self._folder else None
        if found is None:
            return {}
        loop = read_loop(found)
        if loop.get(key) != mark:
            raise TrainingError(f"The checkpoint {found} is of {refused}.", hint=hint)
        await self._client.load_state(found)
        self._saved_step = loop["step"]
        return loop

    async def save(self, step: int, loop: Callable[[], Mapping[str, Any]]) -> None:
        """Write the state after a step, or begin to, unless that is done.

        Raises:
            StorageError: this one or the one before cannot be written; the one before that stays.
        """
        if self._folder is None or self._saved_step == step:
            return
        self._saved_step = step
        if self._copies is not None:
            await self._write(await self._copies.copy_state(), loop())
        elif self._writes:
            began = time.perf_counter()
            with timed("checkpoint", step=step):
                target = begin_checkpoint(self._folder, step)
                await self._client.save_state(target)
                finish_checkpoint(target, loop(), keep=self._keep)
            await self._note(Written(target, step, time.perf_counter() - began))

    async def look(self) -> None:
        """Tell of one that has become complete meanwhile."""
        if self._writer is not None:
            await self._note(await self._writer.look())

    async def wait(self) -> None:
        """Until none is being written, and tell of it."""
        if self._writer is not None:
            await self._note(await self._writer.wait())

    async def settle(self) -> None:
        """`wait` where there is an error to be told of already."""
        if self._writer is not None:
            await self._writer.settle()

    async def gone_back(
        self, error: DivergenceError, step: int, good: Good | None = None
    ) -> DivergenceError:
        """Bring the client back to the last state that was good, which is the last checkpoint then;
        the error that says so.

        Args:
            step: after which it diverged.
            good: that state; without it, or a client that copies its state, the last checkpoint.
        """
        kept = step
        await self.wait()
        found = latest_checkpoint(self._folder) if self._folder else None
        if good is not None and self._copies is not None:
            state, loop = good
            kept = loop["step"]
            await self._copies.restore_state(state)
            if found is None or read_loop(found)["step"] != kept:
                await self._write(state, loop)
                await self.wait()
        elif found is not None:
            await self._client.load_state(found)
            kept = int(read_loop(found)["step"])
        return DivergenceError(
            f"Training diverged at step {step + 1}: {error.message} "
            f"The adapter is as it was after step {kept}.",
            hint=error.hint,
        )

    async def _write(self, state: StateCopy, loop: Mapping[str, Any]) -> None:
        if self._writer is not None:
            await self._note(await self._writer.begin(state, loop["step"], loop))

    async def _note(self, written: Written | None) -> None:
        if written is not None:
            emit("training.checkpoint", {"step": written.step, "seconds": written.seconds})
            await self._on_written(written)
