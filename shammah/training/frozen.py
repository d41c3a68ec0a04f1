"""The part of an adapter that stays as it is while a new low-rank part is trained beside it.

An adapter of rank p + r whose first p rows of A and columns of B are an earlier adapter's is the
exact sum of both. Knows factors, not where they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

Factors = tuple[torch.Tensor, torch.Tensor]
"""A [rank, in] and B [out, rank]."""


class FrozenPart:
    """The first `rank` ranks of some factors: they get no gradient, and are put back as they were
    after a step that moved them (weight decay does).

    Args:
        factors: by module path; the parameters that are trained.
    """

    def __init__(
        self, factors: Mapping[str, tuple[torch.nn.Parameter, torch.nn.Parameter]], rank: int
    ) -> None:
        self.rank = rank
        self._factors = dict(factors)
        self._kept = {
            path: (a.detach()[:rank].clone(), b.detach()[:, :rank].clone())
            for path, (a, b) in self._factors.items()
        }
        for a, b in self._factors.values():
            for tensor, hook in (
                (a, _without(lambda gradient: gradient[:rank])),
                (b, _without(lambda gradient: gradient[:, :rank])),
            ):
                tensor.register_hook(hook)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def restore(self) -> None:
        """Put the frozen part back."""
        for path, (a, b) in self._factors.items():
            kept_a, kept_b = self._kept[path]
            a[: self.rank] = kept_a
            b[:, : self.rank] = kept_b


def recompress(a: torch.Tensor, b: torch.Tensor, rank: int) -> Factors:
    """The factors of rank `rank` whose product is nearest to B A (Eckart and Young 1936), of a
    lower rank where B A has no more; the same ones where they are no larger already. Never forms
    B A itself."""
    if a.shape[0] <= rank:
        return a, b
    rank = min(rank, a.shape[1], b.shape[0])
    q_b, r_b = torch.linalg.qr(b.double())
    q_a, r_a = torch.linalg.qr(a.double().t())
    u, s, v = torch.linalg.svd(r_b @ r_a.t())
    root = s[:rank].sqrt()
    left = (q_b @ (u[:, :rank] * root)).to(b.dtype)
    right = (root[:, None] * (v[:rank] @ q_a.t())).to(a.dtype)
    return right.contiguous(), left.contiguous()


def _without(
    part: Callable[[torch.Tensor], torch.Tensor],
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A gradient hook that sets a part to zero."""

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        part(gradient).zero_()
        return gradient

    return hook
