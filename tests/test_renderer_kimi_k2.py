"""Kimi K2's format is its template's, and its answers are read back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rendering import (
    TOOLS,
    as_template,
    borrowed,
    conversations,
    hostile,
    nothing_is_swallowed,
    plain,
    prompt_is_a_prefix,
    same_as_template,
)

from shammah.errors import InputError
from shammah.messages import (
    Conversation,
    ImagePart,
    Message,
    Part,
    TextPart,
    ThinkingPart,
    Tool,
    ToolCall,
    assistant,
    system,
    tool,
    user,
)
from shammah.renderers.base import TrainOnWhat
from shammah.renderers.kimi_k2 import KimiK2Renderer

SYSTEM, USER, ASSISTANT, MIDDLE, END = (
    "<|im_system|>",
    "<|im_user|>",
    "<|im_assistant|>",
    "<|im_middle|>",
    "<|im_end|>",
)
CALLS, CALLS_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, ARGUMENTS, CALL_END = (
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
)
PICTURE = ("<|media_start|>", "<|media_content|>", "<|media_pad|>", "<|media_end|>")
TOKENS = (
    *(END, SYSTEM, USER, ASSISTANT, MIDDLE, CALLS, CALLS_END, CALL, ARGUMENTS, CALL_END),
    *(*PICTURE, "[EOS]"),
)
CALLED = (
    ToolCall("now", "{}", "functions.now:0"),
    ToolCall("get_weather", '{"town": "Köln"}', "functions.get_weather:1"),
)


@pytest.fixture(scope="module", params=["qwen3", "llama3.2"])
def kimi(request: Any) -> Any:
    """A vocabulary that has tokens for thoughts, and one without them, as the family's own."""
    return borrowed(request.param, "kimi-k2", TOKENS, special=True)


def template(kimi: Any, conversation: Conversation, tools: Sequence[Tool], *, prompt: bool) -> str:
    """The template's text; arguments of calls are objects, as transformers wants them."""
    rows = []
    for message in conversation:
        row = as_template(message)
        if any(isinstance(part, ImagePart) for part in message.parts):
            row["content"] = message.to_dict()["content"]
        for call in row.get("tool_calls", ()):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        rows.append(row)
    return str(
        kimi.apply_chat_template(
            rows,
            tools=[tool.to_dict() for tool in tools] or None,
            tokenize=False,
            add_generation_prompt=prompt,
        )
    )


def tokens_of(kimi: Any, text: str) -> list[int]:
    return list(kimi(text, add_special_tokens=False)["input_ids"])


parts: st.SearchStrategy[tuple[Part, ...]] = st.lists(
    plain.map(TextPart) | st.just(ImagePart("a.png")) | plain.map(ThinkingPart), max_size=4
).map(tuple)


@settings(max_examples=80, deadline=None)
@given(conversation=conversations(thinking=True, tools=True), late=st.integers(0, 9), content=parts)
def test_it_is_the_template(
    kimi: Any, conversation: Conversation, late: int, content: tuple[Part, ...]
) -> None:
    renderer = KimiK2Renderer(kimi)
    if late:
        more = (Message("user", content), Message("assistant", content), system("And kindly."))
        conversation = (*conversation[:late], *more, *conversation[late:])
    for tools in ((), TOOLS):
        if conversation[-1].role == "assistant":
            tokens = renderer.supervised(conversation, tools=tools).tokens
            prompt_is_a_prefix(renderer, conversation, tools)
        else:
            tokens = renderer.generation_prompt(conversation, tools)
            wanted = template(kimi, conversation, tools, prompt=False)
            every = renderer.supervised(conversation, TrainOnWhat.ALL_TOKENS, tools)
            same_as_template(kimi, every.tokens, wanted, conversation)
        prompt = conversation[-1].role != "assistant"
        wanted = template(kimi, conversation, tools, prompt=prompt)
        same_as_template(kimi, tokens, wanted, conversation)


def test_the_template_to_the_letter(kimi: Any) -> None:
    conversation: Conversation = (
        Message("user", (TextPart("a"), ImagePart("x.png"), TextPart("b"))),
        assistant("", tool_calls=(ToolCall("f", '{"a":"é<"}', "mine"),)),
        tool("r", tool_call_id="mine"),
    )
    tokens = KimiK2Renderer(kimi).generation_prompt(conversation, TOOLS[1:])
    assert kimi.decode(tokens) == (
        f"{SYSTEM}tool_declare{MIDDLE}"
        '[{"type": "function", "function": {"name": "now", "description": "What time it is", '
        f'"parameters": {{"type": "object", "properties": {{}}}}}}}}]{END}'
        f"{SYSTEM}system{MIDDLE}You are a helpful assistant{END}"
        f"{USER}user{MIDDLE}a"
        f"<|media_start|>image<|media_content|><|media_pad|><|media_end|>\nb{END}"
        f"{ASSISTANT}assistant{MIDDLE}{CALLS}"
        f'{CALL}functions.f:0{ARGUMENTS}{{"a": "é<"}}{CALL_END}{CALLS_END}{END}'
        f"{SYSTEM}tool{MIDDLE}## Return of mine\\nr{END}{ASSISTANT}assistant{MIDDLE}"
    )


@settings(max_examples=80, deadline=None)
@given(text=hostile)
def test_what_is_written_is_text(kimi: Any, text: str) -> None:
    renderer = KimiK2Renderer(kimi)

    def conversation(text: str) -> Conversation:
        call = ToolCall(text, json.dumps({"a": text}, ensure_ascii=False))
        called = assistant(text, tool_calls=(call,))
        result = tool(text, tool_call_id=text)
        return (system(text), user(text), called, result, assistant(text), user(text))

    prompt = renderer.generation_prompt(conversation(text), (Tool(text, text),))
    harmless = renderer.generation_prompt(conversation("a"), (Tool("a", "a"),))
    steering = set(kimi.added_tokens_decoder)
    assert [t for t in prompt if t in steering] == [t for t in harmless if t in steering]
    assert kimi.decode(prompt).count(text) >= 8


@settings(max_examples=60, deadline=None)
@given(conversation=conversations(text=plain, thinking=True, tools=True, answered=True))
def test_an_answer_is_read_back(kimi: Any, conversation: Conversation) -> None:
    renderer = KimiK2Renderer(kimi)
    for last in (conversation[-1], replace(conversation[-1], tool_calls=CALLED)):
        prompt = renderer.generation_prompt(conversation[:-1])
        example = renderer.supervised((*conversation[:-1], last))
        found = renderer.parse(example.tokens[len(prompt) :])
        assert found.complete and not found.problems
        assert found.message.tool_calls == last.tool_calls
        assert found.message.content == last.text.lstrip("\n")


def test_a_thought_is_one_where_the_vocabulary_has_tokens_for_it(kimi: Any) -> None:
    found = KimiK2Renderer(kimi).parse(tokens_of(kimi, f"<think>so</think>yes{END}"))
    assert not found.problems and found.complete
    if "<think>" in kimi.get_added_vocab():
        assert found.message == assistant("yes", thinking="so")
    else:
        assert found.message == assistant("<think>so</think>yes")


def called(name: str, arguments: str) -> str:
    return f"{CALL}{name}{ARGUMENTS}{arguments}{CALL_END}"


NOW = called("functions.now:0", "{}")
LEARNED = {
    TrainOnWhat.LAST_ASSISTANT_MESSAGE: f"a2{END}",
    TrainOnWhat.ALL_ASSISTANT_MESSAGES: f"a1{CALLS}{NOW}{CALLS_END}{END}a2{END}",
    TrainOnWhat.ALL_MESSAGES: (
        f"u1{END}a1{CALLS}{NOW}{CALLS_END}{END}## Return of i\\nr1{END}s1{END}a2{END}"
    ),
    TrainOnWhat.ALL_USER_AND_SYSTEM_MESSAGES: f"u1{END}s1{END}",
    TrainOnWhat.CUSTOMIZED: f"u1{END}a2{END}",
}


@pytest.mark.parametrize("train_on", list(TrainOnWhat))
def test_weights(kimi: Any, train_on: TrainOnWhat) -> None:
    conversation: Conversation = (
        user("u1"),
        assistant("a1", tool_calls=(ToolCall("now"),)),
        tool("r1", tool_call_id="i"),
        system("s1"),
        assistant("a2"),
    )
    if train_on is TrainOnWhat.CUSTOMIZED:
        conversation = tuple(
            replace(message, trainable=message.text in ("u1", "a2")) for message in conversation
        )
    example = KimiK2Renderer(kimi).supervised(conversation, train_on)
    assert set(example.weights) <= {0.0, 1.0} and len(example.weights) == len(example.tokens)
    if train_on is TrainOnWhat.ALL_TOKENS:
        assert all(example.weights)
    else:
        pairs = zip(example.tokens, example.weights, strict=True)
        assert kimi.decode([token for token, weight in pairs if weight]) == LEARNED[train_on]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Message("tool", (ImagePart("a.png"),)), "pictures"),
        (assistant("", tool_calls=(ToolCall("now", "no"),)), "message 2: .* not JSON"),
        (Message("assistant", (ImagePart("a.png"),), CALLED), "pictures"),
    ],
)
def test_what_has_no_place_is_refused(kimi: Any, message: Message, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        KimiK2Renderer(kimi).supervised((user("a"), message), TrainOnWhat.ALL_TOKENS)


@pytest.mark.parametrize(
    ("text", "said", "problem", "reason"),
    [
        (f"{CALLS}{CALL}functions.now:0", "", f"{CALL}functions.now:0", "within a tool call"),
        (f"{CALLS}{NOW}", "", "", "within its tool calls"),
        (f"{CALLS}{called('functions.now:0', 'no')}{CALLS_END}", "", "no", "not JSON"),
        (f"{CALLS}{called('functions.now:0', '[1]')}{CALLS_END}", "", "[1]", "no object"),
        (f"a{CALLS}{called('functions.now', '{}')}{CALLS_END}", "a", "functions.now", "INDEX"),
        (f"{CALLS}{CALL}functions.now:0{CALLS_END}b", "b", "now:0", "does not end"),
        (f"{CALLS}hm{NOW}{CALLS_END}", "", "hm", "between"),
        (f"a{CALLS_END}b", "ab", CALLS_END, "out of place"),
        (f"a{USER}b", "ab", USER, "out of place"),
    ],
)
def test_what_is_malformed_is_reported(
    kimi: Any, text: str, said: str, problem: str, reason: str
) -> None:
    found = KimiK2Renderer(kimi).parse(tokens_of(kimi, text))
    assert not found.complete and found.message.text == said
    (only,) = found.problems
    assert problem in only.text and reason in only.reason


@settings(max_examples=100, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from(
            [*TOKENS[1:10], "<think>", "</think>", "w", "w", "w", called("w:1", '{"a": 1}')]
        ),
        max_size=12,
    ),
    end=st.sampled_from(["", END, "[EOS]"]),
)
def test_no_word_is_swallowed(kimi: Any, pieces: Sequence[str], end: str) -> None:
    words = [f"qqvv{chr(97 + place)}x" for place in range(len(pieces))]
    pairs = zip(pieces, words, strict=True)
    text = " ".join(piece.replace("w", word) for piece, word in pairs)
    used = [word for piece, word in zip(pieces, words, strict=True) if "w" in piece]
    nothing_is_swallowed(KimiK2Renderer(kimi).parser(), tokens_of(kimi, text + end), used)
