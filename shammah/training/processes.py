"""Processes that were launched together, and what they tell each other.

`torchrun` and `accelerate launch` start them. They talk by NCCL where each has a GPU, else by gloo.
Knows nothing about training.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from shammah.errors import TrainingError
from shammah.training.failures import failures

T = TypeVar("T")

_MPI = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_COUNTS = ("WORLD_SIZE", *_MPI)
"""Where launchers say how many processes they started."""


def launched() -> bool:
    """Whether this process was started together with others, by `torchrun`, `accelerate launch` or
    MPI. Nothing is imported or waited for.

    Raises:
        TrainingError: several were asked for, and `accelerate launch` started this one alone.
    """
    if any(int(os.environ.get(name) or 1) > 1 for name in _COUNTS):
        return True
    # What it asks of MPI it says nowhere else; nobody would know that the others are missing.
    alone = not any(name in os.environ for name in _COUNTS)
    if alone and "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ:
        raise TrainingError(
            "accelerate was asked for several processes and has started one: without a GPU, and "
            "with --cpu, it leaves the others to MPI.",
            hint="Use torchrun --nproc_per_node N, or accelerate launch --multi_gpu, which starts "
            "them without a GPU too.",
        )
    return False


def leading() -> bool:
    """Whether this process writes and prints, for what has to know before processes are joined."""
    return not launched() or int(os.environ.get("RANK") or 0) == 0


class Processes:
    """Those that were launched together; one where none were.

    Args:
        cpu: whether they compute on CPU and talk by gloo; by default where there is no CUDA device,
            or `accelerate launch` was told so.
        divide: whether they divide the base model among them, so that one that does not fit into a
            device can be trained; by default where `accelerate launch` was told `--use_fsdp`, of
            whose other options none is looked at.

    Raises:
        TrainingError: several were asked for and one was started, or they cannot be joined.
    """

    def __init__(self, *, cpu: bool | None = None, divide: bool | None = None) -> None:
        from accelerate import PartialState

        several = launched()
        if cpu is None:
            cpu = _told("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
        if several:
            # Transformers would leave the weights out in all processes but the first, for
            # accelerate to send them later; here each reads its own share.
            os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
        here = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
        if several and not cpu and here > torch.cuda.device_count():
            raise TrainingError(
                f"{here} processes were started for {torch.cuda.device_count()} GPUs, and each "
                "needs its own.",
                hint="Start as many as there are GPUs.",
            )
        # A torch that knows MPI would take it even where none has started this.
        by_gloo = cpu and several and not any(name in os.environ for name in _MPI)
        with failures():
            self._state = PartialState(cpu=cpu, **({"backend": "gloo"} if by_gloo else {}))
        asked = _told("ACCELERATE_USE_FSDP") if divide is None else divide
        self.divide = asked and self.count > 1
        """Whether the base model is divided among them."""

    @property
    def number(self) -> int:
        """Which one this is, from 0."""
        return int(self._state.process_index)

    @property
    def count(self) -> int:
        return int(self._state.num_processes)

    @property
    def beside(self) -> int:
        """How many of them, with this one, are on this machine."""
        return int(os.environ.get("LOCAL_WORLD_SIZE") or self.count)

    @property
    def leads(self) -> bool:
        """Whether this one writes and prints."""
        return self.number == 0

    def gathered(self, value: T) -> list[T]:
        """What each gives, in the order of their numbers; waits for all."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        with failures():
            torch.distributed.all_gather_object(found, value)
        return found

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put the sum over all processes into tensors of one dtype, as one message."""
        if self.count == 1:
            return
        together = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with failures():
            torch.distributed.all_reduce(together)
        parts = torch.split(together, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.reshape(tensor.shape))


def _told(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")
