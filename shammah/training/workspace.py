"""Memory for what the forward pass keeps for the backward pass, used again for every pack.

The same large blocks serve every pack of examples in turn: no page is given back and faulted in
again, and the heap does not fall to pieces between packs of different sizes. Knows nothing about
what is kept in it.
"""

from __future__ import annotations

import math

import torch

BLOCK_BYTES = 32 << 20
_ALIGNMENT = 64


class Workspace:
    """Hands out tensors that are valid until the next `reset`."""

    def __init__(self) -> None:
        self._blocks: list[torch.Tensor] = []
        self._block = 0
        self._used = 0

    def take(self, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """An uninitialised tensor of `like`'s dtype and device."""
        size = math.prod(shape) * like.element_size()
        while True:
            if self._block == len(self._blocks):
                self._blocks.append(
                    torch.empty(max(size, BLOCK_BYTES), dtype=torch.uint8, device=like.device)
                )
            block = self._blocks[self._block]
            if self._used + size <= len(block):
                part = block[self._used : self._used + size]
                self._used += -(-size // _ALIGNMENT) * _ALIGNMENT
                return part.view(like.dtype).view(shape)
            self._block, self._used = self._block + 1, 0

    def reset(self) -> None:
        """Everything that was handed out may be overwritten from now on."""
        self._block = self._used = 0

    @property
    def nbytes(self) -> int:
        return sum(len(block) for block in self._blocks)
