"""Continue a prompt, token by token, with the model as the trainer has it.

Plain and small: it serves training loops that look at samples. Chat has its own room.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from shammah.ports.training_client import SamplingParams


@torch.no_grad()
def sample_tokens(model: Any, prompt: Sequence[int], params: SamplingParams) -> tuple[int, ...]:
    """New tokens after `prompt`, without the stop token; greedy at temperature 0.

    Random numbers come from a generator of `params.seed` on the CPU, so that a seed gives the same
    tokens on every device that gives the same logits.
    """
    device = next(model.parameters()).device
    generator = torch.Generator()
    if params.seed is not None:
        generator.manual_seed(params.seed)
    else:
        generator.seed()
    ids, cache, new = torch.tensor([list(prompt)], device=device), None, []
    for _ in range(params.max_tokens):
        output = model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits = output.logits[0, -1].float().cpu()
        if params.temperature > 0:
            chances = torch.softmax(logits / params.temperature, -1)
            token = int(torch.multinomial(chances, 1, generator=generator))
        else:
            token = int(logits.argmax())
        if token in params.stop_tokens:
            break
        new.append(token)
        ids = torch.tensor([[token]], device=device)
    return tuple(new)
