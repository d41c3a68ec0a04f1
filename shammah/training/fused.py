"""The layers of a transformer with gradients written out by hand, for adapters on frozen weights.

They give what plain autograd over peft's layers gives, with fewer and smaller temporaries: nothing
is computed for frozen weights, adapters kept in float32 are applied in the dtype of the activations
instead of the activations being cast to float32, and what is cheap to compute again is not kept.
Knows tensors only; `layers` puts these functions into models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from shammah.training.workspace import Workspace


class Frozen(NamedTuple):
    """A frozen affine map. `matrix` is [out, in], or [in, out] where `transposed` (GPT-2)."""

    matrix: torch.Tensor
    bias: torch.Tensor | None
    transposed: bool = False

    @property
    def width(self) -> int:
        """Number of output features."""
        return self.matrix.shape[1 if self.transposed else 0]

    def forward(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """x [n, in] -> [n, out], written to `out` if given."""
        matrix = self.matrix if self.transposed else self.matrix.t()
        if self.bias is None:
            return torch.mm(x, matrix) if out is None else torch.mm(x, matrix, out=out)
        return torch.addmm(self.bias, x, matrix, out=out)

    def backward(self, gradient: torch.Tensor) -> torch.Tensor:
        """dy [n, out] -> dx [n, in]."""
        return gradient @ (self.matrix.t() if self.transposed else self.matrix)

    def backward_into(self, sum_: torch.Tensor, gradient: torch.Tensor) -> None:
        """Add what `backward` gives to `sum_`, in place."""
        sum_.addmm_(gradient, self.matrix.t() if self.transposed else self.matrix)


class Adapter(NamedTuple):
    """y += scaling * (x A^T) B^T with a float32 [r, in] and b float32 [out, r]."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float


@dataclass(slots=True)
class Applied:
    """What the backward pass of one adapter needs: its parts in the activations' dtype, and
    `inner` = x A^T, [n, r]."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    inner: torch.Tensor


def _apply(adapter: Adapter, x: torch.Tensor, output: torch.Tensor) -> Applied:
    """Add the adapter to `output` [n, out], in place."""
    a, b = adapter.a.to(x.dtype), adapter.b.to(x.dtype)
    inner = x @ a.t()
    output.addmm_(inner, b.t(), alpha=adapter.scaling)
    return Applied(a, b, adapter.scaling, inner)


def _gradients(
    applied: Applied, x: torch.Tensor, gradient: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dA, dB in float32, and the gradient of `inner` [n, r] from which dx follows."""
    d_inner = (gradient @ applied.b).mul_(applied.scaling)
    d_a = d_inner.t() @ x
    d_b = (gradient.t() @ applied.inner).mul_(applied.scaling)
    return d_a.float(), d_b.float(), d_inner


def lora_linear(
    x: torch.Tensor, frozen: Frozen, adapter: Adapter, dropped: torch.Tensor | None = None
) -> torch.Tensor:
    """A linear layer with an adapter. `dropped` is what the adapter sees instead of `x` [..., in]
    (after dropout)."""
    flat = x.reshape(-1, x.shape[-1])
    seen = flat if dropped is None else dropped.reshape(-1, x.shape[-1])
    output: torch.Tensor = _LoraLinear.apply(flat, seen, adapter.a, adapter.b, frozen, adapter)  # type: ignore[no-untyped-call]
    return output.view(*x.shape[:-1], output.shape[-1])


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        seen: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        frozen: Frozen,
        adapter: Adapter,
    ) -> torch.Tensor:
        output = frozen.forward(x)
        ctx.applied = _apply(adapter, seen, output)
        ctx.frozen, ctx.shared = frozen, seen is x or seen.data_ptr() == x.data_ptr()
        ctx.save_for_backward(seen)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (seen,) = ctx.saved_tensors
        gradient = gradients[0]
        applied: Applied = ctx.applied
        d_a, d_b, d_inner = _gradients(applied, seen, gradient)
        d_x = d_seen = None
        if ctx.needs_input_grad[0]:
            d_x = ctx.frozen.backward(gradient)
            if ctx.shared:
                d_x.addmm_(d_inner, applied.a)
        if not ctx.shared and ctx.needs_input_grad[1]:
            d_seen = d_inner @ applied.a
        return d_x, d_seen, d_a, d_b, None, None


class Gate(NamedTuple):
    """The three maps of a SwiGLU block (Shazeer 2020, arXiv 2002.05202), each with its adapter."""

    gate: tuple[Frozen, Adapter | None]
    up: tuple[Frozen, Adapter | None]
    down: tuple[Frozen, Adapter | None]


def swiglu(
    x: torch.Tensor, block: Gate, workspace: Workspace, *, keep: bool = True
) -> torch.Tensor:
    """down(silu(gate(x)) * up(x)) for x [..., hidden].

    Args:
        workspace: gate(x) and up(x) lie there until the backward pass; their product, which is as
            large, is computed again.
        keep: if false, gate(x) and up(x) are computed again too: slower by a third of the block,
            and nothing of its inner width is kept.
    """
    flat = x.reshape(-1, x.shape[-1])
    factors = [
        factor
        for _, adapter in block
        for factor in ((adapter.a, adapter.b) if adapter else (None, None))
    ]
    output: torch.Tensor = _SwiGlu.apply(flat, block, workspace, keep, *factors)  # type: ignore[no-untyped-call]
    return output.view(x.shape)


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        block: Gate,
        workspace: Workspace,
        keep: bool,
        *factors: torch.Tensor,
    ) -> torch.Tensor:
        keep = keep and any(ctx.needs_input_grad)
        inner = _inner(x, block, workspace if keep else None)
        product = F.silu(inner.gate).mul_(inner.up)
        output, applied_down = _linear(product, *block.down)
        ctx.block, ctx.down = block, applied_down
        # Neither an input nor an output, so autograd need not watch it.
        ctx.inner = inner if keep else None
        ctx.save_for_backward(x)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (x,) = ctx.saved_tensors
        block: Gate = ctx.block
        inner: _Inner = ctx.inner or _inner(x, block, None)
        ctx.inner = None
        gradient = gradients[0]
        d_product = block.down[0].backward(gradient)
        silu = F.silu(inner.gate)
        factors_down: list[torch.Tensor | None] = [None, None]
        if ctx.down is not None:
            d_a, d_b, d_inner = _gradients(ctx.down, silu * inner.up, gradient)
            d_product.addmm_(d_inner, ctx.down.a)
            factors_down = [d_a, d_b]
        d_up = silu.mul_(d_product)
        d_gate = torch.ops.aten.silu_backward(d_product.mul_(inner.up), inner.gate)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = block.gate[0].backward(d_gate)
            block.up[0].backward_into(d_x, d_up)
        factors: list[torch.Tensor | None] = []
        for applied, outer in ((inner.applied_gate, d_gate), (inner.applied_up, d_up)):
            if applied is None:
                factors += [None, None]
                continue
            d_a, d_b, d_inner = _gradients(applied, x, outer)
            if d_x is not None:
                d_x.addmm_(d_inner, applied.a)
            factors += [d_a, d_b]
        return d_x, None, None, None, *factors, *factors_down


@dataclass(slots=True)
class _Inner:
    """gate(x) and up(x), [n, inner width]."""

    gate: torch.Tensor
    up: torch.Tensor
    applied_gate: Applied | None
    applied_up: Applied | None


def _inner(x: torch.Tensor, block: Gate, workspace: Workspace | None) -> _Inner:
    outs = [
        None if workspace is None else workspace.take((x.shape[0], frozen.width), x)
        for frozen, _ in (block.gate, block.up)
    ]
    gate, applied_gate = _linear(x, *block.gate, outs[0])
    up, applied_up = _linear(x, *block.up, outs[1])
    return _Inner(gate, up, applied_gate, applied_up)


def _linear(
    x: torch.Tensor, frozen: Frozen, adapter: Adapter | None, out: torch.Tensor | None = None
) -> tuple[torch.Tensor, Applied | None]:
    output = frozen.forward(x, out)
    return output, None if adapter is None else _apply(adapter, x, output)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """weight * x / sqrt(mean(x^2) + eps) for x [..., H] and a frozen weight [H]; statistics in
    float32 (Zhang & Sennrich 2019, arXiv 1910.07467). A weight of another dtype than x is applied
    before the result is rounded to x's dtype, one of the same dtype after."""
    output: torch.Tensor = _RmsNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return output


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.float()
        inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        inverse = inverse.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        normal = wide * inverse
        scaled: torch.Tensor = (
            normal.to(x.dtype).mul_(weight)
            if weight.dtype == x.dtype
            else normal.mul_(weight).to(x.dtype)
        )
        return scaled

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        x, weight, inverse = ctx.saved_tensors
        normal = x.to(torch.float32, copy=True).mul_(inverse)
        outer = gradients[0].to(torch.float32, copy=True).mul_(weight)
        # dx = (g - n * mean(g * n)) / rms with n = x / rms
        mean = (outer * normal).mean(-1, keepdim=True)
        return outer.sub_(normal.mul_(mean)).mul_(inverse).to(x.dtype), None, None
