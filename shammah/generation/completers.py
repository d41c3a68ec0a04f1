"""Completers over the ports that draw: a sampling client with a renderer, or a chat model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from shammah.messages import Conversation, Message
from shammah.ports.datum import ModelInput
from shammah.ports.llm_client import ChatParams, LLMClient
from shammah.ports.sampling_client import SamplingClient, SamplingParams, TokensWithLogprobs
from shammah.renderers.base import Renderer
from shammah.renderers.detokenize import StopTexts


@dataclass(frozen=True, slots=True)
class SamplingTokenCompleter:
    """A `TokenCompleter` over a sampling client."""

    client: SamplingClient
    params: SamplingParams

    async def complete(self, prompt: ModelInput) -> TokensWithLogprobs:
        """One sample."""
        (sample,) = await self.client.sample(prompt, self.params)
        return sample


@dataclass(frozen=True, slots=True)
class SamplingMessageCompleter:
    """A `MessageCompleter` over a sampling client. The renderer's stop tokens and texts end an
    answer, beside those of `params`."""

    client: SamplingClient
    renderer: Renderer
    params: SamplingParams

    async def complete(self, messages: Conversation) -> Message:
        """One sample, as a message."""
        prompt = ModelInput.of(self.renderer.generation_prompt(messages))
        params = replace(
            self.params,
            stop_tokens=(*self.params.stop_tokens, *self.renderer.stop_tokens),
            stop_texts=(*self.params.stop_texts, *self.renderer.stop_texts),
        )
        (sample,) = await self.client.sample(prompt, params)
        message = self.renderer.parse(sample.tokens, prompt.tokens).message
        text = as_far_as(message.text, self.params.stop_texts)
        return message if text == message.text else message.with_text(text)


@dataclass(frozen=True, slots=True)
class LLMMessageCompleter:
    """A `MessageCompleter` over a chat model."""

    client: LLMClient
    params: ChatParams

    async def complete(self, messages: Conversation) -> Message:
        """The answer's message."""
        return (await self.client.chat(messages, self.params)).message


def as_far_as(text: str, stop_texts: Sequence[str]) -> str:
    """A text up to the first of its stop texts."""
    stops = StopTexts(stop_texts)
    certain, ended = stops.push(text)
    return certain if ended else certain + stops.finish()
