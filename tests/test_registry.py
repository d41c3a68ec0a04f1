"""The registry picks the family that writes as the tokenizer's template does."""

from __future__ import annotations

import pytest
import tiny_models
from rendering import DATA, tokenizer

from shammah.errors import ConfigError, ModelError
from shammah.renderers.registry import RENDERERS, renderer_for


@pytest.mark.parametrize(
    ("vocabulary", "picked"),
    [
        ("qwen3", "qwen3"),
        ("llama3.2", "llama3"),
        ("gpt-oss", "gpt_oss"),
        ("tinyllama", "template"),
        ("gpt2", "role_colon"),
    ],
)
def test_a_renderer_is_picked_by_the_tokenizer(vocabulary: str, picked: str) -> None:
    assert renderer_for(tokenizer(vocabulary)).name == picked


@pytest.mark.parametrize("family", ["deepseek-v3", "kimi-k2"])
def test_a_template_of_another_vocabulary_stays_a_template(family: str) -> None:
    found = tokenizer("qwen3")
    found.chat_template = (DATA / "templates" / f"{family}.jinja").read_text(encoding="utf-8")
    assert renderer_for(found).name == "template"


def test_a_model_without_thoughts_is_picked_apart() -> None:
    found = tokenizer("qwen3")
    found.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert renderer_for(found).name == "qwen3_instruct"


@pytest.mark.parametrize("name", RENDERERS)
def test_a_renderer_is_given_by_name_or_refused(name: str) -> None:
    found = tokenizer("qwen3")
    if name.startswith(("qwen3", "template", "role_colon")):
        assert renderer_for(found, name=name).name == name
    else:
        with pytest.raises(ModelError, match="does not have"):
            renderer_for(found, name=name)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no renderer 'chatml'(.|\n)*role_colon"):
        renderer_for(tiny_models.byte_tokenizer(), name="chatml")
