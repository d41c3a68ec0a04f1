"""The engine: conversations in, answers out, on one decode thread, with adapters swapped between.

Knows the renderer's tokens and the decoder's; nothing about files, feedback or the terminal.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import torch

from shammah.errors import GenerationError, ShammahError
from shammah.generation.answer import Answer, AnswerStream, FutureListener, Request, Task
from shammah.generation.answering import Answering
from shammah.generation.batched import RowBatch
from shammah.generation.decoding import TokenDecoder
from shammah.generation.local_sampling import LocalSamplingClient, TokenSampling
from shammah.generation.lora import AdaptableModel, AdapterState, Weights
from shammah.generation.params import GenerationParams
from shammah.messages import Conversation
from shammah.models.load import BaseModel
from shammah.renderers.base import Renderer

log = logging.getLogger("shammah")

T = TypeVar("T")

ASIDE = -1
"""The generation of an adapter that is not in use."""


class Engine:
    """Answers one conversation at a time; further ones wait their turn.

    An answer uses the adapter that was active when its decoding began, or one that was prepared
    for it, to its end.

    Args:
        base: the model; the engine has it for itself until `close`.
        renderer: how the model is spoken to.

    Raises:
        ModelError: another engine has the model.
    """

    def __init__(self, base: BaseModel, renderer: Renderer) -> None:
        self.base = base
        self.renderer = renderer
        self._adaptable = AdaptableModel(base.model)
        self._decoder = TokenDecoder(base, self._adaptable.slot)
        self._activating = threading.Lock()
        self._bare = self._active = self._adaptable.prepare(None, None, 0)
        self._last = 0
        self._requests: queue.SimpleQueue[Request | Task | None] = queue.SimpleQueue()
        self._current: Request | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="shammah-decode", daemon=True)
        self._thread.start()

    @property
    def active(self) -> AdapterState:
        """The adapter state that the next answer will use, unless it is asked for with another."""
        return self._active

    @property
    def bare(self) -> AdapterState:
        """The base model without any adapter, for single answers."""
        return self._bare

    @property
    def active_name(self) -> str | None:
        """The adapter that the next answer will use; None is the base model."""
        return self._active.name

    @property
    def generation(self) -> int:
        """The number of the adapter state that the next answer will use."""
        return self._active.generation

    def activate(self, weights: Weights | None, name: str | None) -> int:
        """Use an adapter, or with None the base model, from the next answer on.

        It is made ready beside the one in use; an answer that has begun keeps its own.

        Returns:
            The generation: one more with every call of this or of `prepare`.

        Raises:
            AdapterInvalidError: it does not fit the model; the one in use stays.
        """
        with self._activating:
            self._active = self._prepared(weights, name)
            return self._active.generation

    def prepare(self, weights: Weights | None, name: str | None) -> AdapterState:
        """An adapter for single answers (`stream(..., state=...)`); the active one stays.

        It has a generation of its own, so that the prefix cache never mixes two adapters.

        Raises:
            AdapterInvalidError: it does not fit the model.
        """
        with self._activating:
            return self._prepared(weights, name)

    def _prepared(self, weights: Weights | None, name: str | None) -> AdapterState:
        state = self._adaptable.prepare(weights, name, self._last + 1)
        self._last = state.generation
        return state

    def stream(
        self,
        conversation: Conversation,
        params: GenerationParams,
        *,
        state: AdapterState | None = None,
    ) -> AnswerStream:
        """Ask, from within an event loop; decoding begins at once or after the answers before it.

        Args:
            state: the adapter to answer with, from `prepare` or `active`; None takes the one that
                is active when decoding begins.

        The iteration raises:
            ContextTooLongError: the prompt alone fills the context.
            GenerationError: decoding failed; the engine goes on.
            InputError, ModelError: the conversation cannot be rendered.
        """
        stopped = threading.Event()
        stream = AnswerStream(stopped)
        self._ask(Request(conversation, params, stream.listener, stopped, state))
        return stream

    def generate(
        self,
        conversation: Conversation,
        params: GenerationParams,
        state: AdapterState | None = None,
    ) -> Answer:
        """The whole answer; raises what the iteration of `stream` does.

        Args:
            state: answer with it; with what `prepare_aside` gave neither the adapter in use nor the
                prefix cache of the others' conversation is touched. None is the one in use.
        """
        listener = FutureListener()
        self._ask(Request(conversation, params, listener, threading.Event(), state))
        return listener.future.result()

    def prepare_aside(self, weights: Weights | None, name: str | None) -> AdapterState:
        """An adapter, or with None the base model, made ready for `generate` without its being
        activated.

        Raises:
            AdapterInvalidError: it does not fit the model.
        """
        return self._adaptable.prepare(weights, name, ASIDE)

    def forget(self) -> None:
        """Let the next prompt be read from its beginning, without the prefix cache."""
        self._decoder.forget()

    def sampling_client(self, state: AdapterState | None = None) -> LocalSamplingClient:
        """Tokens and log-probabilities from the same model, on the same thread, between answers.

        Args:
            state: the adapter, from `prepare` or `active`; None takes at each call the one that is
                active.
        """
        return LocalSamplingClient(
            TokenSampling(self.base, self._decoder, self._closed.is_set),
            lambda: state or self._active,
            self.between_answers,
        )

    def batch(self, state: AdapterState) -> RowBatch:
        """Rows to be decoded together with an adapter, in work given to `between_answers`.

        Raises:
            GenerationError: this model's rows cannot be of different lengths; `batches` tells.
        """
        return RowBatch(self._decoder, state)

    @property
    def batches(self) -> bool:
        """Whether answers to different prompts can be decoded together."""
        return self._decoder.uneven

    async def between_answers(self, work: Callable[[], T]) -> T:
        """Have the thread that owns the model do something, without gradients, between two answers.

        Raises:
            GenerationError: the engine was closed.
        """
        if self._closed.is_set():
            raise GenerationError("The model was closed.", hint="Load a model first.")
        future: Future[T] = Future()
        self._requests.put(Task(work, future))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Stop what is being answered, refuse what waits, and give the model back."""
        if self._closed.is_set():
            return
        self._closed.set()
        current = self._current
        if current is not None:
            current.stopped.set()
        self._requests.put(None)
        self._thread.join()
        self._adaptable.restore()

    def _ask(self, request: Request) -> None:
        if self._closed.is_set():
            raise GenerationError("The model was closed.", hint="Load a model first.")
        self._requests.put(request)

    @torch.inference_mode()
    def _serve(self) -> None:
        torch.set_num_threads(self.base.threads)  # of this thread alone
        while (request := self._requests.get()) is not None:
            if isinstance(request, Task):
                request.run()
                continue
            self._current = request
            try:
                if self._closed.is_set():
                    raise GenerationError("The model was closed.", hint="Load a model first.")
                request.listener.finish(self._answer(request))
            except ShammahError as error:
                request.listener.fail(error)
            except Exception as error:
                log.exception("decoding failed")
                request.listener.fail(_failure(error))
            self._current = None

    def _answer(self, request: Request) -> Answer:
        answering = Answering(
            self.base,
            self.renderer,
            request.conversation,
            request.params,
            request.state or self._active,
            request.listener,
        )
        run = self._decoder.start(
            answering.prompt,
            answering.state,
            answering.sampler,
            limit=answering.limit,
            stop_tokens=self.renderer.stop_tokens,
            stopped=request.stopped.is_set,
            aside=answering.state.generation == ASIDE,
        )
        steps = run.steps()
        ended = False
        for (drawn,) in steps:
            if answering.push(drawn):
                ended = True
                break
        steps.close()  # type: ignore[attr-defined]
        return answering.finish("end" if ended else run.reason, reused=run.reused)


def _failure(error: Exception) -> GenerationError:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return GenerationError(
            "There was not enough memory to answer.",
            hint="Start a shorter conversation with /clear, or use a smaller model.",
        )
    return GenerationError(
        f"Decoding failed: {type(error).__name__}: {error}",
        hint="Try again; the log has the details.",
    )
