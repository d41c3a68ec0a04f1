"""The training core on this machine: torch and peft behind the `TrainingClient` protocol.

Examples are packed into rows of at most `micro_batch_tokens`, and the gradients of a row are taken
before the next one begins: memory depends on that number, results do not. Computing blocks the
event loop, which a worker process is there for. Knows nothing about lessons or jobs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from shammah.errors import DivergenceError, IncompatibleStateError, TrainingError
from shammah.files import private_folder, write_atomic
from shammah.generation.decoding import TokenDecoder
from shammah.generation.local_sampling import LocalSamplingClient, Run, TokenSampling
from shammah.generation.lora import AdapterSlot, AdapterState
from shammah.ports.datum import Datum
from shammah.ports.training_client import (
    AdamParams,
    CustomLoss,
    ForwardBackwardOutput,
    ModelInfo,
    OptimStepOutput,
    StateCopy,
)
from shammah.settings import LoraSettings, TrainingSettings
from shammah.tracking.trace import timed
from shammah.training import custom, losses
from shammah.training.allocator import limit_kernels, release_memory
from shammah.training.body import Body, Pairs, Targets
from shammah.training.failures import check, failures
from shammah.training.holding import Holding, Moments
from shammah.training.hooks import Gradients, Hook, look, make_hooks
from shammah.training.layers import install
from shammah.training.lora import attach_lora, linear_modules
from shammah.training.loss_inputs import loss_inputs
from shammah.training.losses.choices import gathered
from shammah.training.optimizer import AdamW
from shammah.training.packing import pack, pack_groups
from shammah.training.random_state import OwnRandom
from shammah.training.sharding import divided_layers
from shammah.training.timing import finished

if TYPE_CHECKING:
    from shammah.models.load import BaseModel

T = TypeVar("T")

ACTIVATION_BYTES = 128 << 20
FEWEST_TOKENS, MOST_TOKENS = 64, 4096

_ADAPTER, _OPTIMIZER, _RANDOM = "adapter.safetensors", "optimizer.safetensors", "random.safetensors"


class LocalTrainingClient:
    """Trains an adapter on a base model that is held by this process.

    The base model is changed in place (adapter layers, attention) until `close`.
    """

    def __init__(
        self,
        base: BaseModel,
        lora: LoraSettings,
        training: TrainingSettings,
        parent: Path | None = None,
        *,
        parent_scaling: float | None = None,
        frozen_rank: int | None = None,
        moments: Moments | None = None,
        hooks: Sequence[Hook] = (),
    ) -> None:
        """
        Args:
            parent: adapter file to start from; see `attach_lora`.
            parent_scaling: alpha / r of the parent where no metadata file lies beside it.
            frozen_rank: keep the parent, and train only what is added to it; see `attach_lora`.
            moments: of the base model, to hold it by (`training.hold`).
            hooks: look at gradients, beside those of `training.hooks`.

        Raises:
            TrainingError: a target module does not exist in the model, or a hook does not.
            AdapterInvalidError: the parent does not fit the model.
        """
        self.base = base
        asked = make_hooks(training.hooks)
        limit_kernels()
        fitting = tokens_for(base.model)
        self.lora = attach_lora(
            base.model,
            lora,
            parent,
            parent_scaling=parent_scaling,
            frozen_rank=frozen_rank,
            seed=training.seed,
        )
        self._hold = 0.0 if training.hold == "auto" else training.hold
        self._holding = Holding(self.lora, moments) if moments and self._hold > 0 else None
        self.layers = install(base.model, self.lora)
        # What is below the adapters is computed anew where all have to make the same passes.
        divided = bool(divided_layers(base.model))
        self.body = Body(base.model, () if divided else self.lora.layers)
        self.micro_batch_tokens = training.micro_batch_tokens or fitting
        """Tokens computed at once."""
        self.on_batch: Callable[[Sequence[Datum]], object] | None = None
        """Is shown what gradients are made from."""
        self._vocabulary = int(base.model.get_input_embeddings().weight.shape[0])
        self._optimizer = AdamW(self.lora.named_parameters())
        self._hooks = [*asked, *hooks]
        self._weight = 0.0
        self._sampler: LocalSamplingClient | None = None
        self._base_sampler: LocalSamplingClient | None = None
        self._random = OwnRandom(self.body.device, training.seed)

    def remember(self, datums: Iterable[Datum]) -> None:
        """Compute what lies below the adapter for these datums once, ahead of many steps with them;
        results do not change."""
        with failures():
            self.body.remember(datums)

    async def forward_backward(
        self, datums: Sequence[Datum], loss_fn: str | losses.Loss = "cross_entropy"
    ) -> ForwardBackwardOutput:
        """See `TrainingClient.forward_backward`; `losses.get` says what a name may be."""
        if self.on_batch is not None:
            self.on_batch(datums)
        with failures(), self._with_dropout(), torch.enable_grad():
            output = self._run(datums, loss_fn, backward=True)
        self._weight += output.weight
        return output

    async def forward_backward_custom(
        self, datums: Sequence[Datum], fn: CustomLoss, *, weight: float = 1.0
    ) -> ForwardBackwardOutput:
        """See `TrainingClient.forward_backward_custom`. One pass where the datums fit into
        `micro_batch_tokens`, else two."""
        self._check_custom(datums, weight)
        packs = pack([len(datum.model_input) for datum in datums], self.micro_batch_tokens)
        with failures(), self._with_dropout(), torch.enable_grad():
            random = self._random.now()
            try:
                loss, metrics, outputs = custom.add_gradients(
                    datums,
                    packs,
                    lambda members: self._targets([datums[index] for index in members]),
                    fn,
                    lambda: self._random.go_to(random),
                    self._back,
                )
            except DivergenceError:
                self._forget()
                raise
        self._weight += weight
        return replace(outcome(datums, packs, outputs), loss=loss, weight=weight, metrics=metrics)

    async def forward(
        self, datums: Sequence[Datum], loss_fn: str | losses.Loss = "cross_entropy"
    ) -> ForwardBackwardOutput:
        """See `TrainingClient.forward`."""
        with failures(), torch.no_grad():
            return self._run(datums, loss_fn, backward=False)

    async def optim_step(self, params: AdamParams) -> OptimStepOutput:
        """See `TrainingClient.optim_step`."""
        weight, self._weight = self._weight, 0.0
        if self._holding is not None:
            # The optimizer divides by the weight of what was gathered.
            self._holding.add_gradients(self._hold * weight)
        with timed("optimiser"):
            with failures():
                if self._hooks and weight > 0:
                    look(self._hooks, self._gradients(weight))
                norm = self._optimizer.step(weight, params)
            if self.lora.frozen is not None:
                self.lora.frozen.restore()
            finished(self.body.device)
        release_memory()
        self._random.keep()
        return OptimStepOutput(self._optimizer.steps, norm)

    async def save_state(self, folder: Path) -> None:
        """See `TrainingClient.save_state`. The state is that after the last optimiser step;
        gradients gathered since then are not part of it."""
        (await self.copy_state()).write(folder)

    async def copy_state(self) -> StateCopy:
        """See `StateCopies.copy_state`; the copy is on the device that trains."""
        return LocalState(
            {name: p.detach().clone() for name, p in self.lora.named_parameters().items()},
            {name: tensor.clone() for name, tensor in self._optimizer.state().items()},
            self._random.kept,
        )

    async def restore_state(self, copy: StateCopy) -> None:
        """See `StateCopies.restore_state`."""
        if not isinstance(copy, LocalState):
            raise IncompatibleStateError(f"A {type(copy).__name__} is no state of this client.")
        self._load(copy)

    async def load_state(self, folder: Path) -> None:
        """See `TrainingClient.load_state`.

        Raises:
            TrainingError: the folder holds no whole state.
            IncompatibleStateError: it is of another adapter shape.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            adapter, optimizer, random = (
                load_file(folder / name) for name in (_ADAPTER, _OPTIMIZER, _RANDOM)
            )
        except (SafetensorError, OSError) as error:
            raise TrainingError(
                f"The checkpoint {folder} cannot be read: {error}.", hint="Start the job afresh."
            ) from error
        self._load(LocalState(adapter, optimizer, random["torch"]))

    async def save_weights(self, path: Path) -> None:
        """See `TrainingClient.save_weights`."""
        self.lora.save(path)

    @property
    def sampler(self) -> LocalSamplingClient:
        """See `TrainingClient.sampler`."""
        if self._sampler is None:
            own = self.lora.named_parameters
            self._sampler = self._sampling_client(self._sampling, lambda: own().values())
        return self._sampler

    @property
    def base_sampler(self) -> LocalSamplingClient:
        """Samples and log-probabilities of the base model: the same one with its adapter off."""
        if self._base_sampler is None:
            self._base_sampler = self._sampling_client(self._base_sampling)
        return self._base_sampler

    def _sampling_client(
        self, run: Run, within: Callable[[], Iterable[torch.Tensor]] = tuple
    ) -> LocalSamplingClient:
        # The adapter is in the layers, not in a slot.
        sampling = TokenSampling(self.base, TokenDecoder(self.base, AdapterSlot()))
        return LocalSamplingClient(sampling, lambda: AdapterState(None, 0, ()), run, within)

    async def _sampling(self, work: Callable[[], T]) -> T:
        with self.body.own_attention(), torch.no_grad():
            return work()

    async def _base_sampling(self, work: Callable[[], T]) -> T:
        with self.lora.off(), self.body.own_attention(), torch.no_grad():
            return work()

    async def info(self) -> ModelInfo:
        """See `TrainingClient.info`."""
        base, lora = self.base, self.lora
        return ModelInfo(
            model=base.name,
            fingerprint=base.fingerprint,
            rank=lora.rank,
            alpha=lora.alpha,
            target_modules=tuple(lora.target_modules),
            trainable_parameters=sum(p.numel() for p in lora.named_parameters().values()),
            dtype=str(base.dtype).removeprefix("torch."),
            device=base.device,
            max_tokens=base.context_length,
            step=self._optimizer.steps,
            rslora=lora.rslora,
        )

    def describe(self) -> str:
        """How the model is run, in a line for a log."""
        return json.dumps(
            {"packed": self.body.packed, "headless": self.body.headless, **self.layers.kinds}
        )

    def close(self) -> None:
        """Give the base model back as it was."""
        self.body.close()
        self.layers.remove()
        self.lora.detach()

    def _run(
        self, datums: Sequence[Datum], loss_fn: str | losses.Loss, *, backward: bool
    ) -> ForwardBackwardOutput:
        loss_of = losses.get(loss_fn)
        called = loss_fn if isinstance(loss_fn, str) else "The loss"
        if len(datums) % loss_of.members:
            raise TrainingError(
                f"{called} takes {loss_of.members} datums at a time, not {len(datums)}."
            )
        with timed("data"):
            check(datums, self._vocabulary)
            if loss_of.check is not None:
                loss_of.check(datums)
            lengths = [len(datum.model_input) for datum in datums]
            logprobs, greedy = _places(datums)
            packs = pack_groups(lengths, self.micro_batch_tokens, loss_of.members)
        loss = weight = 0.0
        told: dict[str, tuple[float, float]] = {}
        for members in packs:
            group = [datums[index] for index in members]
            with timed("forward", tokens=sum(lengths[index] for index in members)):
                choices = gathered(group) if loss_of.structured else None
                targets = self._targets(group, choices.pairs if choices else None, loss_of.shares)
                inputs = loss_inputs(group, targets, called, loss_of, choices)
                part, measures = loss_of.evaluate(targets.logprobs, inputs)
                value = float(part.detach())
            if not math.isfinite(value):
                self._forget()
                raise DivergenceError(
                    f"The loss is {value} after step {self._optimizer.steps}.",
                    hint="Lower training.learning_rate.",
                )
            # Of some datums a loss may know nothing, as of answers without relations.
            if backward:
                self._back(part if part.requires_grad else None, targets.logprobs)
            loss += value
            weight += float(targets.weights.sum())
            for name, (total, count) in measures.items():
                before = told.get(name, (0.0, 0.0))
                told[name] = (before[0] + float(total), before[1] + float(count))
            _scatter(targets, members, logprobs, greedy)
        return ForwardBackwardOutput(
            loss,
            weight,
            sum(lengths),
            tuple(logprobs),
            tuple(greedy),
            {name: total / count for name, (total, count) in told.items() if count},
        )

    def _check_custom(self, datums: Sequence[Datum], weight: float) -> None:
        if not weight > 0 or not datums:
            raise TrainingError(f"{len(datums)} datums with a weight of {weight} teach nothing.")
        check(datums, self._vocabulary)

    def _targets(
        self, group: Sequence[Datum], others: Sequence[Pairs] | None = None, shares: bool = False
    ) -> Targets:
        """Run the examples of a pack."""
        self._begin_pack(group)
        return self.body.targets(group, others, shares=shares)

    def _back(self, value: torch.Tensor | None, logprobs: torch.Tensor) -> None:
        """Add the gradients of a value, if there is one, that was computed from `logprobs`."""
        if value is not None:
            with timed("backward"):
                value.backward()  # type: ignore[no-untyped-call]
                finished(self.body.device)

    def _begin_pack(self, group: Sequence[Datum]) -> None:
        self.layers.workspace.reset()
        # An example that is longer than the budget would take more memory than it stands for:
        # as many blocks keep their inner part as fit, the others compute it twice.
        tokens = sum(len(example.model_input) for example in group)
        self.layers.keeping = self.layers.blocks * self.micro_batch_tokens // max(1, tokens)

    def _gradients(self, weight: float) -> Gradients:
        parameters = self.lora.named_parameters()
        found = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        return Gradients(
            self._optimizer.steps + 1,
            tuple(found),
            tuple(found.values()),
            weight,
            parameters,
            self.lora.frozen.rank if self.lora.frozen is not None else 0,
        )

    def _load(self, state: LocalState) -> None:
        with failures():
            self.lora.load(dict(state.adapter))
            self._optimizer.load(state.optimizer)
        self._random.load(state.random)
        self._weight = 0.0

    def _forget(self) -> None:
        """Drop the gradients gathered so far."""
        self._optimizer.clear()
        self._weight = 0.0

    @contextmanager
    def _with_dropout(self) -> Iterator[None]:
        with self._random.drawing() if self.lora.dropout else nullcontext():
            self.layers.dropout_on = True
            try:
                yield
            finally:
                self.layers.dropout_on = False


@dataclass(frozen=True, slots=True)
class LocalState:
    """A client's state: the adapter under PEFT's key names, the optimiser's table, and where the
    random numbers stand. Its tensors are nobody else's."""

    adapter: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, torch.Tensor]
    random: torch.Tensor

    def write(self, folder: Path) -> None:
        """See `StateCopy.write`."""
        from safetensors.torch import save

        private_folder(folder)
        adapter = {name: tensor.float().cpu() for name, tensor in self.adapter.items()}
        write_atomic(folder / _ADAPTER, save(adapter, {"format": "pt"}))
        optimizer = {name: tensor.cpu() for name, tensor in self.optimizer.items()}
        write_atomic(folder / _OPTIMIZER, save(optimizer))
        write_atomic(folder / _RANDOM, save({"torch": self.random}))


def tokens_for(model: Any) -> int:
    """How many tokens keep at most `ACTIVATION_BYTES` for the backward pass, estimated as the
    outputs of all linear layers."""
    per_token = 0
    for path, transposed in linear_modules(model).items():
        weight = model.get_submodule(path).weight
        per_token += weight.shape[1 if transposed else 0] * weight.element_size()
    return min(MOST_TOKENS, max(FEWEST_TOKENS, ACTIVATION_BYTES // max(1, per_token)))


def outcome(
    datums: Sequence[Datum], packs: Sequence[Sequence[int]], outputs: Sequence[Targets]
) -> ForwardBackwardOutput:
    """What came out of packs, in the order of their datums, without a loss."""
    logprobs, greedy = _places(datums)
    for members, targets in zip(packs, outputs, strict=True):
        _scatter(targets, members, logprobs, greedy)
    tokens = sum(len(datum.model_input) for datum in datums)
    return ForwardBackwardOutput(0.0, 0.0, tokens, tuple(logprobs), tuple(greedy))


def _places(datums: Sequence[Datum]) -> tuple[list[Any], list[bool]]:
    """For the log-probabilities of datums, and for whether they are greedy."""
    shapes = [datum.loss_fn_inputs["target_tokens"].shape for datum in datums]
    return [np.zeros(shape, dtype=np.float32) for shape in shapes], [False] * len(datums)


def _scatter(
    targets: Targets,
    members: Sequence[int],
    logprobs: list[np.ndarray[Any, np.dtype[np.float32]]],
    greedy: list[bool],
) -> None:
    """Put the results of a pack where they belong in the order of the datums."""
    values = targets.logprobs.detach().cpu().numpy()
    right = targets.greedy.cpu().numpy()
    start = 0
    for index, places in zip(members, targets.places, strict=True):
        end = start + len(places)
        logprobs[index].reshape(-1)[places] = values[start:end]
        greedy[index] = bool(right[start:end].all())
        start = end
