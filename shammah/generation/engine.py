"""The engine: conversations in, answers out, on one decode thread, with adapters swapped between.

Knows the renderer's tokens and the decoder's; nothing about files, feedback or the terminal.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

import torch

from shammah.errors import ContextTooLongError, GenerationError, ShammahError
from shammah.generation.answer import Answer, AnswerStream, FutureListener, Request, Task
from shammah.generation.decoding import TokenDecoder
from shammah.generation.local_sampling import LocalSamplingClient, TokenSampling
from shammah.generation.lora import AdaptableModel, AdapterState, Weights
from shammah.generation.params import GenerationParams
from shammah.generation.sampling import Sampler
from shammah.messages import Conversation, TextPart, ToolCall
from shammah.models.load import BaseModel
from shammah.renderers.base import Renderer
from shammah.renderers.parsing import STRAY, Delta, Problem
from shammah.tracking.telemetry import emit

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
            self._between_answers,
        )

    async def _between_answers(self, work: Callable[[], T]) -> T:
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
        started = time.perf_counter()
        state = request.state or self._active
        params = request.params
        prompt = self.renderer.generation_prompt(request.conversation)
        room = self.base.context_length - len(prompt)
        if room < 1:
            raise ContextTooLongError(
                f"The conversation takes {len(prompt)} tokens and the model reads "
                f"{self.base.context_length} altogether.",
                hint="Shorten the message, or start again with /clear.",
            )
        seed = params.seed if params.seed is not None else secrets.randbits(48)
        run = self._decoder.start(
            prompt,
            state,
            Sampler(params, prompt, seed),
            limit=min(params.max_tokens, room),
            stop_tokens=self.renderer.stop_tokens,
            stopped=request.stopped.is_set,
            aside=state.generation == ASIDE,
        )
        text = _AnswerText(self.renderer, prompt, request)
        count = 0
        first = None
        steps = run.steps()
        ended = False
        for (drawn,) in steps:
            # The token that stops it is read too: it may say how the answer ends.
            count += not drawn.ended
            first = first or time.perf_counter()
            if text.push(drawn.token) and not drawn.ended:
                ended = True
                break
        steps.close()  # type: ignore[attr-defined]
        text.finish()
        reason = "end" if ended else run.reason
        seconds = time.perf_counter() - started
        first_seconds = (first or time.perf_counter()) - started
        rest = seconds - first_seconds
        answer = Answer(
            text=text.text,
            thinking=text.thinking,
            tokens=count,
            prompt_tokens=len(prompt),
            reused_tokens=run.reused,
            seconds=seconds,
            first_token_seconds=first_seconds,
            tokens_per_second=(count - 1) / rest if count > 1 and rest > 0 else count / seconds,
            cut=reason == "cut",
            stop_reason=reason,
            adapter=state.name,
            generation=state.generation,
            seed=seed if params.temperature > 0 else None,
        )
        emit(
            "generation.complete",
            {
                "tokens": answer.tokens,
                "prompt_tokens": answer.prompt_tokens,
                "reused_tokens": answer.reused_tokens,
                "seconds": answer.seconds,
                "first_token_seconds": answer.first_token_seconds,
                "tokens_per_second": answer.tokens_per_second,
            },
            {"adapter": answer.adapter, "reason": answer.stop_reason},
        )
        return answer


class _AnswerText:
    """Tokens of an answer made text, given to the listener as far as it is certain."""

    def __init__(self, renderer: Renderer, prompt: Sequence[int], request: Request) -> None:
        self.text = ""
        self.thinking: str | None = None
        self._parser = renderer.parser(prompt)
        self._pieces: list[str] = []
        self._listener = request.listener

    def push(self, token: int) -> bool:
        """Take a token; true when the text has reached its end."""
        self._give(self._parser.feed(token))
        return self._parser.ended

    def finish(self) -> None:
        deltas, parsed = self._parser.finish()
        self._give(deltas)
        self.text = "".join(self._pieces)
        self.thinking = parsed.message.thinking

    def _give(self, deltas: Sequence[Delta]) -> None:
        for delta in deltas:
            match delta:
                case TextPart(text):
                    self._pieces.append(text)
                    self._listener.emit(text)
                case ToolCall(name, arguments):
                    # There is no tool here to call: what the model wanted is shown as text.
                    self._show(f"{name}({arguments})")
                case Problem(text, reason):
                    log.info("not in the model's format (%s)", reason)
                    if reason != STRAY:
                        self._show(text)

    def _show(self, text: str) -> None:
        if text:
            self._pieces.append(text)
            self._listener.emit(text)


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
