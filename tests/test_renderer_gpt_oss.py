"""gpt-oss's format is its template's, token for token, and its answers are read back."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rendering import (
    TOOLS,
    as_template,
    conversations,
    hostile,
    plain,
    prompt_is_a_prefix,
    tokenizer,
    unicode,
)

from shammah.errors import InputError
from shammah.messages import (
    Conversation,
    ImagePart,
    Message,
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
from shammah.renderers.gpt_oss import GptOssRenderer, Reasoning
from shammah.renderers.typescript import typescript_namespace

MODES: tuple[Reasoning, ...] = get_args(Reasoning)
TODAY = date(2025, 6, 28)
CALL = ToolCall("get_weather", '{"town": "Köln", "days": 2}')


@pytest.fixture(scope="module")
def gpt() -> Any:
    return tokenizer("gpt-oss")


def row(message: Message) -> dict[str, Any]:
    """The message as this template wants it: thinking by its name, arguments as an object."""
    found = as_template(message)
    if "reasoning_content" in found:
        found["thinking"] = found.pop("reasoning_content")
    for call in found.get("tool_calls", ()):
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return found


def template(
    gpt: Any, conversation: Conversation, tools: Sequence[Tool], mode: Reasoning, **more: Any
) -> str:
    effort = "medium" if mode == "no_system_prompt" else mode
    written = gpt.apply_chat_template(
        [row(message) for message in conversation],
        tools=[tool.to_dict() for tool in tools] or None,
        tokenize=False,
        reasoning_effort=effort,
        **more,
    )
    written = re.sub("(?<=Current date: )[0-9-]+", TODAY.isoformat(), written, count=1)
    return str(written.partition("<|end|>")[2] if mode == "no_system_prompt" else written)


def thought_or_said(conversation: Conversation) -> Conversation:
    """The template has no place for both beside a call."""
    return tuple(
        message.with_text("") if message.tool_calls and message.thinking else message
        for message in conversation
    )


def fits_its_prompt(conversation: Conversation) -> bool:
    """Whether no thought before a call is left out by the answer that ends the conversation."""
    if conversation[-1].tool_calls:
        return True
    answers = [i for i, m in enumerate(conversation) if m.role == "assistant" and not m.tool_calls]
    since = answers[-2] if len(answers) > 1 else -1
    called = [m for m in conversation[since + 1 :] if m.tool_calls]
    return not any(message.thinking or message.text for message in called)


talks = conversations(thinking=True, tools=True, most_calls=1).map(thought_or_said)


@settings(max_examples=40, deadline=None)
@given(conversation=talks)
@pytest.mark.parametrize("mode", MODES)
def test_it_is_the_template(gpt: Any, mode: Reasoning, conversation: Conversation) -> None:
    renderer = GptOssRenderer(gpt, reasoning=mode, today=TODAY)
    for tools in ((), TOOLS):
        if conversation[-1].role == "assistant":
            wanted = template(gpt, conversation, tools, mode)
            tokens = renderer.supervised(conversation, tools=tools).tokens
            if fits_its_prompt(conversation):
                prompt_is_a_prefix(renderer, conversation, tools)
        else:
            wanted = template(gpt, conversation, tools, mode, add_generation_prompt=True)
            tokens = renderer.generation_prompt(conversation, tools)
        assert tokens == gpt(wanted, add_special_tokens=False)["input_ids"]


@settings(max_examples=40, deadline=None)
@given(conversation=talks)
def test_a_call_at_the_end_is_the_template(gpt: Any, conversation: Conversation) -> None:
    renderer = GptOssRenderer(gpt, today=TODAY)
    for last in (
        assistant("", thinking="hm", tool_calls=[CALL]),
        assistant("a", tool_calls=[CALL]),
    ):
        if conversation[-1].role == "assistant":
            conversation = (*conversation, user("And there?"))
        called = (*conversation, last)
        wanted = template(gpt, called, TOOLS, "medium")
        assert (
            renderer.supervised(called, tools=TOOLS).tokens
            == gpt(wanted, add_special_tokens=False)["input_ids"]
        )
        prompt_is_a_prefix(renderer, called, TOOLS)
        answered = (*called, tool("18 °C", name="get_weather"))
        wanted = template(gpt, answered, TOOLS, "medium", add_generation_prompt=True)
        assert (
            renderer.generation_prompt(answered, TOOLS)
            == gpt(wanted, add_special_tokens=False)["input_ids"]
        )


def described(schemas: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(
        lambda schema, more: schema | more,
        schemas,
        st.fixed_dictionaries(
            {}, optional={"description": plain | unicode, "nullable": st.booleans()}
        ),
    )


scalars = st.sampled_from(["string", "number", "integer", "boolean", "null", "object", "array"])
leaves = (
    scalars.map(lambda kind: {"type": kind})
    | st.lists(scalars, max_size=3).map(lambda kinds: {"type": kinds})
    | st.lists(plain | st.integers(), min_size=1, max_size=3).map(
        lambda values: {"type": "string", "enum": values}
    )
    | st.just({})
)
defaults = st.none() | st.booleans() | st.integers() | plain | st.just([1, "é"])


def nested(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from(["a", "town", "größe", "x-y"])
    variant = st.builds(lambda schema, value: schema | value, inner, defaulted)
    return (
        inner.map(lambda schema: {"type": "array", "items": schema})
        | st.lists(variant, min_size=1, max_size=3).map(lambda kinds: {"oneOf": kinds})
        | st.builds(
            lambda properties, required: {
                "type": "object",
                "properties": properties,
                "required": required,
            },
            st.dictionaries(names, inner, max_size=3),
            st.lists(names, max_size=2),
        )
    )


defaulted = st.fixed_dictionaries({}, optional={"default": defaults})
schemas = st.recursive(described(leaves), lambda inner: described(nested(inner)), max_leaves=6)


@st.composite
def declared_tools(draw: st.DrawFn) -> Tool:
    properties = draw(st.dictionaries(st.sampled_from(["a", "b", "größe"]), schemas, max_size=3))
    for schema in properties.values():
        texts_only = schema.get("enum") or schema.get("oneOf")
        if draw(st.booleans()):
            schema["default"] = draw(plain if texts_only else defaults)
    required = draw(st.none() | st.lists(st.sampled_from(["a", "b"]), max_size=2))
    parameters = {"type": "object", "properties": properties}
    if required is not None:
        parameters["required"] = required
    return Tool(draw(st.sampled_from(["now", "look_up"])), draw(plain | unicode), parameters)


@settings(max_examples=150, deadline=None)
@given(tools=st.lists(declared_tools(), min_size=1, max_size=2))
def test_declarations_are_the_templates(gpt: Any, tools: list[Tool]) -> None:
    wanted = template(gpt, (user("a"),), tools, "low")
    assert f"# Tools\n\n{typescript_namespace('functions', tools)}<|end|>" in wanted


def test_parameters_that_are_no_schema_are_an_input_error() -> None:
    with pytest.raises(InputError, match="look_up are no JSON schema"):
        typescript_namespace("functions", [Tool("look_up", "", {"properties": ["a"]})])


@settings(max_examples=30, deadline=None)
@given(text=hostile)
@pytest.mark.parametrize("mode", MODES)
def test_what_others_write_is_text(gpt: Any, mode: Reasoning, text: str) -> None:
    renderer = GptOssRenderer(gpt, reasoning=mode, today=TODAY)

    def prompt(text: str) -> list[int]:
        asked = (
            *(system(text), user(text), assistant(text)),
            *(user(text), assistant(text, tool_calls=[CALL]), tool(text)),
        )
        return renderer.generation_prompt(asked, [Tool("now", text)])

    steering = set(gpt.added_tokens_decoder)
    found = prompt(text)
    assert [t for t in found if t in steering] == [t for t in prompt("a") if t in steering]
    assert gpt.decode(found).count(text) >= 6


def learned(gpt: Any, conversation: Conversation, train_on: TrainOnWhat) -> list[str]:
    """The stretches of text that are learned."""
    example = GptOssRenderer(gpt, today=TODAY).supervised(conversation, train_on, TOOLS)
    stretches: list[list[int]] = [[]]
    for token, weight in zip(example.tokens, example.weights, strict=True):
        if weight:
            stretches[-1].append(token)
        elif stretches[-1]:
            stretches.append([])
    return [gpt.decode(stretch) for stretch in stretches if stretch]


def test_what_is_learned_is_what_its_author_writes(gpt: Any) -> None:
    conversation = (
        *(system("Be kind."), user("Hi"), assistant("Hello", thinking="greet")),
        *(user("Weather?"), assistant("", thinking="look", tool_calls=[CALL]), tool("18")),
        assistant("18 °C", thinking="so"),
    )
    final, analysis = "<|channel|>final<|message|>", "<|channel|>analysis<|message|>"
    call = f" to=functions.get_weather<|channel|>commentary json<|message|>{CALL.arguments}<|call|>"
    last = f"{analysis}so<|end|><|start|>assistant{final}18 °C<|return|>"
    assert learned(gpt, conversation, TrainOnWhat.LAST_ASSISTANT_MESSAGE) == [last]
    # No model ends a final message with <|end|>: in history that is not learned.
    answers = [f"{final}Hello", call, last]
    assert learned(gpt, conversation, TrainOnWhat.ALL_ASSISTANT_MESSAGES) == answers
    said = learned(gpt, conversation, TrainOnWhat.ALL_MESSAGES)
    assert said[0].startswith("Be kind.\n\n# Tools") and said[0].endswith("<|end|>")
    assert said[1:] == ["Hi<|end|>", answers[0], "Weather?<|end|>", call, '"18"<|end|>', last]
    others = learned(gpt, conversation, TrainOnWhat.ALL_USER_AND_SYSTEM_MESSAGES)
    assert others == [said[0], said[1], said[3]]
    (everything,) = learned(gpt, conversation, TrainOnWhat.ALL_TOKENS)
    assert everything == template(gpt, conversation, TOOLS, "medium")
    marked = tuple(replace(m, trainable=m.text in ("Hi", "18 °C")) for m in conversation)
    assert learned(gpt, marked, TrainOnWhat.CUSTOMIZED) == ["Hi<|end|>", last]


def test_history_is_written_otherwise_than_the_model_wrote_it(gpt: Any) -> None:
    renderer = GptOssRenderer(gpt, today=TODAY)
    asked = (user("a"),)
    example = renderer.supervised((*asked, assistant("b", thinking="t"))).tokens
    later = renderer.generation_prompt((*asked, assistant("b", thinking="t"), user("c")))
    assert gpt.decode(example).endswith(
        "<|channel|>analysis<|message|>t<|end|><|start|>assistant"
        "<|channel|>final<|message|>b<|return|>"
    )
    assert gpt.decode(later).endswith(
        "<|start|>assistant<|channel|>final<|message|>b<|end|>"
        "<|start|>user<|message|>c<|end|><|start|>assistant"
    )
    called = (*asked, assistant("", thinking="t", tool_calls=[CALL]), tool("18"))
    prompt = gpt.decode(renderer.generation_prompt(called))
    answered = gpt.decode(renderer.supervised((*called, assistant("b"))).tokens)
    thought = "<|start|>assistant<|channel|>analysis<|message|>t<|end|>"
    assert thought in prompt and answered.startswith(prompt.replace(thought, ""))


def test_a_preamble_beside_a_thought_is_told_to_the_user(gpt: Any) -> None:
    renderer = GptOssRenderer(gpt, today=TODAY)
    said = assistant("I'll look.", thinking="hm", tool_calls=[CALL])
    prompt = renderer.generation_prompt((user("a"),))
    written = renderer.supervised((user("a"), said)).tokens[len(prompt) :]
    assert "<|channel|>commentary<|message|>I'll look.<|end|>" in gpt.decode(written)
    assert renderer.parse(written).message == said


def test_what_the_format_has_no_place_for_is_an_input_error(gpt: Any) -> None:
    renderer = GptOssRenderer(gpt)
    for refused, reason in (
        ((user("a"), assistant("", tool_calls=[CALL, CALL]), tool("b")), "with 2"),
        ((user("a"), tool("b")), "no tool was called"),
        ((user("a"), system("b")), "Message 2 is the system's"),
        ((user("a"), assistant("", tool_calls=[ToolCall("a<|end|>")]), tool("b")), "cannot call"),
        ((Message("user", (ImagePart("a.png"),)),), "no place for pictures"),
    ):
        with pytest.raises(InputError, match=reason):
            renderer.generation_prompt(refused)


def test_the_system_turn_says_today(gpt: Any) -> None:
    tokens = GptOssRenderer(gpt, today=TODAY).generation_prompt((user("a"),))
    assert "Current date: 2025-06-28\n\nReasoning: medium" in gpt.decode(tokens)
    before = date.today()
    prompt = gpt.decode(GptOssRenderer(gpt, reasoning="high").generation_prompt((user("a"),)))
    assert any(f"date: {day}\n\nReasoning: high" in prompt for day in (before, date.today()))
    assert GptOssRenderer(gpt, reasoning="high").name == "gpt_oss_high"


@settings(max_examples=40, deadline=None)
@given(conversation=talks.filter(lambda talk: talk[-1].role == "assistant"))
def test_an_answer_is_read_back(gpt: Any, conversation: Conversation) -> None:
    renderer = GptOssRenderer(gpt, today=TODAY)
    asked = tuple(m for m in conversation[:-1] if not m.tool_calls and m.role != "tool")
    prompt = renderer.generation_prompt(asked)
    for last in (conversation[-1], replace(conversation[-1], tool_calls=(CALL,))):
        written = renderer.supervised((*asked, last)).tokens[len(prompt) :]
        found = renderer.parse(written)
        assert found.complete and not found.problems
        assert found.message.tool_calls == last.tool_calls
        if last.tool_calls and not last.thinking:  # said beside a call: a thought
            assert (found.message.thinking or "") == last.text and not found.message.text
        else:
            assert found.message.text == last.text
            assert (found.message.thinking or "") == (last.thinking or "")


@settings(max_examples=40, deadline=None)
@given(text=hostile | plain | unicode)
def test_an_answer_streams_as_it_is_read_whole(gpt: Any, text: str) -> None:
    renderer = GptOssRenderer(gpt, today=TODAY)
    prompt = renderer.generation_prompt((user("a"),))
    said = assistant(text, thinking=f"{text}\n", tool_calls=[CALL])
    written = renderer.supervised((user("a"), said)).tokens[len(prompt) :]
    parser = renderer.parser()
    deltas = [delta for token in written for delta in parser.feed(token)]
    rest, found = parser.finish()
    deltas += rest
    assert found == renderer.parse(written) and found.message.text == text
    assert "".join(d.text for d in deltas if isinstance(d, TextPart)) == text
    assert "".join(d.thinking for d in deltas if isinstance(d, ThinkingPart)) == f"{text}\n"
    assert [d for d in deltas if isinstance(d, ToolCall)] == [CALL]


HEADERS = [
    " to=functions.now<|channel|>commentary json<|message|>",
    " to=functions.now<|channel|>commentary <|constrain|>json<|message|>",
    "<|channel|>commentary to=functions.now <|constrain|>json<|message|>",
    "<|channel|>commentary to=functions.now<|constrain|>json<|message|>",
    "<|channel|>commentary to=functions.now<|message|>",
    "<|channel|>analysis to=functions.now code<|message|>",
    "<|channel|>analysis<|message|>t<|end|><|start|>assistant to=functions.now"
    "<|channel|>commentary <|constrain|>json<|message|>",
]


@pytest.mark.parametrize("header", HEADERS)
def test_a_recipient_may_stand_in_either_place(gpt: Any, header: str) -> None:
    found = GptOssRenderer(gpt).parse(gpt(f'{header}{{"a":1}}<|call|>')["input_ids"])
    assert found.complete and not found.problems
    assert found.message.tool_calls == (ToolCall("now", '{"a":1}'),)


def test_several_messages_are_one_answer(gpt: Any) -> None:
    written = (
        "<|channel|>analysis<|message|>One.<|end|><|start|>assistant<|channel|>analysis<|message|>"
        "Two.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        "<|start|>assistant<|channel|>analysis<|message|>Three.<|end|>"
        '<|start|>assistant<|channel|>commentary to=functions.now<|message|>{"a": 1}<|end|>'
        "<|start|>assistant<|channel|>commentary to=functions.now<|message|>{}<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Done.<|return|>behind"
    )
    found = GptOssRenderer(gpt).parse(gpt(written)["input_ids"])
    assert found.complete and not found.problems
    assert found.message.content == (
        ThinkingPart("One.\n\nTwo."),
        TextPart("I look."),
        ThinkingPart("Three."),
        TextPart("Done."),
    )
    assert found.message.tool_calls == (ToolCall("now", '{"a": 1}'), ToolCall("now"))


C, M, F = "<|channel|>", "<|message|>", "<|channel|>final<|message|>"
CALLS = "<|channel|>commentary to=functions.now<|message|>"


@pytest.mark.parametrize(
    ("written", "said", "problems"),
    [
        (f"{F}Hel", "Hel", []),
        ("", "", []),
        (f"{C}analysis{M}hm", "", [("", "within a thought")]),
        (f"{C}analysis{M}hm<|return|>", "", [("<|return|>", "within a thought")]),
        (f"{C}final", "", [(f"{C}final", "within a header")]),
        ("Hello", "", [("Hello", "within a header")]),
        ("Hello<|return|>", "", [("Hello<|return|>", "without a message")]),
        (f"{M}Hello<|return|>", "", [(f"{M}Hello", "no channel")]),
        (f"{C}chat{M}Hello", "", [(f"{C}chat{M}Hello", "channel 'chat'")]),
        (f"{CALLS}{{<|call|>", "", [("{", "not JSON")]),
        (f"{CALLS}[1]<|call|>", "", [("[1]", "no object")]),
        (f'{CALLS}{{"a":', "", [('{"a":', "within a tool call")]),
        (f"{C}commentary to=python{M}1<|call|>", "", [(f"{M}1", "no function")]),
        (f"{F}a<|call|>", "a", [("<|call|>", "calls no tool")]),
        (f"{F}a<|end|> b <|start|>assistant{F}c<|return|>", "a\n\nc", [(" b ", "between")]),
        (f"{F}a<|end|><|start|>user{M}b<|end|>", "a", [(f"<|start|>user{M}b", "not the assist")]),
        (f"{F}a<|end|>{F}b<|return|>", "a\n\nb", [(C, "no message before")]),
        (f"{F}a{M}b<|constrain|><|return|>", "ab", [(M, "outside"), ("<|constrain|>", "outside")]),
        (f"<|start|>assistant{F}a<|return|>", "a", [("<|start|>", "without a message")]),
        (f"{C}analysis{M}t{F}a<|return|>", "a", [(C, "does not end")]),
        (
            f"{C}commentary{M}p<|start|>assistant{F}a<|return|>",
            "p\n\na",
            [("<|start|>", "not end")],
        ),
    ],
)
def test_what_is_malformed_is_reported(
    gpt: Any, written: str, said: str, problems: list[tuple[str, str]]
) -> None:
    found = GptOssRenderer(gpt).parse(gpt(written)["input_ids"])
    assert found.message.text == said and not found.message.tool_calls
    assert found.complete == any(end in written for end in ("<|return|>", "<|call|>"))
    assert len(found.problems) == len(problems)
    for problem, (text, reason) in zip(found.problems, problems, strict=True):
        assert text in problem.text and reason in problem.reason


pieces = st.sampled_from(
    [
        *("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"),
        *("assistant", "user", "analysis", "commentary", "final", " to=functions.now", "json"),
        *("<|constrain|>", "<|channel|>final<|message|>", "<|channel|>analysis<|message|>", "{}"),
        *("<|end|><|start|>assistant", "\n", " "),
    ]
)


@settings(max_examples=150, deadline=None)
@given(written=st.lists(pieces, max_size=14))
def test_whatever_a_model_writes_is_read_or_reported(gpt: Any, written: list[str]) -> None:
    renderer = GptOssRenderer(gpt, today=TODAY)
    numbered = [
        f"{piece} word{number} " if piece.endswith("<|message|>") else piece
        for number, piece in enumerate(written)
    ]
    tokens = gpt("".join(numbered))["input_ids"]
    parser = renderer.parser()
    deltas = [delta for token in tokens for delta in parser.feed(token)]
    rest, found = parser.finish()
    assert found == renderer.parse(tokens)
    assert [d for d in deltas + rest if isinstance(d, ToolCall)] == [*found.message.tool_calls]
    kept = f"{found.message.content} {found.message.tool_calls} {found.problems}"
    ended = next((n for n, piece in enumerate(written) if piece in ("<|return|>", "<|call|>")), 99)
    assert found.complete == (ended < 99)
    for number in range(min(ended, len(written))):
        assert f"word{number} " not in numbered[number] or f"word{number} " in kept
