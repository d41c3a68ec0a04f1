"""How likely a model finds the answers of a data set: negative log-likelihood, perplexity, which of
two answers it prefers, and which of several it would choose.

Through the `SamplingClient` port, so that gradients, the optimiser and a live chat are never
touched. Only learned tokens count, as the renderer marks them: by default the last answer with the
token that ends it. Everything is in nats. What cannot be computed is reported in its place, and the
rest goes on. Knows no metric of an answer's text.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from shammah.datasets.formatters.base import ChatExample
from shammah.errors import DataError, InputError, ModelError, SamplingError
from shammah.messages import Conversation, assistant
from shammah.ports.datum import ModelInput
from shammah.ports.sampling_client import BatchLogprobs, SamplingClient
from shammah.renderers.base import Renderer, TrainOnWhat

BATCH = 256
"""Examples that are read from the data and given to the model together. What it really computes
together it decides itself, by their lengths."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Of one conversation: n learned tokens and the log-probability of each, float32[n].

    The first token of all has nothing before it and is never among them. `place` says where the
    example is from. `problem` says why there are no numbers, where there are none.

    Raises:
        DataError: there are neither tokens nor a problem, or not as many of one as of the other.
    """

    token_ids: tuple[int, ...]
    logprobs: NDArray[np.float32]
    place: str = ""
    problem: str | None = None

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.logprobs):
            raise DataError(f"{len(self.token_ids)} tokens, {len(self.logprobs)} logprobs.")
        if bool(self.token_ids) == (self.problem is not None):
            raise DataError("A likelihood is of tokens, or says why it is of none.")

    @property
    def tokens(self) -> int:
        return len(self.token_ids)

    @property
    def nll(self) -> float:
        """-sum(log p): of the whole answer; nan where there is a problem."""
        return -float(self.logprobs.sum(dtype=np.float64)) if self.tokens else math.nan

    @property
    def nll_per_token(self) -> float:
        return self.nll / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp(nll per token)."""
        return _exp(self.nll_per_token)


@dataclass(frozen=True, slots=True)
class LikelihoodTotal:
    """Of all conversations that were counted. Without one that has numbers, the figures are nan."""

    examples: int = 0
    failed: int = 0
    tokens: int = 0
    nll: float = 0.0
    nll_per_token_sum: float = 0.0

    def add(self, one: Likelihood) -> LikelihoodTotal:
        """The total with one more; a failed one is counted as such, and else not."""
        if one.problem is not None:
            return replace(self, failed=self.failed + 1)
        return LikelihoodTotal(
            self.examples + 1,
            self.failed,
            self.tokens + one.tokens,
            self.nll + one.nll,
            self.nll_per_token_sum + one.nll_per_token,
        )

    @property
    def nll_per_example(self) -> float:
        """The mean over examples of -log p of the whole answer."""
        return self.nll / self.examples if self.examples else math.nan

    @property
    def nll_per_token(self) -> float:
        """Over all tokens: a long answer counts more."""
        return self.nll / self.tokens if self.tokens else math.nan

    @property
    def mean_nll_per_token(self) -> float:
        """The mean over examples of their nll per token: every answer counts alike."""
        return self.nll_per_token_sum / self.examples if self.examples else math.nan

    @property
    def perplexity(self) -> float:
        """exp(nll per token), over all tokens."""
        return _exp(self.nll_per_token)

    def to_dict(self) -> dict[str, float | int | None]:
        """The figures as JSON, which has no nan and no infinity."""
        return {
            "examples": self.examples,
            "failed": self.failed,
            "tokens": self.tokens,
            "nll_per_example": _finite(self.nll_per_example),
            "nll_per_token": _finite(self.nll_per_token),
            "mean_nll_per_token": _finite(self.mean_nll_per_token),
            "perplexity": _finite(self.perplexity),
        }


@dataclass(frozen=True, slots=True)
class PairLikelihood:
    """Of a preferred answer and one that was not."""

    chosen: Likelihood
    rejected: Likelihood

    @property
    def place(self) -> str:
        return self.chosen.place

    @property
    def problem(self) -> str | None:
        return self.chosen.problem or self.rejected.problem

    @property
    def margin(self) -> float:
        """log p(chosen) - log p(rejected), of the whole answers. Longer ones are less likely."""
        return self.rejected.nll - self.chosen.nll

    @property
    def margin_per_token(self) -> float:
        """The same of the means over tokens."""
        return self.rejected.nll_per_token - self.chosen.nll_per_token


@dataclass(frozen=True, slots=True)
class PreferenceTotal:
    """Of all pairs that were counted. An answer is preferred where its margin is above 0, so that a
    model that finds both alike prefers none. Without a pair the figures are nan."""

    pairs: int = 0
    failed: int = 0
    preferred: int = 0
    preferred_per_token: int = 0
    margin_sum: float = 0.0
    margin_per_token_sum: float = 0.0

    def add(self, pair: PairLikelihood) -> PreferenceTotal:
        """The total with one more; a failed one is counted as such, and else not."""
        if pair.problem is not None:
            return replace(self, failed=self.failed + 1)
        return PreferenceTotal(
            self.pairs + 1,
            self.failed,
            self.preferred + (pair.margin > 0),
            self.preferred_per_token + (pair.margin_per_token > 0),
            self.margin_sum + pair.margin,
            self.margin_per_token_sum + pair.margin_per_token,
        )

    @property
    def accuracy(self) -> float:
        """How often the chosen answer is likelier as a whole."""
        return self.preferred / self.pairs if self.pairs else math.nan

    @property
    def accuracy_per_token(self) -> float:
        """How often it is likelier per token."""
        return self.preferred_per_token / self.pairs if self.pairs else math.nan

    def to_dict(self) -> dict[str, float | int | None]:
        """The figures as JSON."""
        return {
            "pairs": self.pairs,
            "failed": self.failed,
            "accuracy": _finite(self.accuracy),
            "accuracy_per_token": _finite(self.accuracy_per_token),
            "margin": self.margin_sum / self.pairs if self.pairs else None,
            "margin_per_token": self.margin_per_token_sum / self.pairs if self.pairs else None,
        }


@dataclass(frozen=True, slots=True)
class Choice:
    """How likely each of some answers to one question is. `answers` are those that were offered, in
    their order, `likelihoods` theirs."""

    answers: tuple[str, ...]
    likelihoods: tuple[Likelihood, ...]
    expected: str | None
    place: str = ""

    @property
    def problem(self) -> str | None:
        return next(filter(None, (each.problem for each in self.likelihoods)), None)

    @property
    def probabilities(self) -> dict[str, float]:
        """Of each answer, given that it is one of them: a softmax over log p of whole answers.
        Empty where there is a problem."""
        if self.problem is not None:
            return {}
        scores = np.array([-each.nll for each in self.likelihoods])
        shares = np.exp(scores - scores.max())
        return dict(zip(self.answers, map(float, shares / shares.sum()), strict=True))

    @property
    def chosen(self) -> str | None:
        """The likeliest answer, the earlier of two; None where there is a problem."""
        shares = self.probabilities
        return max(shares, key=lambda answer: shares[answer]) if shares else None

    @property
    def confidence(self) -> float:
        """The probability of the chosen answer; nan where there is a problem. With `right` it is
        what `calibration` takes."""
        return max(self.probabilities.values(), default=math.nan)

    @property
    def right(self) -> bool:
        """Whether the chosen answer is the expected one."""
        return self.chosen is not None and self.chosen == self.expected


async def likelihoods(
    client: SamplingClient,
    renderer: Renderer,
    examples: Iterable[ChatExample] | AsyncIterable[ChatExample],
    *,
    train_on: TrainOnWhat = TrainOnWhat.LAST_ASSISTANT_MESSAGE,
    batch: int = BATCH,
) -> AsyncIterator[Likelihood]:
    """The likelihood of each example, in their order, read as they are asked for.

    Args:
        client: the model, with its adapter.
        renderer: how it is spoken to.
        examples: those of a data set.
        train_on: which tokens count.
        batch: examples that are in memory together, at least 1.

    Raises:
        DataError: the batch is below 1.
        InputError, DatasetError: the data cannot be read on.
    """
    async for part in _parts(examples, batch):
        asked = [(example.messages, example.place) for example in part]
        for one in await _computed(client, renderer, asked, train_on):
            yield one


async def preferences(
    client: SamplingClient,
    renderer: Renderer,
    examples: Iterable[ChatExample] | AsyncIterable[ChatExample],
    *,
    batch: int = BATCH,
) -> AsyncIterator[PairLikelihood]:
    """The likelihoods of the chosen and the rejected answer of each example, in their order. One
    without a rejected answer is a problem.

    Args and raises: as `likelihoods`.
    """
    async for part in _parts(examples, max(1, batch // 2) if batch > 0 else batch):
        asked = [
            (conversation, example.place)
            for example in part
            for conversation in (example.messages, example.rejected or ())
        ]
        found = await _computed(client, renderer, asked, TrainOnWhat.LAST_ASSISTANT_MESSAGE)
        for chosen, rejected in zip(found[::2], found[1::2], strict=True):
            yield PairLikelihood(chosen, rejected)


async def choices(
    client: SamplingClient,
    renderer: Renderer,
    examples: Iterable[ChatExample] | AsyncIterable[ChatExample],
    answers: Sequence[str],
    *,
    batch: int = BATCH,
) -> AsyncIterator[Choice]:
    """How likely each of the same answers (labels, say) is to each question, in their order. What
    an example has for its answer is what is expected, but for blanks around it.

    Args:
        answers: at least two, which differ.

    Other args and raises: as `likelihoods`; DataError also where the answers are not right.
    """
    if len(answers) < 2 or len(set(answers)) < len(answers):
        raise DataError(f"There is nothing to choose among {list(answers)}.")
    count = len(answers)
    async for part in _parts(examples, max(1, batch // count) if batch > 0 else batch):
        asked = [
            ((*example.prompt, assistant(answer)), example.place)
            for example in part
            for answer in answers
        ]
        found = await _computed(client, renderer, asked, TrainOnWhat.LAST_ASSISTANT_MESSAGE)
        for index, example in enumerate(part):
            own = found[index * count : (index + 1) * count]
            expected = example.answer.text.strip() if example.answer else None
            yield Choice(tuple(answers), tuple(own), expected, example.place)


async def _computed(
    client: SamplingClient,
    renderer: Renderer,
    asked: Sequence[tuple[Conversation, str]],
    train_on: TrainOnWhat,
) -> list[Likelihood]:
    rendered = await asyncio.to_thread(
        lambda: [_rendered(renderer, conversation, train_on) for conversation, _ in asked]
    )
    inputs = [each[0] for each in rendered if not isinstance(each, str)]
    logprobs = iter(await _logprobs(client, inputs))
    found = []
    for (_, place), each in zip(asked, rendered, strict=True):
        values = each if isinstance(each, str) else next(logprobs)
        if isinstance(each, str) or isinstance(values, str):
            found.append(Likelihood((), np.zeros(0, np.float32), place, str(values)))
        else:
            model_input, learned = each
            ids = np.asarray(model_input.tokens)[learned]
            found.append(Likelihood(tuple(map(int, ids)), values[learned], place))
    return found


def _rendered(
    renderer: Renderer, conversation: Conversation, train_on: TrainOnWhat
) -> tuple[ModelInput, NDArray[np.int64]] | str:
    """The tokens and which of them are learned, or why there are none."""
    try:
        if not conversation:
            raise InputError("it has no such answer")
        rendered = renderer.supervised(conversation, train_on)
    except (InputError, ModelError) as error:
        return error.message
    learned = np.flatnonzero(np.asarray(rendered.weights) > 0)
    learned = learned[learned > 0]
    if not len(learned):
        return "no token of it is learned"
    # What comes after the last learned token changes nothing.
    return ModelInput.of(rendered.tokens[: learned[-1] + 1]), learned


async def _logprobs(
    client: SamplingClient, inputs: Sequence[ModelInput]
) -> list[NDArray[np.float32] | str]:
    """Together where the client can; where that fails one by one, so that one that is too long
    does not take the others with it."""
    if isinstance(client, BatchLogprobs) and len(inputs) > 1:
        try:
            return list(await client.compute_logprobs_batch(inputs))
        except SamplingError:
            pass
    found: list[NDArray[np.float32] | str] = []
    for each in inputs:
        try:
            found.append(await client.compute_logprobs(each))
        except SamplingError as error:
            found.append(error.message)
    return found


async def _parts(examples: Iterable[T] | AsyncIterable[T], size: int) -> AsyncIterator[list[T]]:
    if size < 1:
        raise DataError(f"{size} examples cannot be computed together.")
    part: list[T] = []
    async for example in _one_by_one(examples):
        part.append(example)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


async def _one_by_one(examples: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(examples, AsyncIterable):
        async for example in examples:
            yield example
    else:
        for example in examples:
            yield example


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
