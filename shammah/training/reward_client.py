"""The local training client with a scalar head: it scores positions instead of telling targets.

A position's score is `w . h + c l`: h [H] is the model's last hidden state there, and l the mean
log-probability, in nats, of the answer's tokens up to there, each given what is before it. w and c
are trained together with the adapter and begin at zero: every score is 0 then, and whether likely
is good, the pairs alone say.

Whether an answer belongs to its question is in l. Where the same answers are right after some
questions and wrong after others, no h tells the two apart until the adapter compares question and
answer for it. A head of zeros gives it no gradient that would make it compare, and one of random
numbers has it take away first what that head scores by chance.

So a datum's `logprobs` are scores here, at its weighted positions, float32. Its `answer` int64[T]
is 1 at the tokens of the answer, 0 at others (without it, all but the first are); what
`target_tokens` holds is not looked at. `reward_bradley_terry` takes scores as it takes
log-probabilities, and so does a custom loss. Knows nothing about conversations.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from shammah.errors import (
    AdapterInvalidError,
    EmptyLessonError,
    IncompatibleStateError,
    TrainingError,
)
from shammah.files import write_atomic
from shammah.ports.datum import Datum
from shammah.ports.training_client import StateCopy
from shammah.settings import LoraSettings, TrainingSettings
from shammah.training.body import Pairs, Targets
from shammah.training.failures import check, failures
from shammah.training.hooks import Hook
from shammah.training.local_client import LocalTrainingClient
from shammah.training.optimizer import AdamW
from shammah.training.packing import pack

if TYPE_CHECKING:
    from shammah.models.load import BaseModel as Base
    from shammah.training.hooks import Hook

HEAD, LIKELIHOOD = "score.weight", "score.likelihood"
_STATE = "score.safetensors"


class HeadRecord(BaseModel):
    """What lies beside a head's weights: what it was trained on, and with which adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    rank: int
    alpha: float
    rslora: bool
    target_modules: list[str]


def head_file(adapter: Path) -> Path:
    """Where the head of an adapter file lies: beside it, under its name with `score_` before."""
    return adapter.with_name(f"score_{adapter.name}")


class RewardTrainingClient(LocalTrainingClient):
    """A `TrainingClient` that scores."""

    def __init__(
        self,
        base: Base,
        lora: LoraSettings,
        training: TrainingSettings,
        parent: Path | None = None,
        *,
        parent_scaling: float | None = None,
        hooks: Sequence[Hook] = (),
    ) -> None:
        """
        Args:
            parent: adapter file to start from; its head is not read (`load_head`).
            hooks: look at gradients, beside those of `training.hooks`; that of the head is
                `score.weight`.
        """
        super().__init__(base, lora, training, parent, parent_scaling=parent_scaling, hooks=hooks)
        width = int(base.model.get_input_embeddings().weight.shape[1])
        self.head = torch.nn.Parameter(torch.zeros(width, device=self.body.device))
        """w, float32[H]."""
        self.likelihood = torch.nn.Parameter(torch.zeros(1, device=self.body.device))
        """c, float32[1]."""
        self._optimizer = AdamW(
            {**self.lora.named_parameters(), HEAD: self.head, LIKELIHOOD: self.likelihood},
            # A step moves each of H numbers in w by the rate, and w . h by H times as much. At the
            # rate itself c would be small beside whatever w finds in the first pairs by chance.
            {LIKELIHOOD: float(width)},
        )

    def scores(self, datums: Sequence[Datum]) -> NDArray[np.float32]:
        """The score at the last weighted position of each datum, float32[n].

        Raises:
            EmptyLessonError: a datum has no weight above zero.
            TrainingError: it is of another model, or computing fails.
        """
        check(datums, self._vocabulary)
        found = np.zeros(len(datums), dtype=np.float32)
        with failures(), torch.no_grad():
            for members in pack(
                [len(each.model_input) for each in datums], self.micro_batch_tokens
            ):
                targets = self._targets([datums[index] for index in members])
                ends = np.cumsum([len(places) for places in targets.places]) - 1
                found[members] = targets.logprobs.cpu().numpy()[ends]
        return found

    async def copy_state(self) -> StateCopy:
        """See `StateCopies.copy_state`."""
        adapter = await super().copy_state()
        return RewardState(adapter, self._record(), self._head().copy())

    async def restore_state(self, copy: StateCopy) -> None:
        """See `StateCopies.restore_state`."""
        if not isinstance(copy, RewardState):
            raise IncompatibleStateError(f"A {type(copy).__name__} is no state of this client.")
        await super().restore_state(copy.adapter)
        self._head().take(copy.head)

    async def load_state(self, folder: Path) -> None:
        """See `TrainingClient.load_state`."""
        await super().load_state(folder)
        self._load_head(folder / _STATE)

    async def save_weights(self, path: Path) -> None:
        """Write the adapter, and the head beside it (`head_file`)."""
        await super().save_weights(path)
        write_head(head_file(path), self._record(), self._head())

    def load_head(self, adapter: Path) -> None:
        """Take the head that `save_weights` wrote beside an adapter file.

        Raises:
            AdapterInvalidError: there is none, or it is of another model.
        """
        self._load_head(head_file(adapter))

    def _targets(
        self, group: Sequence[Datum], others: Sequence[Pairs] | None = None, shares: bool = False
    ) -> Targets:
        if others is not None:
            raise TrainingError("A scalar head knows no tokens to choose among.")
        self._begin_pack(group)
        rows = [each.loss_fn_inputs["weights"].data.astype(np.float32) for each in group]
        places = tuple(np.flatnonzero(row) for row in rows)
        if not all(len(each) for each in places):
            raise EmptyLessonError("An example has no position with a weight above zero.")
        hidden, likelihood = self._read(group, places)
        scores = hidden @ self.head + self.likelihood * likelihood
        weights = np.concatenate([row[where] for row, where in zip(rows, places, strict=True)])
        return Targets(
            scores,
            torch.zeros(len(scores), dtype=torch.bool, device=scores.device),
            torch.from_numpy(weights).to(scores.device),
            places,
        )

    def _read(
        self, group: Sequence[Datum], places: Sequence[NDArray[np.int64]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states float32[n, H] at the places, and the mean log-probability float32[n] of the
        answer's tokens up to each; 0 where there is none yet."""
        told = [_answer(each, int(where[-1])) for each, where in zip(group, places, strict=True)]
        hidden, logprobs = self.body.read(group, places, told)
        means: list[torch.Tensor] = []
        parts = torch.split(logprobs, [len(each) for each in told])
        for where, tokens, part in zip(places, told, parts, strict=True):
            counts = np.searchsorted(tokens, where, "right").tolist()
            means += [part[:count].sum() / max(1, count) for count in counts]
        return hidden.float(), torch.stack(means)

    def _record(self) -> HeadRecord:
        lora = self.lora
        return HeadRecord(
            fingerprint=self.base.fingerprint,
            rank=lora.rank,
            alpha=lora.alpha,
            rslora=lora.rslora,
            target_modules=list(lora.target_modules),
        )

    def _load_head(self, path: Path) -> None:
        record, head = read_head(path)
        if (record.fingerprint, head.weight.shape) != (self.base.fingerprint, self.head.shape):
            raise AdapterInvalidError(
                f"The head {path} is of another model.", hint="Load the model it was trained on."
            )
        self._head().take(head)

    def _head(self) -> Head:
        return Head(self.head.detach(), self.likelihood.detach())


@dataclass(frozen=True, slots=True)
class Head:
    """What scores are made of: `weight` float32[H] is w, `likelihood` float32[1] is c."""

    weight: torch.Tensor
    likelihood: torch.Tensor

    def copy(self) -> Head:
        """One whose tensors are nobody else's."""
        return Head(self.weight.clone(), self.likelihood.clone())

    def take(self, other: Head) -> None:
        """Become as another one, in place."""
        self.weight.copy_(other.weight)
        self.likelihood.copy_(other.likelihood)


@dataclass(frozen=True, slots=True)
class RewardState:
    """A `StateCopy`: that of the adapter, and the head."""

    adapter: StateCopy
    record: HeadRecord
    head: Head

    def write(self, folder: Path) -> None:
        """See `StateCopy.write`."""
        self.adapter.write(folder)
        write_head(folder / _STATE, self.record, self.head)


def _answer(datum: Datum, last: int) -> NDArray[np.int64]:
    """Positions of the answer's tokens, from the second token of all to `last`."""
    given = datum.loss_fn_inputs.get("answer")
    found = np.arange(last + 1) if given is None else np.flatnonzero(given.data[: last + 1])
    return found[found > 0].astype(np.int64)


def write_head(path: Path, record: HeadRecord, head: Head) -> None:
    """Write a head's file.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    from safetensors.torch import save

    tensors = {HEAD: head.weight.cpu(), LIKELIHOOD: head.likelihood.cpu()}
    write_atomic(path, save(tensors, {"head": record.model_dump_json()}))


def read_head(path: Path) -> tuple[HeadRecord, Head]:
    """A head's file: what it is of, and its weights. One of a version whose heads looked at hidden
    states alone has no `likelihood`, and is 0 there.

    Raises:
        AdapterInvalidError: it is not there, or is no head.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            record = HeadRecord.model_validate(json.loads((opened.metadata() or {})["head"]))
            weight = opened.get_tensor(HEAD)
            found = opened.get_tensor(LIKELIHOOD) if LIKELIHOOD in set(opened.keys()) else None
    except (OSError, SafetensorError, KeyError, ValueError, ValidationError) as error:
        raise AdapterInvalidError(
            f"{path} is not the head of a reward model.",
            hint="It is written beside the adapter, and has to lie there.",
        ) from error
    likelihood = torch.zeros(1) if found is None else found
    for each, dimensions in ((weight, weight.shape[:1]), (likelihood, (1,))):
        if each.dtype != torch.float32 or each.shape != dimensions or not each.isfinite().all():
            raise AdapterInvalidError(f"{path} holds no finite float32 vectors.")
    return record, Head(weight, likelihood)
