"""Which renderer speaks to which model. Knows the renderers; they do not know it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from shammah.errors import ConfigError, ShammahError
from shammah.messages import assistant, system, to_dicts, user
from shammah.own_code import own_function
from shammah.renderers.base import Renderer
from shammah.renderers.deepseek_v3 import DeepseekV3Renderer
from shammah.renderers.gpt_oss import GptOssRenderer
from shammah.renderers.kimi_k2 import KimiK2Renderer
from shammah.renderers.llama3 import Llama3Renderer
from shammah.renderers.qwen3 import Qwen3Renderer
from shammah.renderers.role_colon import RoleColonRenderer
from shammah.renderers.template import TemplateRenderer

AUTO = "auto"
FAMILIES: dict[str, Callable[[Any, Sequence[int]], Renderer]] = {
    "llama3": Llama3Renderer,
    "qwen3": Qwen3Renderer,
    "qwen3_instruct": partial(Qwen3Renderer, mode="instruct"),
    "qwen3_disable_thinking": partial(Qwen3Renderer, mode="disable_thinking"),
    "deepseek_v3": DeepseekV3Renderer,
    "deepseek_v3_disable_thinking": partial(DeepseekV3Renderer, mode="disable_thinking"),
    "kimi_k2": KimiK2Renderer,
    "gpt_oss": GptOssRenderer,
    "gpt_oss_low": partial(GptOssRenderer, reasoning="low"),
    "gpt_oss_high": partial(GptOssRenderer, reasoning="high"),
    "gpt_oss_no_system_prompt": partial(GptOssRenderer, reasoning="no_system_prompt"),
}
RENDERERS: dict[str, Callable[[Any, Sequence[int]], Renderer]] = {
    **FAMILIES,
    "template": TemplateRenderer,
    "role_colon": RoleColonRenderer,
}


def register(name: str, make: Callable[[Any, Sequence[int]], Renderer]) -> None:
    """Give a renderer a name, by which it is chosen; it is never chosen by itself.

    Args:
        make: called with a tokenizer and the tokens that end an answer, such as the renderer's
            class.

    Raises:
        ConfigError: the name is taken.
    """
    if name in RENDERERS or name == AUTO:
        raise ConfigError(f"There is a renderer {name!r} already.")
    RENDERERS[name] = make


_PROBE = (
    system("You help."),
    user("What is a dog?"),
    assistant("An animal."),
    user("And a cat?"),
    assistant("Another one."),
)


def renderer_for(
    tokenizer: Any, stop_tokens: int | Iterable[int] | None = None, name: str = AUTO
) -> Renderer:
    """The renderer of that name, or the one that fits a tokenizer.

    That is the family whose format gives the tokens of the tokenizer's own chat template, else that
    template as it is, else plain roles where there is none.

    Args:
        tokenizer: a Hugging Face tokenizer.
        stop_tokens: what the model's generation config calls `eos_token_id`.
        name: one of RENDERERS, AUTO, or what makes one's own: `file.py:name`, `module:name`.

    Raises:
        ConfigError: there is no renderer of that name, or one's own cannot be made.
        UsageError: one's own file or module cannot be imported, or has no such name.
        ModelError: it cannot be written with this tokenizer.
    """
    if stop_tokens is None:
        stops: list[int] = []
    elif isinstance(stop_tokens, int):
        stops = [stop_tokens]
    else:
        stops = [int(token) for token in stop_tokens]
    if name != AUTO and name not in RENDERERS and ":" in name:
        return _own(name, tokenizer, stops)
    if name != AUTO:
        if name not in RENDERERS:
            known = ", ".join([AUTO, *RENDERERS])
            raise ConfigError(
                f"There is no renderer {name!r}.",
                hint=f"There are {known}; one of your own is file.py:name.",
            )
        return RENDERERS[name](tokenizer, stops)
    if not tokenizer.chat_template:
        return RoleColonRenderer(tokenizer, stops)
    for make in FAMILIES.values():
        try:
            renderer = make(tokenizer, stops)
            if _writes_like_template(renderer, tokenizer):
                return renderer
        except ShammahError:
            continue
    return TemplateRenderer(tokenizer, stops)


def _own(name: str, tokenizer: Any, stops: Sequence[int]) -> Renderer:
    make: Callable[[Any, Sequence[int]], Renderer] = own_function(name)
    try:
        return make(tokenizer, stops)
    except ShammahError:
        raise
    except Exception as error:  # whatever the user's code does
        raise ConfigError(f"{name} makes no renderer: {error!r}.") from error


def _writes_like_template(renderer: Renderer, tokenizer: Any) -> bool:
    """Whether a conversation, and the prompt for its last answer, are those of the template."""
    import jinja2

    try:
        whole, prompt = (
            tokenizer.apply_chat_template(
                to_dicts(said), tokenize=True, return_dict=False, add_generation_prompt=generate
            )
            for said, generate in ((_PROBE, False), (_PROBE[:-1], True))
        )
    except (jinja2.TemplateError, TypeError, ValueError):
        return False
    return bool(
        renderer.supervised(_PROBE).tokens == list(whole)
        and renderer.generation_prompt(_PROBE[:-1]) == list(prompt)
    )
