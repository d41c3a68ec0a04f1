"""One adapter trained by several processes, each with the model, or its share, on its own device.

Every process runs the same loop and is called with the same datums; each computes its share of
them, gradients and the weight of the window are added up before the optimiser's step, and results
are put together again, so that all processes give the same as one alone would, up to the order of
additions. The adapter and the optimiser's state are whole in each. Knows the local client, no loop.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from shammah.errors import (
    DivergenceError,
    EmptyLessonError,
    SamplingError,
    ShammahError,
    TrainingError,
)
from shammah.generation.local_sampling import BACKEND
from shammah.models.memory import free_memory, gigabytes
from shammah.ports.datum import Datum
from shammah.ports.training_client import (
    AdamParams,
    CustomLoss,
    ForwardBackwardOutput,
    OptimStepOutput,
)
from shammah.settings import LoraSettings, ModelSettings, TrainingSettings
from shammah.tracking.trace import timed
from shammah.training import custom, losses
from shammah.training.body import Pairs, Targets, weights_of
from shammah.training.failures import check, failures
from shammah.training.local_client import LocalTrainingClient, outcome
from shammah.training.lockstep import ElsewhereError, Lockstep
from shammah.training.packing import pack
from shammah.training.processes import Processes, launched
from shammah.training.reward_client import RewardTrainingClient
from shammah.training.sharding import divide, divided_layers, missing_bytes, whole_model
from shammah.training.shares import Share, together
from shammah.training.timing import finished

if TYPE_CHECKING:
    from shammah.models.load import BaseModel, Progress

T = TypeVar("T")
Run = Callable[[Sequence[Datum], losses.Loss], Awaitable[ForwardBackwardOutput]]


class ParallelTrainingClient(LocalTrainingClient):
    """A `TrainingClient` that is `Ranked`: one of several, which step together.

    With dropout each draws for its own share: then going on from a checkpoint is not bit-equal.

    Args:
        processes: those that train together; all else as `LocalTrainingClient` takes it, the same
            in each.
    """

    def __init__(self, *given: Any, processes: Processes, **named: Any) -> None:
        super().__init__(*given, **named)
        self.processes = processes
        self._divided = bool(divided_layers(self.base.model))
        self._lockstep = Lockstep(processes, divided=self._divided)

    @property
    def leads(self) -> bool:
        """See `Ranked.leads`."""
        return self.processes.leads

    async def agree(self, wish: bool) -> bool:
        """See `Ranked.agree`."""
        return any(self.processes.gathered(wish))

    async def forward_backward(
        self, datums: Sequence[Datum], loss_fn: str | losses.Loss = "cross_entropy"
    ) -> ForwardBackwardOutput:
        """See `TrainingClient.forward_backward`; metrics of a mixture are means of the shares', by
        their weight."""
        return await self._shared(datums, loss_fn, super().forward_backward, gradients=True)

    async def forward(
        self, datums: Sequence[Datum], loss_fn: str | losses.Loss = "cross_entropy"
    ) -> ForwardBackwardOutput:
        """See `TrainingClient.forward`."""
        return await self._shared(datums, loss_fn, super().forward, gradients=False)

    async def forward_backward_custom(
        self, datums: Sequence[Datum], fn: CustomLoss, *, weight: float = 1.0
    ) -> ForwardBackwardOutput:
        """See `TrainingClient.forward_backward_custom`. Each process computes the log-probabilities
        of its share, calls `fn` with those of all, and goes back through its share.

        Raises:
            TrainingError: as there, or `fn` does not give the same in each process.
        """
        if self.processes.count == 1:
            return await super().forward_backward_custom(datums, fn, weight=weight)
        self._check_custom(datums, weight)
        own = list(range(self.processes.number, len(datums), self.processes.count))
        mine = [datums[index] for index in own]
        packs = pack([len(datum.model_input) for datum in mine], self.micro_batch_tokens)
        outputs: list[Targets] = []
        derivatives: list[torch.Tensor | None] = []

        def run(members: Sequence[int]) -> Targets:
            return self._targets([mine[index] for index in members])

        async def look() -> Share:
            self._begin(datums)
            outputs.extend(custom.look(packs, run))
            self._finish(datums, gradients=False)
            return own, outcome(mine, packs, outputs)

        async def judge() -> tuple[float, dict[str, float]]:
            loss, metrics, found = custom.derivatives_of(
                fn, datums, seen.logprobs, self.body.device
            )
            derivatives.extend(found)
            return loss, metrics

        async def go_back() -> None:
            self._begin(datums)
            own_part = [derivatives[index] for index in own]
            custom.go_back(packs, run, custom.by_pack(packs, outputs, own_part), self._back)
            self._finish(datums, gradients=True)

        with self._with_dropout(), torch.enable_grad():
            random = self._random.now()
            seen = together(await self._agreed(look), len(datums))
            judged = await self._agreed(judge)
            if any(not math.isclose(loss, judged[0][0], rel_tol=1e-4) for loss, _ in judged):
                raise TrainingError(
                    "The custom loss is not the same in each process: "
                    f"{', '.join(f'{loss:.6g}' for loss, _ in judged)}.",
                    hint="It has to follow from the datums and log-probabilities alone.",
                )
            self._random.go_to(random)
            await self._agreed(go_back)
        # Counted once in what is added up.
        self._weight += weight if self.leads else 0.0
        loss, metrics = judged[0]
        return replace(seen, loss=loss, weight=weight, metrics=metrics)

    async def optim_step(self, params: AdamParams) -> OptimStepOutput:
        """See `TrainingClient.optim_step`. Every process makes the same step."""
        self._weight = sum(self.processes.gathered(self._weight))
        parameters = self._optimizer.parameters
        here = any(parameter.grad is not None for parameter in parameters)
        if any(self.processes.gathered(here)):
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            self.processes.add_up([p.grad for p in parameters if p.grad is not None])
        return await super().optim_step(params)

    async def _shared(
        self,
        datums: Sequence[Datum],
        loss_fn: str | losses.Loss,
        run: Run,
        *,
        gradients: bool,
    ) -> ForwardBackwardOutput:
        loss = losses.get(loss_fn)
        if self.processes.count == 1 or len(datums) % loss.members:
            return await run(datums, loss)
        if loss.check is not None:
            loss.check(datums)
        # A share may lack what the whole of the datums has.
        loss = replace(loss, check=None)
        units = range(self.processes.number, len(datums) // loss.members, self.processes.count)
        own = [unit * loss.members + each for unit in units for each in range(loss.members)]

        async def share() -> Share | None:
            self._begin(datums)
            output = await run([datums[index] for index in own], loss) if own else None
            self._finish(datums, gradients=gradients)
            return None if output is None else (own, output)

        shares = await self._agreed(share)
        return together([share for share in shares if share is not None], len(datums))

    async def _agreed(self, work: Callable[[], Awaitable[T]]) -> list[T]:
        """What some work gave in each process; what is raised in one is raised in all, or the
        others would wait for it for ever."""
        found: T | None = None
        failed: tuple[type[ShammahError], str, str | None] | None = None
        try:
            with failures():
                found = await work()
        except ElsewhereError:
            pass
        except TrainingError as error:
            self._lockstep.fail()
            failed = type(error), error.message, error.hint
        shares = self.processes.gathered((found, failed))
        for _, wrong in shares:
            if wrong is not None:
                kind, message, hint = wrong
                if issubclass(kind, DivergenceError):
                    self._forget()
                raise kind(message, hint=hint)
        return cast(list[T], [share for share, _ in shares])

    def _begin(self, datums: Sequence[Datum]) -> None:
        """Before the passes over a share of datums."""
        if self._divided:
            # Once a pass has begun, it is too late to say that it cannot be made.
            check(datums, self._vocabulary)
            for datum in datums:
                if not weights_of(datum).any():
                    raise EmptyLessonError(
                        "A training example has no token with a weight above zero."
                    )
        self._lockstep.begin()

    def _finish(self, datums: Sequence[Datum], *, gradients: bool) -> None:
        """After the passes over a share of datums."""
        shortest = min(datums, key=lambda datum: len(datum.model_input))
        with torch.set_grad_enabled(gradients):
            self._lockstep.finish(
                lambda: super(ParallelTrainingClient, self)._targets([shortest]).logprobs,
                gradients=gradients,
            )

    def _targets(
        self, group: Sequence[Datum], others: Sequence[Pairs] | None = None, shares: bool = False
    ) -> Targets:
        self._lockstep.forward()
        return super()._targets(group, others, shares)

    def _back(self, value: torch.Tensor | None, logprobs: torch.Tensor) -> None:
        with timed("backward"):
            self._lockstep.backward(value, logprobs)
            finished(self.body.device)

    async def _sampling(self, work: Callable[[], T]) -> T:
        return await self._drawn(super()._sampling, work)

    async def _base_sampling(self, work: Callable[[], T]) -> T:
        return await self._drawn(super()._base_sampling, work)

    async def _drawn(
        self, draw: Callable[[Callable[[], T]], Awaitable[T]], work: Callable[[], T]
    ) -> T:
        """What was drawn by the process that leads: all go on with the same, whatever their seeds
        and devices.

        Raises:
            SamplingError: the model is divided and would not fit into a device whole; or it fails.
        """
        self._require_room()
        found: T | None = None
        failed: Exception | None = None
        try:
            with whole_model(self.base.model):
                found = await draw(work)
        except Exception as error:
            failed = error
        shares = self.processes.gathered((found, failed and str(failed)))
        if failed is not None:
            raise failed
        if any(wrong is not None for _, wrong in shares):
            wrong = next(wrong for _, wrong in shares if wrong is not None)
            raise SamplingError(f"another process could not: {wrong}", backend=BACKEND)
        return cast(T, shares[0][0])

    def _require_room(self) -> None:
        """See that a divided model can be whole for a while, in all processes at once."""
        if not self._divided:
            return
        device = self.base.device
        missing = missing_bytes(self.base.model)
        needed = missing * (self.processes.beside if device == "cpu" else 1)
        free = free_memory(device)
        lacking = [each for each in self.processes.gathered((needed, free)) if each[0] > each[1]]
        if lacking:
            needed, free = lacking[0]
            raise SamplingError(
                f"the whole model is needed to draw from it; the rest of it takes "
                f"{gigabytes(needed)}, and {gigabytes(free)} are free on {device}.",
                backend=BACKEND,
                hint="Free memory, or train it by a method that draws nothing.",
            )


class ParallelRewardClient(ParallelTrainingClient, RewardTrainingClient):
    """A `RewardTrainingClient` that is one of several, which step together."""


def base_of(settings: ModelSettings, on_progress: Progress | None = None) -> BaseModel:
    """The base model for how this process was started: divided among several where they are to
    divide it (`Processes.divide`), else whole.

    Raises:
        TrainingError: see `Processes` and `divide`.
        ModelError: see `load_base_model`.
    """
    from shammah.models.load import Division, load_base_model

    if not launched():
        return load_base_model(settings, on_progress)
    processes = Processes()
    if not processes.divide:
        return load_base_model(settings, on_progress)
    division = Division(processes.count, lambda model, device: divide(model, processes, device))
    return load_base_model(settings, on_progress, division=division)


def client_of(
    base: BaseModel, lora: LoraSettings, training: TrainingSettings, **named: Any
) -> LocalTrainingClient:
    """The client for how this process was started: one of several (`ParallelTrainingClient`), or
    one alone. `ports.training_client.leads` says which one prints.

    Args:
        base: of `base_of`; another one is divided now, where it is to be.
        named: as `LocalTrainingClient` takes it: `parent`, `parent_scaling`, `hooks`.

    Raises:
        TrainingError: see `LocalTrainingClient` and `Processes`.
        AdapterInvalidError: the parent does not fit the model.
    """
    if not launched():
        return LocalTrainingClient(base, lora, training, **named)
    return ParallelTrainingClient(base, lora, training, processes=_joined(base), **named)


def reward_client_of(
    base: BaseModel, lora: LoraSettings, training: TrainingSettings, **named: Any
) -> RewardTrainingClient:
    """`client_of` for a model with a scalar head."""
    if not launched():
        return RewardTrainingClient(base, lora, training, **named)
    return ParallelRewardClient(base, lora, training, processes=_joined(base), **named)


def _joined(base: BaseModel) -> Processes:
    """The processes that were launched, with a base model as they are to have it."""
    processes = Processes()
    device = base.model.get_input_embeddings().weight.device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        raise TrainingError(
            f"The base model was loaded on {device}, which is another process's.",
            hint="Load it by training.parallel.base_of.",
        )
    if processes.divide and not divided_layers(base.model):
        divide(base.model, processes, base.device)
    return processes
