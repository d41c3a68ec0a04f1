"""From the scores of the next token to a token. Knows logits, no model and no text.

Draws happen on the CPU from a generator of the answer's own, so that a seed gives the same answer
whatever else the process draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shammah.generation.params import GenerationParams

_CANDIDATES = 1024


class Sampler:
    """Draws the tokens of one answer.

    Args:
        params: how to draw.
        prompt: the prompt's tokens, which the repetition penalty counts as seen.
        seed: where `params` has none.
    """

    def __init__(self, params: GenerationParams, prompt: Sequence[int], seed: int = 0) -> None:
        self._params = params
        self._generator = torch.Generator()
        self._generator.manual_seed(params.seed if params.seed is not None else seed)
        self._known = set(prompt) if params.repetition_penalty != 1.0 else set()
        self._seen = torch.tensor(sorted(self._known), dtype=torch.long)

    def draw(self, logits: Tensor) -> int:
        """The next token.

        Args:
            logits: float, [vocabulary], on any device.
        """
        penalty = self._params.repetition_penalty
        if penalty == 1.0 and self._params.temperature == 0.0:
            return int(logits.argmax())
        scores = logits.float().cpu()
        if penalty != 1.0:
            scores = scores.clone()
            seen = scores[self._seen]
            scores[self._seen] = torch.where(seen > 0, seen / penalty, seen * penalty)
        if self._params.temperature == 0.0:
            token = int(scores.argmax())
        else:
            tokens, probabilities = candidates(scores, self._params)
            cumulative = probabilities.double().cumsum(0)
            point = torch.rand(1, generator=self._generator, dtype=torch.float64)
            at = int(torch.searchsorted(cumulative, point * cumulative[-1], right=True))
            token = int(tokens[min(at, len(tokens) - 1)])
        if penalty != 1.0 and token not in self._known:
            self._known.add(token)
            self._seen = torch.cat([self._seen, torch.tensor([token])])
        return token


def candidates(scores: Tensor, params: GenerationParams) -> tuple[Tensor, Tensor]:
    """The tokens that may be drawn and their probabilities, which sum to 1.

    Top-k keeps the k likeliest; top-p (Holtzman et al. 2019, arXiv 1904.09751) then keeps the
    fewest of them whose probabilities reach p, the likeliest always.

    Args:
        scores: float32, [vocabulary], on the CPU.

    Returns:
        Token ids int64[n] and probabilities float32[n]; likeliest first unless all tokens are in.
    """
    scores = scores / params.temperature
    size = scores.shape[0]
    top_k = min(params.top_k, size) if params.top_k else size
    if top_k == size and params.top_p == 1.0:
        return torch.arange(size), scores.softmax(0)
    if top_k < size:
        values, tokens = scores.topk(top_k)
        total = values.logsumexp(0)
    else:
        # The nucleus is nearly always among the likeliest tokens; sorting all of a large
        # vocabulary would take longer than the model.
        values, tokens = scores.topk(min(_CANDIDATES, size))
        total = scores.logsumexp(0)
        if float((values - total).exp().sum()) < params.top_p:
            values, tokens = scores.sort(descending=True)
    probabilities = (values - total).exp()
    if params.top_p < 1.0:
        before = probabilities.cumsum(0) - probabilities
        count = max(int((before < params.top_p).sum()), 1)
        tokens, probabilities = tokens[:count], probabilities[:count]
    return tokens, probabilities / probabilities.sum()
