"""Which renderer speaks to which model. Knows the renderers; they do not know it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from shammah.errors import ModelError
from shammah.renderers.base import Renderer
from shammah.renderers.role_colon import RoleColonRenderer
from shammah.renderers.template import TemplateRenderer

RENDERERS: dict[str, Callable[[Any, list[int]], Renderer]] = {
    "template": TemplateRenderer,
    "role_colon": RoleColonRenderer,
}
"""The renderers by the names that a user calls them."""


def renderer_for(
    tokenizer: Any, stop_tokens: int | Iterable[int] | None = None, name: str | None = None
) -> Renderer:
    """The renderer of a name; without one, the tokenizer's chat template where it has one, else
    plain roles.

    Args:
        tokenizer: a Hugging Face tokenizer.
        stop_tokens: what the model's generation config calls `eos_token_id`.

    Raises:
        ModelError: there is no renderer of that name, or the model has not what it needs.
    """
    if stop_tokens is None:
        stops: list[int] = []
    elif isinstance(stop_tokens, int):
        stops = [stop_tokens]
    else:
        stops = [int(token) for token in stop_tokens]
    if name is not None and name not in RENDERERS:
        raise ModelError(f"There is no renderer {name!r}.", hint=f"One of {', '.join(RENDERERS)}.")
    if name == "template" and not tokenizer.chat_template:
        raise ModelError(
            "The renderer template needs a chat template, and the model has none.",
            hint="Use role_colon.",
        )
    if name is not None:
        return RENDERERS[name](tokenizer, stops)
    if tokenizer.chat_template:
        return TemplateRenderer(tokenizer, stops)
    return RoleColonRenderer(tokenizer, stops)
