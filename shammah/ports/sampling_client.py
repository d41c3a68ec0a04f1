"""Tokens drawn from a model, and how likely a model finds tokens.

Log-probabilities are the model's own, in nats: of the whole distribution at temperature 1, before
top-k and top-p leave tokens out, whatever the tokens were drawn with. So they are those that
training compares with, and those that `compute_logprobs` gives for the same tokens. Knows no
tensor library but numpy.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from shammah.errors import DataError
from shammah.ports.datum import ModelInput

StopReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to draw a continuation. Temperature 0 is greedy; `top_k` 0 and `top_p` 1 leave all
    tokens in.

    A sample ends with one of `stop_tokens`, or with the token that completes one of `stop_texts`.
    A seed gives the same samples again; of several, sample i is drawn from a seed that follows from
    it and i alone. None draws fresh ones.

    Raises:
        DataError: a value is out of range.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    seed: int | None = None
    stop_tokens: tuple[int, ...] = ()
    stop_texts: tuple[str, ...] = ()
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        for name, right in (
            ("max_tokens", self.max_tokens >= 1),
            ("temperature", 0.0 <= self.temperature < float("inf")),
            ("seed", self.seed is None or self.seed >= 0),
            ("top_p", 0.0 < self.top_p <= 1.0),
            ("top_k", self.top_k >= 0),
        ):
            if not right:
                raise DataError(f"{name} cannot be {getattr(self, name)}.")


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A token as it comes. `stop_reason` is set at the last one alone."""

    token: int
    logprob: float
    stop_reason: StopReason | None = None


@dataclass(frozen=True, slots=True)
class TokensWithLogprobs:
    """A sample: n tokens and the log-probability of each, in nats.

    `stop_reason` is `stop` where the model ended it and `length` where `max_tokens` or the context
    did. The stop token belongs to it, being a choice of the model like the others;
    `answer_tokens` is without it.

    Raises:
        DataError: there are not as many log-probabilities as tokens, or one is none.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop_reason: StopReason
    stop_token: int | None = None
    """The last token, where it is one of `SamplingParams.stop_tokens`."""

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.logprobs):
            raise DataError(f"{len(self.tokens)} tokens with {len(self.logprobs)} logprobs.")
        # A quantised head may round the probability of the only token above one.
        wrong = [value for value in self.logprobs if not -np.inf < value <= 1e-3]
        if wrong:
            raise DataError(f"A logprob is {wrong[0]}; it has to be finite and 0 or less.")
        if self.stop_reason not in ("stop", "length"):
            raise DataError(f"A sample ends by stop or length, not {self.stop_reason!r}.")
        if self.stop_token is not None and self.tokens[-1:] != (self.stop_token,):
            raise DataError(f"The last of {len(self.tokens)} tokens is not {self.stop_token}.")

    @property
    def answer_tokens(self) -> tuple[int, ...]:
        """The tokens without the stop token."""
        return self.tokens if self.stop_token is None else self.tokens[:-1]

    def __len__(self) -> int:
        return len(self.tokens)


class SamplingClient(Protocol):
    """Something that continues prompts, with one model and at most one adapter."""

    async def sample(
        self, prompt: ModelInput, params: SamplingParams, n: int = 1
    ) -> tuple[TokensWithLogprobs, ...]:
        """n continuations of a prompt.

        Raises:
            SamplingError: the prompt is empty, holds an image the model cannot see, or leaves no
                room in the context; or the backend fails.
        """
        ...

    def stream(self, prompt: ModelInput, params: SamplingParams) -> AsyncIterator[SampledToken]:
        """The tokens of one continuation as they are drawn: those that `sample` gives. Dropping
        the iteration ends the drawing. The iteration raises what `sample` does.
        """
        ...

    async def compute_logprobs(self, model_input: ModelInput) -> NDArray[np.float32]:
        """The log-probability of each token after those before it, float32[T]. The first is nan:
        nothing comes before it.

        Raises:
            SamplingError: as `sample`, with room for the input alone.
        """
        ...


class Scoring(Protocol):
    """Something that says how likely it finds tokens: a `SamplingClient`, or less than that."""

    async def compute_logprobs(self, model_input: ModelInput) -> NDArray[np.float32]:
        """As `SamplingClient.compute_logprobs`."""
        ...


@runtime_checkable
class BatchSampling(Protocol):
    """A `SamplingClient` that continues several prompts faster together."""

    async def sample_batch(
        self, requests: Sequence[tuple[ModelInput, SamplingParams, int]]
    ) -> tuple[tuple[TokensWithLogprobs, ...], ...]:
        """What `sample` gives for each (prompt, params, n), in their order. Where a number format
        rounds by how much is computed together, two tokens that are about equally likely may change
        places.

        Raises:
            SamplingError: as there, for any of them.
        """
        ...


@runtime_checkable
class TopLogprobs(Protocol):
    """A `SamplingClient` that tells the likeliest tokens of a whole distribution."""

    async def compute_top_logprobs(
        self, model_input: ModelInput, k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k likeliest tokens after each of T tokens, likeliest first, int64[T, k], and their
        log-probabilities, float32[T, k].

        Raises:
            SamplingError: as `compute_logprobs`, and where k is not in the vocabulary.
        """
        ...


@runtime_checkable
class Identified(Protocol):
    """Something that says which model it asks, so that it can be told from others."""

    def identity(self) -> str:
        """The model and its adapter as they are now; the same in every process."""
        ...


@runtime_checkable
class BatchLogprobs(Protocol):
    """A `SamplingClient` that computes the log-probabilities of several inputs faster together."""

    async def compute_logprobs_batch(
        self, inputs: Sequence[ModelInput]
    ) -> tuple[NDArray[np.float32], ...]:
        """What `compute_logprobs` gives for each, in their order.

        Raises:
            SamplingError: as there, for any of them.
        """
        ...
