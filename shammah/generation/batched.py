"""Rows after different prompts, decoded together: one forward pass gives a token of each.

1. A prompt is read by itself, as if it were alone, and its first token is drawn.
2. What was read joins the rows at work. All end at the same place; the shorter ones have padding on
   the left, which no row sees, and each counts its positions from its own beginning.
3. A step reads the last token of each row and draws the next.
4. A row that has ended is taken out, and another may take its place.

A row's tokens are those it would have alone. In fp32 that holds to the token; in bf16 the last bits
of a product depend on how many rows are computed with it, so that two tokens that are about equally
likely may change places. Knows tokens and caches, no text. One thread at a time, without gradients.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from shammah.errors import GenerationError
from shammah.generation.decoding import Drawn, TokenDecoder, token_logprobs
from shammah.generation.lora import AdapterState
from shammah.generation.sampling import Sampler


@dataclass(slots=True)
class _Row:
    """`length` positions of the cache are its own; its last token is not among them yet."""

    number: int
    sampler: Sampler
    limit: int
    stop_tokens: frozenset[int]
    cache: Cache
    at: int
    length: int
    last: int = 0
    drawn: int = 0


class RowBatch:
    """Rows that are decoded together, with one adapter.

    Args:
        decoder: what runs the model.
        state: the adapter.
        logprobs: whether the tokens' log-probabilities are wanted.

    Raises:
        GenerationError: the model's rows cannot be of different lengths.
    """

    def __init__(
        self, decoder: TokenDecoder, state: AdapterState, *, logprobs: bool = False
    ) -> None:
        if not decoder.uneven:
            raise GenerationError("This model answers one prompt at a time.")
        self._decoder = decoder
        self._state = state
        self._logprobs = logprobs
        self._rows: dict[int, _Row] = {}
        self._joined: tuple[int, ...] = ()
        """The rows that `_cache` holds, in its order."""
        self._cache: Cache | None = None

    def __len__(self) -> int:
        """How many rows go on."""
        return len(self._rows)

    def __contains__(self, number: object) -> bool:
        """Whether this row goes on."""
        return number in self._rows

    def add(
        self,
        number: int,
        prompt: Sequence[int],
        sampler: Sampler,
        *,
        limit: int,
        stop_tokens: Collection[int],
    ) -> Drawn:
        """Read a prompt and draw its first token.

        Args:
            number: what the row is called; of no row that goes on.
            prompt: at least one token.
            sampler: of this row alone.
            limit: tokens at most, at least 1.
            stop_tokens: tokens that end it.
        """
        return self.add_group(number, prompt, [sampler], limit=limit, stop_tokens=stop_tokens)[0]

    def add_group(
        self,
        first: int,
        prompt: Sequence[int],
        samplers: Sequence[Sampler],
        *,
        limit: int,
        stop_tokens: Collection[int],
    ) -> list[Drawn]:
        """Rows `first`, `first + 1`, ... after one prompt, read once; the rest as in `add`."""
        logits, cache = self._decoder.read(prompt, self._state)
        stops = frozenset(stop_tokens)
        rows = [
            _Row(first + at, sampler, limit, stops, cache, 0, len(prompt))
            for at, sampler in enumerate(samplers)
        ]
        self._rows.update((row.number, row) for row in rows)
        return self._drawn(rows, logits.expand(len(rows), -1))

    def step(self) -> list[Drawn]:
        """The next token of each row that goes on, in the order in which they came."""
        if not self._rows:
            return []
        self._join()
        rows = list(self._rows.values())
        assert self._cache is not None
        lengths = [row.length for row in rows]
        logits = self._decoder.forward(
            [[row.last] for row in rows], self._cache, self._state, lengths=lengths
        )
        for row in rows:
            row.length += 1
        return self._drawn(rows, logits)

    def end(self, number: int) -> None:
        """Take a row out, for a reason of the caller's."""
        self._rows.pop(number, None)

    def _drawn(self, rows: Sequence[_Row], logits: Tensor) -> list[Drawn]:
        """The next token of each row, from logits [rows, vocabulary]."""
        tokens = [row.sampler.draw(scores) for row, scores in zip(rows, logits, strict=True)]
        if self._logprobs:
            values = token_logprobs(logits, torch.tensor(tokens)).tolist()
        else:
            values = [float("nan")] * len(rows)
        found = []
        for row, token, value in zip(rows, tokens, values, strict=True):
            row.last = token
            row.drawn += 1
            ended = token in row.stop_tokens
            if ended or row.drawn == row.limit:
                del self._rows[row.number]
            found.append(Drawn(row.number, token, value, ended))
        return found

    def _join(self) -> None:
        """Have one cache hold exactly the rows that go on, and no more padding than they need."""
        numbers = tuple(self._rows)
        if numbers == self._joined:
            return
        rows = list(self._rows.values())
        self._cache = self._decoder.gather([(row.cache, row.at, row.length) for row in rows])
        for at, row in enumerate(rows):
            row.cache, row.at = self._cache, at
        self._joined = numbers
