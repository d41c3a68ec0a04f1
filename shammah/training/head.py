"""Log-probabilities of target tokens from hidden states, without ever holding all the logits.

Positions go through the output head in chunks. For each position the derivative of its target's
log-probability with respect to its hidden state is computed at once, so that a chunk's logits are
made one time, used for everything, and overwritten by the next chunk's. Knows nothing about what
the log-probabilities are for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from shammah.training.packing import bucket

CHUNK_BYTES = 24 << 20
"""Size of the logits buffer: 80 positions at a vocabulary of 150 thousand in bf16."""
PAIRS = 2048
"""How many targets beyond the first of their position are gone back through at once."""


def target_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    rows: torch.Tensor | None = None,
    *,
    chunk: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the targets, and whether each is the most likely token.

    Differentiable with respect to `hidden` only: the head is frozen.

    Args:
        hidden: [n, H], in the head's dtype.
        weight: [V, H] of the output head. bias: [V] or None.
        targets: int64[m].
        rows: int64[m], in order: the row of `hidden` that each target belongs to, each row at least
            once; by default every row has one target.
        chunk: positions at once; default by `CHUNK_BYTES`.

    Returns:
        logprobs float32[m], greedy bool[m].
    """
    if chunk is None:
        chunk = max(16, CHUNK_BYTES // (weight.shape[0] * weight.element_size()) // 16 * 16)
    if rows is None:
        rows = torch.arange(len(targets), device=targets.device)
    logprobs, greedy = _TargetLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, rows, chunk
    )
    return logprobs, greedy


def shared_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    rows: torch.Tensor,
    targets: torch.Tensor,
    *,
    chunk: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for many targets of few positions: logits are made once for each position, and once
    more for the gradient.

    Args:
        hidden: [m, H]. rows: int64[n], the position of each target.
        targets: int64[n].
    """
    if chunk is None:
        chunk = max(16, CHUNK_BYTES // (weight.shape[0] * 4) // 16 * 16)
    order = torch.argsort(rows, stable=True)
    logprobs, greedy = _SharedLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, rows[order], targets[order], chunk
    )
    back = torch.argsort(order)
    return logprobs[back], greedy[back]


def dense_logprobs(
    logits: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same from logits [n, V] that are there already, by plain autograd."""
    logprobs = torch.log_softmax(logits.float(), -1).gather(-1, targets[:, None])[:, 0]
    return logprobs, logits.detach().argmax(-1) == targets


class _TargetLogprobs(torch.autograd.Function):
    """Of several targets of a row the first one's log-probability p_1 is computed with its
    derivative; the others follow from log p_k - log p_1 = logit_k - logit_1."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        rows: torch.Tensor,
        chunk: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        count = hidden.shape[0]
        derivative = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        greedy = torch.empty(len(targets), dtype=torch.bool, device=hidden.device)
        buffer = hidden.new_empty(bucket(min(chunk, count)), weight.shape[0])
        bounds = torch.arange(count + 1, device=rows.device)
        starts = torch.searchsorted(rows, bounds).tolist()
        first = targets[torch.tensor(starts[:-1], device=rows.device, dtype=torch.long)]
        for start in range(0, count, chunk):
            part = slice(start, min(start + chunk, count))
            size = part.stop - part.start
            padded = F.pad(hidden[part], (0, 0, 0, bucket(size) - size))
            torch.mm(padded, weight.t(), out=buffer[: len(padded)])
            logits = buffer[:size]
            if bias is not None:
                logits += bias
            pairs = slice(starts[part.start], starts[part.stop])
            row, wanted = rows[pairs] - start, targets[pairs]
            target = first[part, None]
            highest = logits.amax(-1)
            own = logits.gather(1, target)[:, 0]
            each = logits[row, wanted]
            greedy[pairs] = _is_top(logits, each >= highest[row], row, wanted)
            others, logp = _softmax_without_target(logits, target, own - highest)
            logprobs[pairs] = logp[row] + (each.float() - own[row].float())
            if derivative is not None:
                # d log p_t / d hidden = W_t - sum_v p_v W_v = (1 - p_t) W_t - sum_{v != t} p_v W_v,
                # and `logits` now holds p_v for v != t.
                logits[torch.arange(len(logits)), target[:, 0]] = -others.to(logits.dtype)
                derivative[part] = (buffer[: len(padded)] @ weight)[:size]
        if derivative is not None:
            ctx.save_for_backward(derivative, weight, targets, rows, first)
        ctx.mark_non_differentiable(greedy)
        return logprobs, greedy

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        derivative, weight, targets, rows, first = ctx.saved_tensors
        given = gradients[0]
        if len(rows) == len(derivative):
            gradient = derivative * (-given)[:, None].to(derivative.dtype)
            return gradient, None, None, None, None, None
        whole = torch.zeros(len(derivative), dtype=torch.float32, device=given.device)
        whole.index_add_(0, rows, given)
        total = derivative.float() * -whole[:, None]
        later = torch.nonzero(targets != first[rows])[:, 0]
        for part in torch.split(later, PAIRS):
            row = rows[part]
            towards = weight[targets[part]].float() - weight[first[row]].float()
            total.index_add_(0, row, given[part, None] * towards)
        return total.to(derivative.dtype), None, None, None, None, None


class _SharedLogprobs(torch.autograd.Function):
    """`rows` are sorted."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        rows: torch.Tensor,
        targets: torch.Tensor,
        chunk: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logprobs = torch.empty(len(rows), dtype=_wide(hidden), device=hidden.device)
        greedy = torch.empty(len(rows), dtype=torch.bool, device=hidden.device)
        for part, own in _chunks(len(hidden), rows, chunk):
            logits = _logits(hidden[part], weight, bias)
            row = rows[own] - part.start
            logprobs[own] = torch.log_softmax(logits, -1)[row, targets[own]]
            greedy[own] = logits.argmax(-1)[row] == targets[own]
        ctx.save_for_backward(hidden, weight, bias, rows, targets)
        ctx.chunk = chunk
        ctx.mark_non_differentiable(greedy)
        return logprobs, greedy

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        hidden, weight, bias, rows, targets = ctx.saved_tensors
        derivative = torch.empty_like(hidden)
        for part, own in _chunks(len(hidden), rows, ctx.chunk):
            # sum_k g_k d log p_k / d logits = g at the targets - (sum_k g_k) p
            wanted = torch.softmax(_logits(hidden[part], weight, bias), -1)
            given = gradients[0][own].to(wanted.dtype)
            row = rows[own] - part.start
            wanted *= -wanted.new_zeros(len(wanted)).index_add(0, row, given)[:, None]
            wanted.index_put_((row, targets[own]), given, accumulate=True)
            derivative[part] = wanted.to(hidden.dtype) @ weight
        return derivative, None, None, None, None, None


def _chunks(count: int, rows: torch.Tensor, chunk: int) -> Iterator[tuple[slice, slice]]:
    """Slices of positions, and of the targets that are theirs."""
    starts = list(range(0, count, chunk))
    edges = torch.searchsorted(rows, torch.tensor([*starts, count], device=rows.device)).tolist()
    for start, first, last in zip(starts, edges, edges[1:], strict=False):
        yield slice(start, min(start + chunk, count)), slice(first, last)


def _logits(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """In float32 at least, of positions padded to a bucket and cut again."""
    padded = F.pad(hidden, (0, 0, 0, bucket(len(hidden)) - len(hidden)))
    return F.linear(padded, weight, bias)[: len(hidden)].to(_wide(hidden))


def _wide(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _softmax_without_target(
    logits: torch.Tensor, target: torch.Tensor, distance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Overwrite logits [n, V] by probabilities, the target's by zero.

    Returns the probability of all other tokens together, float32[n], and log p of the target. In
    bf16 the sum of the others is far more exact than 1 - p_t where p_t is near one. `distance` is
    the target's logit minus the highest one: where p_t underflows it still tells how far it is.
    """
    if logits.device.type == "cpu":
        torch.softmax(logits, -1, out=logits)
    else:
        logits.copy_(torch.softmax(logits, -1))
    probability = logits.gather(1, target)[:, 0].float()
    far = torch.log(probability)
    small = torch.nonzero(probability < 1e-30)[:, 0]
    if len(small):
        far[small] = distance[small].float() + torch.log(logits[small].amax(-1).float())
    # Not scatter_, which copies the whole of a bf16 tensor.
    logits[torch.arange(len(logits)), target[:, 0]] = 0.0
    others = logits.sum(-1).float().clamp(max=1.0)
    return others, torch.where(others < 0.5, torch.log1p(-others), far)


def _is_top(
    logits: torch.Tensor, top: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Whether the target is the token that argmax picks, where `top` says that its logit is the
    highest. Finding a maximum's value is much cheaper than its place, so the place is looked for
    only there."""
    candidates = torch.nonzero(top)[:, 0]
    if len(candidates):
        top[candidates] = logits[rows[candidates]].max(-1).indices == targets[candidates]
    return top
