"""Tokens after a prompt, one forward pass for each. Knows the model and its caches, no text.

1. Take over what the prefix cache holds of the prompt.
2. Read the rest of the prompt in chunks, once for all rows.
3. Draw a token for each row, give them out, read them, until each row has a reason to end.
4. Keep what was read for the next prompt.

Several rows continue one prompt, so that they always have the same length: nothing is padded, and a
row that has ended is taken out (`batched` has rows of different prompts). One thread at a time,
without gradients.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from shammah.generation.answer import StopReason
from shammah.generation.cache import (
    PrefixCache,
    can_repeat,
    can_stand_beside,
    new_cache,
    repeated,
    side_by_side,
)
from shammah.generation.kernels import one_row
from shammah.generation.lora import AdapterSlot, AdapterState
from shammah.generation.sampling import Sampler
from shammah.models.load import BaseModel

CHUNK = 256
"""Prompt tokens read at once; between chunks a stop is heard."""
LOGITS_BYTES = 64 << 20
"""Size of the logits of all positions that are looked at together, in float32."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token of a row. `logprob` is the model's own, in nats, and nan where it was not asked for;
    `ended` says that it is a stop token."""

    row: int
    token: int
    logprob: float
    ended: bool


class TokenDecoder:
    """Decodes with one model.

    Args:
        base: the model.
        slot: where its layers look for an adapter.
    """

    def __init__(self, base: BaseModel, slot: AdapterSlot) -> None:
        self._model = base.model
        self._device = base.device
        self._slot = slot
        self._config = base.model.config
        self._prefix = PrefixCache(self._config)
        self._one_row = base.device == "cpu" and base.dtype in (torch.bfloat16, torch.float16)
        parameters = inspect.signature(base.model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        self.batches = can_repeat(new_cache(self._config))
        """Whether a run may have several rows."""
        self.pads = _pads(self._config)
        """Whether a row comes out the same beside a longer one."""
        self.uneven = (
            self.pads
            and {"attention_mask", "position_ids"} <= parameters.keys()
            and can_stand_beside(new_cache(self._config))
        )
        """Whether rows of different lengths can be decoded together."""

    def start(
        self,
        prompt: Sequence[int],
        state: AdapterState,
        *samplers: Sampler,
        limit: int,
        stop_tokens: Collection[int],
        stopped: Callable[[], bool],
        aside: bool = False,
        logprobs: bool = False,
    ) -> TokenRun:
        """Begin to decode; the run's tokens are computed as they are asked for.

        Args:
            prompt: at least one token.
            state: the adapter, for all of the run.
            samplers: one for each row.
            limit: tokens of a row at most, at least 1.
            stop_tokens: tokens that end a row.
            stopped: asked before each forward pass.
            aside: neither use nor change the prefix cache.
            logprobs: whether the tokens' log-probabilities are wanted.
        """
        prefix = PrefixCache(self._config) if aside else self._prefix
        return TokenRun(
            self, prefix, prompt, state, samplers, limit, frozenset(stop_tokens), stopped, logprobs
        )

    def forward(
        self,
        rows: Sequence[Sequence[int]],
        cache: Cache,
        state: AdapterState,
        *,
        all: bool = False,
        lengths: Sequence[int] = (),
    ) -> Tensor:
        """Logits [rows, vocabulary] after the tokens of each row, which the cache holds from then
        on; with `all` [rows, tokens, vocabulary] after each of them.

        Args:
            lengths: how many of the last positions that the cache holds are each row's own, where
                that is not the same of all; each row then has one token.
        """
        inputs = torch.tensor(rows, device=self._device)
        placed = self._placed(lengths) if lengths else {}
        self._slot.layers = state.layers
        with one_row(self._one_row and inputs.numel() == 1):
            out = self._model(
                input_ids=inputs,
                past_key_values=cache,
                use_cache=True,
                **({} if all else self._last_only),
                **placed,
            )
        logits: Tensor = out.logits
        return logits if all else logits[:, -1]

    def _placed(self, lengths: Sequence[int]) -> dict[str, Tensor]:
        """Where in its row each next token stands, and which positions it sees."""
        own = torch.tensor(lengths)[:, None]
        longest = int(own.max())
        seen = torch.arange(longest + 1)[None] >= longest - own
        return {
            "position_ids": own.to(self._device),
            "attention_mask": seen.long().to(self._device),
        }

    def logprobs(
        self, tokens: Sequence[int], state: AdapterState, stopped: Callable[[], bool]
    ) -> Tensor:
        """The log-probability of each token after those before it, float32[T] on the CPU; the
        first is nan. Where it is stopped, the rest are nan too."""
        found = torch.full((len(tokens),), float("nan"))
        cache = new_cache(self._config)
        size = min(CHUNK, self.positions)
        # Nothing follows the last token.
        for start in range(0, len(tokens) - 1, size):
            if stopped():
                break
            part = tokens[start : min(start + size, len(tokens) - 1)]
            logits = self.forward([part], cache, state, all=True)[0]
            next_tokens = torch.tensor(tokens[start + 1 : start + 1 + len(part)])
            found[start + 1 : start + 1 + len(part)] = token_logprobs(logits, next_tokens)
        return found

    def top_logprobs(
        self, tokens: Sequence[int], state: AdapterState, k: int, stopped: Callable[[], bool]
    ) -> tuple[Tensor, Tensor] | None:
        """The k likeliest tokens after each token, int64[T, k], and their log-probabilities,
        float32[T, k], on the CPU; None where it is stopped."""
        parts: list[tuple[Tensor, Tensor]] = []
        cache = new_cache(self._config)
        size = min(CHUNK, self.positions)
        for start in range(0, len(tokens), size):
            if stopped():
                return None
            scores = self.forward([tokens[start : start + size]], cache, state, all=True)[0].float()
            highest, found = scores.topk(k, -1)
            parts.append((found.cpu(), (highest - scores.logsumexp(-1, keepdim=True)).cpu()))
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def logprobs_batch(self, rows: Sequence[Sequence[int]], state: AdapterState) -> list[Tensor]:
        """What `logprobs` gives for each of several rows, each of two tokens at least, by one
        forward pass. Memory is that of the logits of `rows` times the longest."""
        # Padding stands on the right, where a causal model does not see it.
        inputs = [torch.tensor(row[:-1]) for row in rows]
        ids = torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True).to(self._device)
        self._slot.layers = state.layers
        logits: Tensor = self._model(input_ids=ids, use_cache=False).logits
        found = []
        for row, scores in zip(rows, logits, strict=True):
            values = torch.full((len(row),), float("nan"))
            values[1:] = token_logprobs(scores[: len(row) - 1], torch.tensor(row[1:]))
            found.append(values)
        return found

    @property
    def positions(self) -> int:
        """How many positions' logits are looked at together."""
        vocabulary = self._model.get_output_embeddings().weight.shape[0]
        return int(max(16, LOGITS_BYTES // (4 * vocabulary)))

    def read(self, prompt: Sequence[int], state: AdapterState) -> tuple[Tensor, Cache]:
        """Logits [vocabulary] after a prompt, and a cache that holds it."""
        cache = new_cache(self._config)
        for start in range(0, len(prompt), CHUNK):
            logits = self.forward([prompt[start : start + CHUNK]], cache, state)
        return logits[0], cache

    def gather(self, rows: Sequence[tuple[Cache, int, int]]) -> Cache:
        """See `cache.side_by_side`."""
        return side_by_side(self._config, rows)

    def forget(self) -> None:
        """Drop the prefix cache."""
        self._prefix.clear()


class TokenRun:
    """The tokens of some rows after one prompt. `reused` prompt tokens were in the cache;
    `reasons` says of each row why it ended, once it has."""

    def __init__(
        self,
        decoder: TokenDecoder,
        prefix: PrefixCache,
        prompt: Sequence[int],
        state: AdapterState,
        samplers: Sequence[Sampler],
        limit: int,
        stop_tokens: frozenset[int],
        stopped: Callable[[], bool],
        logprobs: bool,
    ) -> None:
        self.reused = 0
        self.reasons: list[StopReason] = ["cut"] * len(samplers)
        self._decoder = decoder
        self._prefix = prefix
        self._prompt = list(prompt)
        self._state = state
        self._samplers = samplers
        self._limit = limit
        self._stop_tokens = stop_tokens
        self._stopped = stopped
        self._logprobs = logprobs

    @property
    def reason(self) -> StopReason:
        """Why the first row ended."""
        return self.reasons[0]

    def tokens(self) -> Iterator[int]:
        """Token ids of the only row, without the one that stops it. Closing the iterator keeps the
        cache and leaves `reason` as `cut`."""
        steps = self.steps()
        try:
            for (drawn,) in steps:
                if not drawn.ended:
                    yield drawn.token
        finally:
            steps.close()  # type: ignore[attr-defined]

    def end(self, row: int) -> None:
        """End a row for a reason of the caller's; its last token is that given out last."""
        self.reasons[row] = "end"

    def steps(self) -> Iterator[list[Drawn]]:
        """A token of each row that goes on, step by step."""
        decoder, generation = self._decoder, self._state.generation
        cache, self.reused = self._prefix.take(generation, self._prompt)
        held = self._prompt[: self.reused]
        try:
            logits = None
            while len(held) < len(self._prompt):
                if self._stopped():
                    return
                part = self._prompt[len(held) : len(held) + CHUNK]
                logits = decoder.forward([part], cache, self._state)
                held.extend(part)
            assert logits is not None  # the cache never holds the whole prompt
            rows = list(range(len(self._samplers)))
            alone = len(rows) == 1
            # What several rows say is not kept, the prompt is.
            own = cache if alone else repeated(cache, len(rows))
            logits = logits.expand(len(rows), -1)
            for number in range(1, self._limit + 1):
                if self._stopped():
                    return
                drawn = self._draw(rows, logits)
                for one in drawn:
                    if one.ended:
                        self.reasons[one.row] = "end"
                    elif number == self._limit:
                        self.reasons[one.row] = "length"
                yield drawn
                going = [at for at, row in enumerate(rows) if self.reasons[row] == "cut"]
                if not going:
                    return
                if self._stopped():
                    return
                if len(going) < len(rows):
                    own.batch_select_indices(torch.tensor(going, device=decoder._device))
                    rows = [rows[at] for at in going]
                logits = decoder.forward([[drawn[at].token] for at in going], own, self._state)
                if alone:
                    held.append(drawn[0].token)
        except GeneratorExit:
            raise
        except BaseException:
            held.clear()  # a layer may have read what the next has not
            raise
        finally:
            if held:
                self._prefix.keep(generation, held, cache)

    def _draw(self, rows: Sequence[int], logits: Tensor) -> list[Drawn]:
        tokens = [
            self._samplers[row].draw(scores) for row, scores in zip(rows, logits, strict=True)
        ]
        if self._logprobs:
            logprobs = token_logprobs(logits, torch.tensor(tokens)).tolist()
        else:
            logprobs = [float("nan")] * len(rows)
        return [
            Drawn(row, token, logprob, token in self._stop_tokens)
            for row, token, logprob in zip(rows, tokens, logprobs, strict=True)
        ]


def _pads(config: Any) -> bool:
    """Not where the angles of the positions depend on the longest row."""
    rope = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    # One set of parameters, or one for each kind of layer.
    sets = [rope, *(each for each in rope.values() if isinstance(each, dict))]
    return all(each.get("rope_type") not in ("dynamic", "longrope") for each in sets)


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Of a token in each row of logits [n, vocabulary], float32[n] on the CPU."""
    scores = logits.float()
    own = scores.gather(-1, tokens.to(scores.device)[:, None])[:, 0]
    return (own - scores.logsumexp(-1)).cpu()
