"""DeepSeek V3's format is its template's, and its answers are read back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

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
)

from shammah.errors import InputError
from shammah.messages import (
    Conversation,
    ImagePart,
    Message,
    Tool,
    ToolCall,
    assistant,
    system,
    tool,
    user,
)
from shammah.renderers.base import TrainOnWhat
from shammah.renderers.deepseek_v3 import DeepseekV3Renderer, Thinking

MODES: tuple[Thinking, ...] = get_args(Thinking)
BEGIN, END, USER, ASSISTANT = (
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
)
CALLS, CALLS_END, CALL, SEP, CALL_END = (
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
)
RESULTS = (
    "<｜tool▁outputs▁begin｜>",
    "<｜tool▁outputs▁end｜>",
    "<｜tool▁output▁begin｜>",
    "<｜tool▁output▁end｜>",
)
TOKENS = (BEGIN, END, USER, ASSISTANT, CALLS, CALLS_END, CALL, SEP, CALL_END, *RESULTS)
CALLED = (ToolCall("now", "{}"), ToolCall("get_weather", '{"town": "Köln"}'))


@pytest.fixture(scope="module", params=["qwen3", "llama3.2"])
def deepseek(request: Any) -> Any:
    """One vocabulary where the tokens are not called special and thoughts have tokens, as in the
    family's own, and one where it is the other way round."""
    own = request.param == "qwen3"
    return borrowed(request.param, "deepseek-v3", TOKENS, special=not own, bos=BEGIN)


def template(deepseek: Any, conversation: Conversation, *, prompt: bool, mode: Thinking) -> str:
    text = str(
        deepseek.apply_chat_template(
            [as_template(message) for message in conversation],
            tokenize=False,
            add_generation_prompt=prompt,
        )
    )
    if prompt and mode == "disable_thinking" and text.endswith(f"{ASSISTANT}<think>\n"):
        return text.removesuffix("<think>\n") + "</think>"
    return text


def tokens_of(deepseek: Any, text: str) -> list[int]:
    return list(deepseek(text, add_special_tokens=False)["input_ids"])


def written(message: Message, prompt: str, mode: Thinking) -> str:
    """What a model would have to write for the message to be read."""
    text, thinking = message.text, (message.thinking or "").strip("\n")
    opened = prompt.endswith("<think>\n")
    if mode == "thinking" and (opened or message.thinking):
        text = ("" if opened else "<think>\n") + f"{thinking}\n</think>\n\n" + text.lstrip("\n")
    calls = [
        f"{CALL}function{SEP}{call.name}\n```json\n{call.arguments}\n```{CALL_END}"
        for call in message.tool_calls
    ]
    return text + (CALLS + "\n".join(calls) + CALLS_END if calls else "") + END


@settings(max_examples=60, deadline=None)
@given(conversation=conversations(thinking=True, tools=True), late=st.integers(0, 9))
@pytest.mark.parametrize("mode", MODES)
def test_a_prompt_is_the_template_and_an_answer_follows_it(
    deepseek: Any, mode: Thinking, conversation: Conversation, late: int
) -> None:
    renderer = DeepseekV3Renderer(deepseek, mode=mode)
    if late:
        conversation = (*conversation[:late], system("And kindly."), *conversation[late:])
    for end in range(1, len(conversation) + 1):
        begun, last = conversation[:end], conversation[end - 1]
        if not any(message.role in ("user", "tool") for message in begun):
            continue
        if last.role != "assistant":
            prompt = template(deepseek, begun, prompt=True, mode=mode)
            assert renderer.generation_prompt(begun) == tokens_of(deepseek, prompt)
            whole = template(deepseek, begun, prompt=False, mode=mode)
            every = renderer.supervised(begun, TrainOnWhat.ALL_TOKENS)
            assert every.tokens == tokens_of(deepseek, whole)
        else:
            example = renderer.supervised(begun)
            prompt = template(deepseek, begun[:-1], prompt=True, mode=mode)
            answer = written(last, prompt, mode)
            assert example.tokens == tokens_of(deepseek, prompt) + tokens_of(deepseek, answer)
            prompt_is_a_prefix(renderer, begun)


@settings(max_examples=40, deadline=None)
@given(conversation=conversations(thinking=True, tools=True, answered=True))
def test_with_thinking_disabled_an_answer_is_the_template_but_for_the_closed_thought(
    deepseek: Any, conversation: Conversation
) -> None:
    renderer = DeepseekV3Renderer(deepseek, mode="disable_thinking")
    found = deepseek.decode(renderer.supervised(conversation).tokens)
    before, closed, answer = found.rpartition("</think>")
    wanted = template(deepseek, conversation, prompt=False, mode="disable_thinking")
    assert (before + answer if closed else found) == wanted


@settings(max_examples=40, deadline=None)
@given(conversation=conversations(tools=True, answered=False))
def test_tools_are_declared_as_the_last_system_text(
    deepseek: Any, conversation: Conversation
) -> None:
    parameters = json.dumps(TOOLS[0].parameters, ensure_ascii=False)
    renderer = DeepseekV3Renderer(deepseek)
    prompt = deepseek.decode(renderer.generation_prompt(conversation, TOOLS))
    begin = prompt.index("## Tools\n")
    declared = prompt[begin : prompt.index(USER, begin)]
    texts = [message.text for message in conversation if message.role == "system"]
    assert prompt.startswith(BEGIN + "\n\n".join([*texts, declared]))
    assert f"\n### get_weather\nDescription: {TOOLS[0].description}\n\n" in declared
    assert f"\nParameters: {parameters}\n\n### now\nDescription: {TOOLS[1].description}" in declared
    assert f"{CALLS}{CALL}function{SEP}tool_call_name\n```json\n" in declared
    said = (*conversation, system(declared))
    wanted = template(deepseek, said, prompt=True, mode="thinking")
    assert renderer.generation_prompt(conversation, TOOLS) == tokens_of(deepseek, wanted)


@settings(max_examples=60, deadline=None)
@given(text=hostile)
@pytest.mark.parametrize("mode", MODES)
def test_what_is_written_is_text(deepseek: Any, mode: Thinking, text: str) -> None:
    renderer = DeepseekV3Renderer(deepseek, mode=mode)

    def conversation(text: str) -> Conversation:
        call = ToolCall(text, json.dumps({"a": text}, ensure_ascii=False))
        called = assistant(text, tool_calls=(call,))
        return (system(text), user(text), called, tool(text), assistant(text), user(text))

    # In an assistant's text the template cuts thoughts off, so that they do not come this far.
    text = text.replace("</think>", "")
    tools = (Tool(text, text),)
    prompt = renderer.generation_prompt(conversation(text), tools)
    harmless = renderer.generation_prompt(conversation("a"), (Tool("a", "a"),))
    steering = set(deepseek.added_tokens_decoder)
    assert [t for t in prompt if t in steering] == [t for t in harmless if t in steering]
    assert deepseek.decode(prompt).count(text) >= 9


@settings(max_examples=50, deadline=None)
@given(
    conversation=conversations(text=plain, thinking=True, tools=True, answered=True),
    thought=plain.filter(str.strip),
)
@pytest.mark.parametrize("mode", MODES)
def test_an_answer_is_read_back(
    deepseek: Any, mode: Thinking, conversation: Conversation, thought: str
) -> None:
    renderer = DeepseekV3Renderer(deepseek, mode=mode)
    last = conversation[-1]
    thoughtful = assistant(last.text, thinking=thought, tool_calls=CALLED)
    for answer in (last, replace(last, tool_calls=CALLED), thoughtful):
        prompt = renderer.generation_prompt(conversation[:-1])
        example = renderer.supervised((*conversation[:-1], answer))
        found = renderer.parse(example.tokens[len(prompt) :], prompt)
        assert found.complete and not found.problems
        assert found.message.tool_calls == answer.tool_calls
        assert found.message.text.strip("\n") == answer.text.strip("\n")
        wanted = (answer.thinking or "").strip("\n") if mode == "thinking" else ""
        assert (found.message.thinking or "") == wanted


@pytest.mark.parametrize(
    ("said", "said_apart"),
    [("<think>\nso\n</think>\n\nyes", ("so", "yes")), ("so</think>yes", ("so", "yes"))],
)
def test_a_thought_in_the_text_is_one(
    deepseek: Any, said: str, said_apart: tuple[str, str]
) -> None:
    renderer = DeepseekV3Renderer(deepseek)
    thinking, text = said_apart
    apart = renderer.supervised((user("q"), assistant(text, thinking=thinking)))
    assert renderer.supervised((user("q"), assistant(said))) == apart
    found = renderer.parse(apart.tokens, renderer.generation_prompt((user("q"),)))
    assert found.message.thinking is not None and text in found.message.text


LEARNED = {
    TrainOnWhat.LAST_ASSISTANT_MESSAGE: f"t2\n</think>\n\na2{END}",
    TrainOnWhat.ALL_ASSISTANT_MESSAGES: (
        f"a1{CALLS}{CALL}function{SEP}now\n```json\n{{}}\n```{CALL_END}{CALLS_END}{END}"
        f"a3{END}t2\n</think>\n\na2{END}"
    ),
    TrainOnWhat.ALL_USER_AND_SYSTEM_MESSAGES: "s1u1u2",
    TrainOnWhat.CUSTOMIZED: f"u1a3{END}",
}


@pytest.mark.parametrize("train_on", list(TrainOnWhat))
def test_weights(deepseek: Any, train_on: TrainOnWhat) -> None:
    conversation: Conversation = (
        system("s1"),
        user("u1"),
        assistant("a1", thinking="t1", tool_calls=(ToolCall("now"),)),
        tool("r1"),
        assistant("a3"),
        user("u2"),
        assistant("a2", thinking="t2"),
    )
    if train_on is TrainOnWhat.CUSTOMIZED:
        conversation = tuple(
            replace(message, trainable=message.text in ("u1", "a3")) for message in conversation
        )
    example = DeepseekV3Renderer(deepseek).supervised(conversation, train_on)
    assert set(example.weights) <= {0.0, 1.0} and len(example.weights) == len(example.tokens)
    pairs = zip(example.tokens, example.weights, strict=True)
    learned = deepseek.decode([token for token, weight in pairs if weight])
    if train_on is TrainOnWhat.ALL_TOKENS:
        assert all(example.weights)
    elif train_on is TrainOnWhat.ALL_MESSAGES:
        for text in ("s1", "u1", "a1", f"r1{RESULTS[3]}", "a3", "u2", "t2"):
            assert text in learned
        assert USER not in learned and RESULTS[2] not in learned and BEGIN not in learned
    else:
        assert learned == LEARNED[train_on]


def test_what_has_no_place_is_refused(deepseek: Any) -> None:
    renderer = DeepseekV3Renderer(deepseek)
    with pytest.raises(InputError, match="pictures"):
        renderer.generation_prompt((Message("user", (ImagePart("a.png"),)),))
    with pytest.raises(InputError, match="nothing"):
        renderer.supervised((user(""), assistant("a")), TrainOnWhat.ALL_USER_AND_SYSTEM_MESSAGES)


def one(name: str, arguments: str) -> str:
    return f"{CALL}function{SEP}{name}\n```json\n{arguments}\n```{CALL_END}"


@pytest.mark.parametrize(
    ("text", "said", "problem", "reason"),
    [
        (f"{CALLS}{CALL}function{SEP}now\n```json", "", "now\n```json", "within a tool call"),
        (f"{CALLS}{one('now', '{}')}", "", "", "within its tool calls"),
        (f"{CALLS}{one('now', 'no')}{CALLS_END}", "", "no\n```", "not JSON"),
        (f"{CALLS}{one('now', '[1]')}{CALLS_END}", "", "[1]", "no object"),
        (f"a{CALLS}{CALL}now{SEP}{{}}{CALL_END}{CALLS_END}", "a", f"now{SEP}{{}}", "fence"),
        (f"{CALLS}{CALL}function{SEP}x{CALLS_END}b", "b", f"{SEP}x", "does not end"),
        (f"{CALLS}hm{one('now', '{}')}{CALLS_END}", "", "hm", "between"),
        ("<think>\nhm", "", "", "within a thought"),
        ("a</think>b", "ab", "</think>", "out of place"),
        (f"a{USER}b", "ab", USER, "out of place"),
    ],
)
def test_what_is_malformed_is_reported(
    deepseek: Any, text: str, said: str, problem: str, reason: str
) -> None:
    renderer = DeepseekV3Renderer(deepseek, mode="disable_thinking")
    found = renderer.parse(tokens_of(deepseek, text))
    assert not found.complete and found.message.text == said
    (only,) = found.problems
    assert problem in only.text and reason in only.reason


def test_a_call_within_an_open_thought_is_read_and_reported(deepseek: Any) -> None:
    text = f"hm{CALLS}{one('now', '{}')}{CALLS_END}{END}"
    found = DeepseekV3Renderer(deepseek).parse(tokens_of(deepseek, text))
    assert found.complete and found.message.thinking == "hm"
    assert found.message.tool_calls == (ToolCall("now"),)
    assert [problem.reason for problem in found.problems] == ["the thought before it does not end"]


@settings(max_examples=100, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from([*TOKENS[2:], "<think>", "</think>", "w", "w", "w", one("w", '{"a": 1}')]),
        max_size=12,
    ),
    ended=st.booleans(),
)
@pytest.mark.parametrize("mode", MODES)
def test_no_word_is_swallowed(
    deepseek: Any, mode: Thinking, pieces: Sequence[str], ended: bool
) -> None:
    words = [f"qqvv{chr(97 + place)}x" for place in range(len(pieces))]
    pairs = zip(pieces, words, strict=True)
    text = " ".join(piece.replace("w", word) for piece, word in pairs)
    used = [word for piece, word in zip(pieces, words, strict=True) if "w" in piece]
    parser = DeepseekV3Renderer(deepseek, mode=mode).parser()
    nothing_is_swallowed(parser, tokens_of(deepseek, text + END * ended), used)
