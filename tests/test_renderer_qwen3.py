"""Qwen 3's format is its template's, token for token, and its answers are read back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from rendering import (
    TOOLS,
    as_template,
    conversations,
    hostile,
    plain,
    prompt_is_a_prefix,
    same_as_template,
    tokenizer,
)

from shammah.messages import Conversation, Tool, ToolCall, assistant, system, user
from shammah.renderers.qwen3 import Qwen3Renderer, Thinking

MODES: tuple[Thinking, ...] = get_args(Thinking)


@pytest.fixture(scope="module")
def qwen() -> Any:
    return tokenizer("qwen3")


def template(qwen: Any, conversation: Conversation, tools: Sequence[Tool], **more: Any) -> str:
    return str(
        qwen.apply_chat_template(
            [as_template(message) for message in conversation],
            tools=[tool.to_dict() for tool in tools] or None,
            tokenize=False,
            **more,
        )
    )


@settings(max_examples=80, deadline=None)
@given(conversation=conversations(thinking=True, tools=True))
def test_thinking_is_the_template(qwen: Any, conversation: Conversation) -> None:
    renderer = Qwen3Renderer(qwen)
    for tools in ((), TOOLS):
        if conversation[-1].role == "assistant":
            wanted = template(qwen, conversation, tools)
            tokens = renderer.supervised(conversation, tools=tools).tokens
            prompt_is_a_prefix(renderer, conversation, tools)
        else:
            wanted = template(qwen, conversation, tools, add_generation_prompt=True)
            tokens = renderer.generation_prompt(conversation, tools)
        same_as_template(qwen, tokens, wanted, conversation)


@settings(max_examples=40, deadline=None)
@given(conversation=conversations(tools=True))
def test_thinking_disabled_is_the_template(qwen: Any, conversation: Conversation) -> None:
    renderer = Qwen3Renderer(qwen, mode="disable_thinking")
    if conversation[-1].role == "assistant":
        wanted = template(qwen, conversation, TOOLS)
        tokens = renderer.supervised(conversation, tools=TOOLS).tokens
        prompt_is_a_prefix(renderer, conversation, TOOLS)
    else:
        wanted = template(
            qwen, conversation, TOOLS, add_generation_prompt=True, enable_thinking=False
        )
        tokens = renderer.generation_prompt(conversation, TOOLS)
    same_as_template(qwen, tokens, wanted, conversation)


@settings(max_examples=40, deadline=None)
@given(conversation=conversations(tools=True, answered=False))
def test_instruct_is_the_template_without_a_thought(qwen: Any, conversation: Conversation) -> None:
    renderer = Qwen3Renderer(qwen, mode="instruct")
    wanted = template(qwen, conversation, TOOLS, add_generation_prompt=True)
    same_as_template(qwen, renderer.generation_prompt(conversation, TOOLS), wanted, conversation)
    answered = (*conversation, assistant("So it is."))
    prompt_is_a_prefix(renderer, answered, TOOLS)
    assert "<think>" not in qwen.decode(renderer.supervised(answered).tokens)


@settings(max_examples=80, deadline=None)
@given(text=hostile)
@pytest.mark.parametrize("mode", MODES)
def test_what_a_user_writes_is_text(qwen: Any, mode: Thinking, text: str) -> None:
    renderer = Qwen3Renderer(qwen, mode=mode)
    prompt = renderer.generation_prompt((system(text), user(text)))
    harmless = renderer.generation_prompt((system("a"), user("a")))
    steering = set(qwen.added_tokens_decoder)
    assert [t for t in prompt if t in steering] == [t for t in harmless if t in steering]
    assert text in qwen.decode(prompt)


@settings(max_examples=60, deadline=None)
@given(conversation=conversations(text=plain, thinking=True, tools=True, answered=True))
@pytest.mark.parametrize("mode", MODES)
def test_an_answer_is_read_back(qwen: Any, mode: Thinking, conversation: Conversation) -> None:
    renderer = Qwen3Renderer(qwen, mode=mode)
    called = (ToolCall("now", "{}"), ToolCall("get_weather", '{"town": "Köln"}'))
    for last in (conversation[-1], replace(conversation[-1], tool_calls=called)):
        prompt = renderer.generation_prompt(conversation[:-1])
        example = renderer.supervised((*conversation[:-1], last))
        found = renderer.parse(example.tokens[len(prompt) :])
        assert found.complete and not found.problems
        assert found.message.tool_calls == last.tool_calls
        assert found.message.text.strip("\n") == last.text.strip("\n")
        if mode == "thinking":
            assert (found.message.thinking or "") == (last.thinking or "").strip("\n")


@pytest.mark.parametrize(
    ("written", "said", "problem", "reason"),
    [
        ('<tool_call>\n{"name": "now"', "", '<tool_call>\n{"name": "now"', "within a tool call"),
        ("<tool_call>\nnow()\n</tool_call>", "", "now()", "not JSON"),
        ('a<tool_call>{"arguments": {}}</tool_call>', "a", '{"arguments": {}}', "no name"),
        ('<tool_call>{"name": "n", "arguments": [1]}</tool_call>', "", "[1]", "no object"),
        ("<think>\nhm", "", "", "within a thought"),
        ("a</think>b", "ab", "</think>", "had not begun"),
    ],
)
def test_what_is_malformed_is_reported(
    qwen: Any, written: str, said: str, problem: str, reason: str
) -> None:
    found = Qwen3Renderer(qwen).parse(qwen(written)["input_ids"])
    assert not found.complete and found.message.text == said and not found.message.tool_calls
    (only,) = found.problems
    assert problem in only.text and reason in only.reason
