"""Which renderer speaks to which model. Knows the renderers; they do not know it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from shammah.renderers.base import Renderer
from shammah.renderers.role_colon import RoleColonRenderer
from shammah.renderers.template import TemplateRenderer


def renderer_for(tokenizer: Any, stop_tokens: int | Iterable[int] | None = None) -> Renderer:
    """The renderer for a tokenizer: its chat template where it has one, else plain roles.

    Args:
        tokenizer: a Hugging Face tokenizer.
        stop_tokens: what the model's generation config calls `eos_token_id`.
    """
    if stop_tokens is None:
        stops: list[int] = []
    elif isinstance(stop_tokens, int):
        stops = [stop_tokens]
    else:
        stops = [int(token) for token in stop_tokens]
    if tokenizer.chat_template:
        return TemplateRenderer(tokenizer, stops)
    return RoleColonRenderer(tokenizer, stops)
