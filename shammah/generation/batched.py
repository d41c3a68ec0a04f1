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

from torch import Tensor
from transformers.cache_utils import Cache

from shammah.errors import GenerationError
from shammah.generation.decoding import Drawn, TokenDecoder
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

    Raises:
        GenerationError: the model's rows cannot be of different lengths.
    """

    def __init__(self, decoder: TokenDecoder, state: AdapterState) -> None:
        if not decoder.uneven:
            raise GenerationError("This model answers one prompt at a time.")
        self._decoder = decoder
        self._state = state
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
        logits, cache = self._decoder.read(prompt, self._state)
        row = _Row(number, sampler, limit, frozenset(stop_tokens), cache, 0, len(prompt))
        self._rows[number] = row
        return self._draw(row, logits)

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
        found = []
        for row, scores in zip(rows, logits, strict=True):
            row.length += 1
            found.append(self._draw(row, scores))
        return found

    def end(self, number: int) -> None:
        """Take a row out, for a reason of the caller's."""
        self._rows.pop(number, None)

    def _draw(self, row: _Row, logits: Tensor) -> Drawn:
        row.last = row.sampler.draw(logits)
        row.drawn += 1
        ended = row.last in row.stop_tokens
        if ended or row.drawn == row.limit:
            del self._rows[row.number]
        return Drawn(row.number, row.last, float("nan"), ended)

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
