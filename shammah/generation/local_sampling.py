"""The `SamplingClient` on this machine: samples and log-probabilities through the one decode loop.

n samples of a prompt are rows of one batch that share the reading of the prompt. Nothing is kept
between calls: a seed gives the same samples to the bit, whatever was sampled before. Knows tokens;
of text only what stop texts need.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from shammah.errors import SamplingError, ShammahError
from shammah.generation.batched import RowBatch
from shammah.generation.decoding import Drawn, TokenDecoder
from shammah.generation.lora import AdaptableModel, AdapterState, Weights
from shammah.generation.params import GenerationParams
from shammah.generation.sampling import Sampler
from shammah.models.load import BaseModel
from shammah.ports.datum import ModelInput
from shammah.ports.sampling_client import (
    SampledToken,
    SamplingParams,
    StopReason,
    TokensWithLogprobs,
)
from shammah.renderers.detokenize import Detokenizer, StopTexts

BACKEND = "local torch"
PADDED = 1.2
"""Positions that are computed for each that is wanted, at most, where inputs are read together."""
T = TypeVar("T")
Step = list[tuple[int, SampledToken, bool]]
"""Of each row that goes on: its number, its token, and whether that is a stop token."""

Request = tuple[ModelInput, SamplingParams, int]
"""A prompt, how to draw, and how many samples."""

_ENDS: dict[str, StopReason] = {"end": "stop", "length": "length"}


class Run(Protocol):
    """Has the thread that owns the model compute something, without gradients."""

    async def __call__(self, work: Callable[[], T], /) -> T: ...


class TokenSampling:
    """Samples and log-probabilities in the calling thread, which must be without gradients.

    Args:
        base: the model.
        decoder: what runs it.
        closed: asked before each forward pass whether to give up.
    """

    def __init__(
        self, base: BaseModel, decoder: TokenDecoder, closed: Callable[[], bool] = lambda: False
    ) -> None:
        self._base = base
        self._decoder = decoder
        self._closed = closed

    @property
    def fingerprint(self) -> str:
        """Of the base model."""
        return self._base.fingerprint

    def sample(
        self,
        prompt: ModelInput,
        params: SamplingParams,
        state: AdapterState,
        n: int = 1,
        stopped: Callable[[], bool] = lambda: False,
    ) -> tuple[TokensWithLogprobs, ...]:
        """n continuations; raises what `SamplingClient.sample` does."""
        if n > 1 and not self._decoder.batches:
            return tuple(
                self.sample(prompt, replace(params, seed=row_seed(seed, row)), state, 1, stopped)[0]
                for seed in (_seed(params),)
                for row in range(n)
            )
        rows: list[list[SampledToken]] = [[] for _ in range(n)]
        stops: list[int | None] = [None] * n
        reasons: list[StopReason | None] = [None] * n
        with failures():
            for step in self.steps(prompt, params, state, n, stopped):
                for row, token, ended in step:
                    rows[row].append(token)
                    reasons[row] = token.stop_reason
                    stops[row] = token.token if ended else None
            return tuple(map(_sample, rows, reasons, stops))

    def sample_batch(
        self,
        requests: Sequence[Request],
        state: AdapterState,
        stopped: Callable[[], bool] = lambda: False,
    ) -> tuple[tuple[TokensWithLogprobs, ...], ...]:
        """What `sample` gives for each request; all are decoded together where the model can."""
        if len(requests) < 2 or not self._decoder.uneven:
            return tuple(
                self.sample(prompt, params, state, n, stopped) for prompt, params, n in requests
            )
        with failures():
            return self._together(requests, state, stopped)

    def _together(
        self, requests: Sequence[Request], state: AdapterState, stopped: Callable[[], bool]
    ) -> tuple[tuple[TokensWithLogprobs, ...], ...]:
        batch = RowBatch(self._decoder, state, logprobs=True)
        total = sum(n for _, _, n in requests)
        rows: list[list[SampledToken]] = [[] for _ in range(total)]
        stops: list[int | None] = [None] * total
        reasons: list[StopReason | None] = [None] * total
        ends: list[Callable[[int], bool]] = []

        def take(drawn: Sequence[Drawn]) -> None:
            for one in drawn:
                row = one.row
                rows[row].append(SampledToken(one.token, one.logprob))
                if one.ended:
                    reasons[row], stops[row] = "stop", one.token
                elif ends[row](one.token):
                    reasons[row] = "stop"
                    batch.end(row)
                elif row not in batch:
                    reasons[row] = "length"

        # What cannot be sampled is told before anything is computed.
        rooms = [self._sampled_room(prompt.tokens, n) for prompt, _, n in requests]
        firsts = []
        for (prompt, params, n), room in zip(requests, rooms, strict=True):
            firsts.append(len(ends))
            ends += [self._stop_texts(params.stop_texts) for _ in range(n)]
            self._check(stopped)
            take(
                batch.add_group(
                    firsts[-1],
                    prompt.tokens,
                    _samplers(prompt.tokens, params, n),
                    limit=min(params.max_tokens, room),
                    stop_tokens=params.stop_tokens,
                )
            )
        while len(batch):
            self._check(stopped)
            take(batch.step())
        samples = list(map(_sample, rows, reasons, stops))
        return tuple(
            tuple(samples[first : first + n])
            for first, (_, _, n) in zip(firsts, requests, strict=True)
        )

    def _check(self, stopped: Callable[[], bool]) -> None:
        if self._closed() or stopped():
            raise SamplingError("it was stopped before the end.", backend=BACKEND)

    def steps(
        self,
        prompt: ModelInput,
        params: SamplingParams,
        state: AdapterState,
        n: int = 1,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[Step]:
        """The tokens of n continuations as they are drawn."""
        tokens = prompt.tokens
        room = self._sampled_room(tokens, n)
        run = self._decoder.start(
            tokens,
            state,
            *_samplers(tokens, params, n),
            limit=min(params.max_tokens, room),
            stop_tokens=params.stop_tokens,
            stopped=lambda: self._closed() or stopped(),
            aside=True,
            logprobs=True,
        )
        texts = [self._stop_texts(params.stop_texts) for _ in range(n)]
        for drawn in run.steps():
            step: Step = []
            for one in drawn:
                if not one.ended and texts[one.row](one.token):
                    run.end(one.row)
                reason = run.reasons[one.row]
                ends = _ENDS.get(reason)
                step.append((one.row, SampledToken(one.token, one.logprob, ends), one.ended))
            yield step

    def logprobs(
        self,
        model_input: ModelInput,
        state: AdapterState,
        stopped: Callable[[], bool] = lambda: False,
    ) -> NDArray[np.float32]:
        """See `SamplingClient.compute_logprobs`."""
        with failures():
            tokens = self._readable(model_input)
            found = self._decoder.logprobs(
                tokens, state, lambda: self._closed() or stopped()
            ).numpy()
            return _complete(found)

    def logprobs_batch(
        self, inputs: Sequence[ModelInput], state: AdapterState
    ) -> list[NDArray[np.float32]]:
        """The same for the inputs of one of `groups`."""
        if len(inputs) == 1:
            return [self.logprobs(inputs[0], state)]
        with failures():
            rows = [self._readable(each) for each in inputs]
            if self._closed():
                raise SamplingError("it was closed.", backend=BACKEND)
            return [_complete(row.numpy()) for row in self._decoder.logprobs_batch(rows, state)]

    def groups(self, inputs: Sequence[ModelInput]) -> list[list[int]]:
        """Which inputs are read together: those of about the same length, so that little is
        padding, and with as many positions as logits may take memory for. One that is longer than
        that is alone, and read in parts."""
        groups: list[list[int]] = []
        whole = 0
        for index in sorted(range(len(inputs)), key=lambda index: len(inputs[index])):
            size = len(inputs[index]) - 1
            padded = size * (len(groups[-1]) + 1) if groups else 0
            if (
                groups
                and self._decoder.pads
                and len(inputs[groups[-1][0]]) > 1
                and padded <= self._decoder.positions
                and padded <= PADDED * (whole + size)
            ):
                groups[-1].append(index)
                whole += size
            else:
                groups.append([index])
                whole = size
        return groups

    def top_logprobs(
        self,
        model_input: ModelInput,
        k: int,
        state: AdapterState,
        stopped: Callable[[], bool] = lambda: False,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """See `TopLogprobs.compute_top_logprobs`."""
        with failures():
            tokens = self._readable(model_input)
            size = self._base.model.get_output_embeddings().weight.shape[0]
            if not 1 <= k <= size:
                raise SamplingError(f"there are {size} tokens, and {k} asked for.", backend=BACKEND)
            found = self._decoder.top_logprobs(
                tokens, state, k, lambda: self._closed() or stopped()
            )
            if found is None:
                raise SamplingError("it was stopped before the end.", backend=BACKEND)
            return found[0].numpy(), found[1].numpy()

    def _sampled_room(self, tokens: Sequence[int], n: int) -> int:
        """How many tokens there is room for after a prompt, at least 1."""
        if n < 1:
            raise SamplingError(f"{n} samples were asked for.", backend=BACKEND)
        room = self._room(tokens)
        if room < 1:
            raise SamplingError(
                f"the prompt takes {len(tokens)} tokens and the model reads "
                f"{self._base.context_length} altogether.",
                backend=BACKEND,
                hint="Shorten the prompt.",
            )
        return room

    def _readable(self, model_input: ModelInput) -> Sequence[int]:
        """The tokens of an input, which must fit the model."""
        tokens = model_input.tokens
        if self._room(tokens) < 0:
            raise SamplingError(
                f"the input has {len(tokens)} tokens and the model reads "
                f"{self._base.context_length}.",
                backend=BACKEND,
                hint="Shorten it.",
            )
        return tokens

    def _room(self, tokens: Sequence[int]) -> int:
        """How many tokens the context has left after these."""
        vocabulary = self._base.model.get_input_embeddings().weight.shape[0]
        if not tokens:
            raise SamplingError("there is no token to begin with.", backend=BACKEND)
        if max(tokens) >= vocabulary:
            raise SamplingError(
                f"token {max(tokens)} is not in the vocabulary of {vocabulary}.",
                backend=BACKEND,
                hint="The tokens are of another model's tokenizer.",
            )
        return self._base.context_length - len(tokens)

    def _stop_texts(self, stops: Sequence[str]) -> Callable[[int], bool]:
        """Whether a row's text has reached a stop text with a further token."""
        if not stops:
            return lambda token: False
        tokenizer = self._base.tokenizer

        def decode(tokens: Sequence[int]) -> str:
            return str(tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))

        text, end = Detokenizer(decode), StopTexts(stops)
        return lambda token: end.push(text.push(token))[1]


class LocalSamplingClient:
    """A `SamplingClient` on a loaded base model, with or without an adapter.

    Args:
        sampling: what computes.
        state: the adapter, asked for when a call begins.
        run: the thread that may use the model.
        within: tensors of an adapter that is in the model's layers and not in `state`.
    """

    def __init__(
        self,
        sampling: TokenSampling,
        state: Callable[[], AdapterState],
        run: Run,
        within: Callable[[], Iterable[torch.Tensor]] = tuple,
    ) -> None:
        self._sampling = sampling
        self._state = state
        self._run = run
        self._within = within

    def identity(self) -> str:
        """See `Identified.identity`: fingerprints of the model and of the adapter's values."""
        digest = hashlib.sha256()
        layers = [each for pair in self._state().layers for each in pair or ()]
        for tensor in (*layers, *self._within()):
            values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(values.numpy().tobytes())
        return f"{self._sampling.fingerprint} {digest.hexdigest()}"

    async def sample(
        self, prompt: ModelInput, params: SamplingParams, n: int = 1
    ) -> tuple[TokensWithLogprobs, ...]:
        """The port's `sample`. The rows of one call are decoded as one batch."""
        stopped = threading.Event()
        state = self._state()
        try:
            with failures():
                return await self._run(
                    lambda: self._sampling.sample(prompt, params, state, n, stopped.is_set)
                )
        finally:
            stopped.set()

    async def sample_batch(
        self, requests: Sequence[Request]
    ) -> tuple[tuple[TokensWithLogprobs, ...], ...]:
        """The port's `sample_batch`: all rows of all requests are one batch."""
        stopped = threading.Event()
        state = self._state()
        try:
            with failures():
                return await self._run(
                    lambda: self._sampling.sample_batch(requests, state, stopped.is_set)
                )
        finally:
            stopped.set()

    async def compute_top_logprobs(
        self, model_input: ModelInput, k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The port's `compute_top_logprobs`."""
        stopped = threading.Event()
        state = self._state()
        try:
            with failures():
                return await self._run(
                    lambda: self._sampling.top_logprobs(model_input, k, state, stopped.is_set)
                )
        finally:
            stopped.set()

    async def stream(
        self, prompt: ModelInput, params: SamplingParams
    ) -> AsyncIterator[SampledToken]:
        """The port's `stream`; between two tokens the model is free for others."""
        stopped = threading.Event()
        steps = self._sampling.steps(prompt, params, self._state(), 1, stopped.is_set)
        last: StopReason | None = None
        try:
            with failures():
                while (step := await self._run(partial(next, steps, None))) is not None:
                    ((_, token, _),) = step
                    last = token.stop_reason
                    yield token
                _finished(last)
        finally:
            # The generator is closed by the thread that runs it, unless that has gone.
            stopped.set()
            with failures(quiet=True):
                await asyncio.shield(self._run(steps.close))  # type: ignore[attr-defined]

    async def compute_logprobs(self, model_input: ModelInput) -> NDArray[np.float32]:
        """The port's `compute_logprobs`."""
        stopped = threading.Event()
        state = self._state()
        try:
            with failures():
                return await self._run(
                    lambda: self._sampling.logprobs(model_input, state, stopped.is_set)
                )
        finally:
            stopped.set()

    async def compute_logprobs_batch(
        self, inputs: Sequence[ModelInput]
    ) -> tuple[NDArray[np.float32], ...]:
        """The port's `compute_logprobs_batch`; between two forward passes the model is free for
        others."""
        state = self._state()
        found: list[NDArray[np.float32] | None] = [None] * len(inputs)
        with failures():
            for group in self._sampling.groups(inputs):
                part = [inputs[index] for index in group]
                rows = await self._run(partial(self._sampling.logprobs_batch, part, state))
                for index, row in zip(group, rows, strict=True):
                    found[index] = row
        return tuple(row for row in found if row is not None)


class BaseSamplingClient(LocalSamplingClient):
    """A `SamplingClient` that has a base model for itself, and computes on a thread of its own.

    Args:
        base: the model; nobody else may use it until `close`.
        weights: an adapter, or None for the base model alone.

    Raises:
        ModelError: an engine has the model.
        AdapterInvalidError: the adapter does not fit it.
    """

    def __init__(
        self, base: BaseModel, weights: Weights | None = None, name: str | None = None
    ) -> None:
        self._adaptable = AdaptableModel(base.model)
        try:
            state = self._adaptable.prepare(weights, name, 0)
        except ShammahError:
            self._adaptable.restore()
            raise
        self._closed = threading.Event()
        self._thread = ThreadPoolExecutor(
            1, "shammah-sample", partial(torch.set_num_threads, base.threads)
        )
        super().__init__(
            TokenSampling(base, TokenDecoder(base, self._adaptable.slot), self._closed.is_set),
            lambda: state,
            self._on_thread,
        )

    def close(self) -> None:
        """Stop what is being computed and give the model back."""
        self._closed.set()
        self._thread.shutdown(cancel_futures=True)
        self._adaptable.restore()

    async def _on_thread(self, work: Callable[[], T]) -> T:
        def compute() -> T:
            with torch.inference_mode():
                return work()

        if self._closed.is_set():
            raise SamplingError("it was closed.", backend=BACKEND)
        return await asyncio.get_running_loop().run_in_executor(self._thread, compute)


def _complete(found: NDArray[np.float32]) -> NDArray[np.float32]:
    if np.isnan(found[1:]).any():
        raise SamplingError("it was stopped, or the model gave no numbers.", backend=BACKEND)
    return found


def _sample(
    row: Sequence[SampledToken], reason: StopReason | None, stop: int | None
) -> TokensWithLogprobs:
    tokens, logprobs = tuple(one.token for one in row), tuple(one.logprob for one in row)
    return TokensWithLogprobs(tokens, logprobs, _finished(reason), stop)


def _samplers(tokens: Sequence[int], params: SamplingParams, n: int) -> list[Sampler]:
    drawing = GenerationParams(
        temperature=params.temperature, top_p=params.top_p, top_k=params.top_k
    )
    seed = _seed(params)
    return [Sampler(drawing, tokens, row_seed(seed, row)) for row in range(n)]


def _seed(params: SamplingParams) -> int:
    return params.seed if params.seed is not None else secrets.randbits(48)


def row_seed(seed: int, row: int) -> int:
    """What sample `row` of several is drawn from: the seed itself for the first."""
    if row == 0:
        return seed
    return int(np.random.SeedSequence([seed, row]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def failures(*, quiet: bool = False) -> Iterator[None]:
    """Whatever goes wrong inside is a `SamplingError` with its cause; with `quiet` nothing is."""
    try:
        yield
    except SamplingError:
        if not quiet:
            raise
    except Exception as error:
        if quiet:
            return
        raise SamplingError(_words(error), backend=BACKEND, hint=_hint(error)) from error


def _words(error: Exception) -> str:
    if isinstance(error, ShammahError):
        return error.message
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "there was not enough memory."
    return f"{type(error).__name__}: {error}"


def _hint(error: Exception) -> str | None:
    if isinstance(error, ShammahError):
        return error.hint
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "Ask for fewer samples at once, or for shorter ones."
    return None


def _finished(reason: Any) -> StopReason:
    if reason is None:
        raise SamplingError("it was stopped before the end.", backend=BACKEND)
    found: StopReason = reason
    return found
