"""One answer in the making: its prompt, how it is drawn, its text so far, its figures at the end.

Whether it is decoded alone or beside others makes no difference here. Knows the renderer and the
drawn tokens, no model's layers and no thread.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Sequence

from shammah.errors import ContextTooLongError
from shammah.generation.answer import Answer, Listener, StopReason
from shammah.generation.decoding import Drawn
from shammah.generation.lora import AdapterState
from shammah.generation.params import GenerationParams
from shammah.generation.sampling import Sampler
from shammah.messages import Conversation, TextPart, ToolCall
from shammah.models.load import BaseModel
from shammah.renderers.base import Renderer
from shammah.renderers.parsing import STRAY, Delta, Problem
from shammah.tracking.telemetry import emit

log = logging.getLogger("shammah")


class Answering:
    """An answer that is being decoded.

    Args:
        base: the model that answers.
        renderer: how it is spoken to.
        conversation: what to answer.
        params: how to draw.
        state: the adapter, for all of the answer.
        listener: told of the text as far as it is certain.

    Raises:
        ContextTooLongError: the prompt alone fills the context.
        InputError, ModelError: the conversation cannot be rendered.
    """

    def __init__(
        self,
        base: BaseModel,
        renderer: Renderer,
        conversation: Conversation,
        params: GenerationParams,
        state: AdapterState,
        listener: Listener,
    ) -> None:
        self._started = time.perf_counter()
        self.state = state
        self.prompt = renderer.generation_prompt(conversation)
        room = base.context_length - len(self.prompt)
        if room < 1:
            raise ContextTooLongError(
                f"The conversation takes {len(self.prompt)} tokens and the model reads "
                f"{base.context_length} altogether.",
                hint="Shorten the message, or start again with /clear.",
            )
        self.limit = min(params.max_tokens, room)
        """Tokens it may have at most."""
        seed = params.seed if params.seed is not None else secrets.randbits(48)
        self.sampler = Sampler(params, self.prompt, seed)
        self._seed = seed if params.temperature > 0 else None
        self._text = _AnswerText(renderer, self.prompt, listener)
        self._tokens = 0
        self._first: float | None = None

    def push(self, drawn: Drawn) -> bool:
        """Take a token; true where the text has reached its end though the model has not said so.

        The token that stops it is to be given too: it may say how the answer ends.
        """
        self._tokens += not drawn.ended
        self._first = self._first or time.perf_counter()
        return self._text.push(drawn.token) and not drawn.ended

    def finish(self, reason: StopReason, *, reused: int = 0) -> Answer:
        """The answer as it is now.

        Args:
            reason: why it ended.
            reused: tokens of the prompt that were in a cache.
        """
        self._text.finish()
        now = time.perf_counter()
        seconds = now - self._started
        first_seconds = (self._first or now) - self._started
        count, rest = self._tokens, seconds - first_seconds
        answer = Answer(
            text=self._text.text,
            thinking=self._text.thinking,
            tokens=count,
            prompt_tokens=len(self.prompt),
            reused_tokens=reused,
            seconds=seconds,
            first_token_seconds=first_seconds,
            tokens_per_second=(count - 1) / rest if count > 1 and rest > 0 else count / seconds,
            cut=reason == "cut",
            stop_reason=reason,
            adapter=self.state.name,
            generation=self.state.generation,
            seed=self._seed,
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

    def __init__(self, renderer: Renderer, prompt: Sequence[int], listener: Listener) -> None:
        self.text = ""
        self.thinking: str | None = None
        self._parser = renderer.parser(prompt)
        self._pieces: list[str] = []
        self._listener = listener

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
