"""Tokens after a prompt, one forward pass each. Knows the model and its caches, no text.

1. Take over what the prefix cache holds of the prompt.
2. Read the rest of the prompt in chunks.
3. Draw a token, give it out, read it, until there is a reason to end.
4. Keep what was read for the next prompt.

One thread at a time, in `torch.inference_mode`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from shammah.generation.answer import StopReason
from shammah.generation.cache import PrefixCache
from shammah.generation.kernels import one_row
from shammah.generation.lora import AdaptableModel, AdapterState
from shammah.generation.sampling import Sampler
from shammah.models.load import BaseModel

CHUNK = 256
"""Prompt tokens read at once; between chunks a stop is heard."""


class TokenDecoder:
    """Decodes with one model.

    Args:
        base: the model.
        adaptable: the same model's adapter slot.
    """

    def __init__(self, base: BaseModel, adaptable: AdaptableModel) -> None:
        self._model = base.model
        self._device = base.device
        self._slot = adaptable.slot
        self._config = base.model.config
        self._prefix = PrefixCache(self._config)
        self._one_row = base.device == "cpu" and base.dtype in (torch.bfloat16, torch.float16)
        parameters = inspect.signature(base.model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}

    def start(
        self,
        prompt: Sequence[int],
        state: AdapterState,
        sampler: Sampler,
        *,
        limit: int,
        stop_tokens: Collection[int],
        stopped: Callable[[], bool],
        aside: bool = False,
    ) -> TokenRun:
        """Begin to decode; the run's tokens are computed as they are asked for.

        Args:
            prompt: at least one token.
            state: the adapter, for all of the run.
            limit: tokens at most, at least 1.
            stop_tokens: tokens that end the run and are not given out.
            stopped: asked before each forward pass.
            aside: neither use nor change the prefix cache.
        """
        prefix = PrefixCache(self._config) if aside else self._prefix
        return TokenRun(
            self, prefix, prompt, state, sampler, limit, frozenset(stop_tokens), stopped
        )

    def forward(self, tokens: Sequence[int], cache: Cache) -> Tensor:
        """Logits [vocabulary] after `tokens`, which the cache holds from then on."""
        inputs = torch.tensor([tokens], device=self._device)
        with one_row(self._one_row and len(tokens) == 1):
            out = self._model(
                input_ids=inputs, past_key_values=cache, use_cache=True, **self._last_only
            )
        logits: Tensor = out.logits
        return logits[0, -1]

    def forget(self) -> None:
        """Drop the prefix cache."""
        self._prefix.clear()


class TokenRun:
    """The tokens of one answer. `reused` prompt tokens were in the cache; `reason` says why it
    ended, once it has."""

    def __init__(
        self,
        decoder: TokenDecoder,
        prefix: PrefixCache,
        prompt: Sequence[int],
        state: AdapterState,
        sampler: Sampler,
        limit: int,
        stop_tokens: frozenset[int],
        stopped: Callable[[], bool],
    ) -> None:
        self.reused = 0
        self.reason: StopReason = "cut"
        self._decoder = decoder
        self._prefix = prefix
        self._prompt = list(prompt)
        self._state = state
        self._sampler = sampler
        self._limit = limit
        self._stop_tokens = stop_tokens
        self._stopped = stopped

    def tokens(self) -> Iterator[int]:
        """Token ids. Closing the iterator keeps the cache and leaves `reason` as `cut`."""
        decoder = self._decoder
        generation = self._state.generation
        decoder._slot.layers = self._state.layers
        cache, self.reused = self._prefix.take(generation, self._prompt)
        held = self._prompt[: self.reused]

        def read(tokens: list[int]) -> Tensor:
            logits = decoder.forward(tokens, cache)
            held.extend(tokens)
            return logits

        try:
            logits = None
            while len(held) < len(self._prompt):
                if self._stopped():
                    return
                logits = read(self._prompt[len(held) : len(held) + CHUNK])
            assert logits is not None  # the cache never holds the whole prompt
            for number in range(1, self._limit + 1):
                if self._stopped():
                    return
                token = self._sampler.draw(logits)
                if token in self._stop_tokens:
                    self.reason = "end"
                    return
                if number == self._limit:
                    self.reason = "length"
                yield token
                if number < self._limit and not self._stopped():
                    logits = read([token])
        except GeneratorExit:
            raise
        except BaseException:
            held.clear()  # a layer may have read what the next has not
            raise
        finally:
            if held:
                self._prefix.keep(generation, held, cache)
