"""Random numbers of a client's own, whatever else the process draws on the same device.

Knows torch's generators, nothing about what draws from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class OwnRandom:
    """A stream of random numbers on a device.

    `state` is where it is; `kept` where it was when `keep` was called last, or at the beginning.
    """

    def __init__(self, device: torch.device, seed: int) -> None:
        self._device = device
        outside = self.now()
        torch.manual_seed(seed)
        self.state = self.kept = self.now()
        self.go_to(outside)

    def keep(self) -> None:
        self.kept = self.state

    def load(self, state: torch.Tensor) -> None:
        """Go on from a `state` of earlier."""
        self.state = self.kept = state

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Within it the device draws from this stream."""
        outside = self.now()
        self.go_to(self.state)
        try:
            yield
        finally:
            self.state = self.now()
            self.go_to(outside)

    def now(self) -> torch.Tensor:
        """The state of the device's generator."""
        if self._device.type == "cuda":
            return torch.cuda.get_rng_state(self._device)
        if self._device.type == "mps":
            return torch.mps.get_rng_state()
        return torch.get_rng_state()

    def go_to(self, state: torch.Tensor) -> None:
        """Set the device's generator."""
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state, self._device)
        elif self._device.type == "mps":
            torch.mps.set_rng_state(state)
        else:
            torch.set_rng_state(state)
