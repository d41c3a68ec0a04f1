"""Llama 3's format is its template's, token for token, and its answers are read back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from rendering import (
    TOOLS,
    as_template,
    conversations,
    hostile,
    plain,
    prompt_is_a_prefix,
    tokenizer,
)

from shammah.errors import InputError
from shammah.messages import (
    Conversation,
    ImagePart,
    Message,
    TextPart,
    Tool,
    ToolCall,
    assistant,
    system,
    tool,
    user,
)
from shammah.renderers.base import TrainOnWhat
from shammah.renderers.llama3 import Llama3Renderer

DATE = "26 Jul 2024"
CALL = ToolCall("get_weather", '{"town": "Köln", "days": 2}')
STORY = (
    system(" Be brief. "),
    user("What is the weather?"),
    assistant("", tool_calls=[CALL]),
    tool('It\n"rains"', name="get_weather"),
    assistant("It rains."),
    user("Thanks"),
    assistant("\n You are welcome. "),
)


@pytest.fixture(scope="module")
def llama() -> Any:
    return tokenizer("llama3.2")


def template(llama: Any, conversation: Conversation, tools: Sequence[Tool], **more: Any) -> str:
    rows = [as_template(message, objects=True) for message in conversation]
    declared = [tool.to_dict() for tool in tools] or None
    more = {"date_string": DATE, **more}
    return str(llama.apply_chat_template(rows, tools=declared, tokenize=False, **more))


@settings(max_examples=100, deadline=None)
@given(conversation=conversations(thinking=True, tools=True, most_calls=1))
def test_it_is_the_template(llama: Any, conversation: Conversation) -> None:
    renderer = Llama3Renderer(llama, date=DATE)
    for tools in ((), TOOLS):
        if conversation[-1].role == "assistant":
            wanted = template(llama, conversation, tools)
            tokens = renderer.supervised(conversation, tools=tools).tokens
            prompt_is_a_prefix(renderer, conversation, tools)
        else:
            wanted = template(llama, conversation, tools, add_generation_prompt=True)
            tokens = renderer.generation_prompt(conversation, tools)
        assert tokens == llama(wanted, add_special_tokens=False)["input_ids"]


def test_the_date_is_todays_where_none_is_given(llama: Any) -> None:
    prompt = llama.decode(Llama3Renderer(llama).generation_prompt((user("hi"),)))
    assert f"Today Date: {datetime.now():%d %b %Y}\n\n<|eot_id|>" in prompt


@settings(max_examples=80, deadline=None)
@given(text=hostile)
def test_what_people_and_tools_write_is_text(llama: Any, text: str) -> None:
    renderer = Llama3Renderer(llama, date=DATE)
    special = set(llama.added_tokens_decoder)

    def steering(text: str) -> tuple[str, list[int]]:
        called = assistant("", tool_calls=[ToolCall(text, f'{{"a": "{text}"}}')])
        asked = (system(text), user(text), called, tool(text), assistant(text), user("so?"))
        tokens = renderer.generation_prompt(asked, [Tool("now", text)])
        return llama.decode(tokens), [token for token in tokens if token in special]

    text = f"x{' '.join(text.split())}y"
    decoded, found = steering(text)
    assert found == steering("a")[1]
    assert decoded.count(text) >= 7


def learned(llama: Any, train_on: TrainOnWhat, story: Conversation = STORY) -> list[str]:
    """Each stretch of learned tokens, as text."""
    example = Llama3Renderer(llama, date=DATE).supervised(story, train_on, TOOLS[1:])
    stretches: list[list[int]] = []
    before = 0.0
    for token, weight in zip(example.tokens, example.weights, strict=True):
        if weight:
            stretches[-1 if before else len(stretches) :] = [
                [*(stretches[-1] if before else []), token]
            ]
        before = weight
    return [str(llama.decode(stretch)) for stretch in stretches]


def test_each_kind_of_training_learns_what_it_says(llama: Any) -> None:
    brief, asked, thanks = "Be brief.", "What is the weather?", "Thanks"
    call = '{"name": "get_weather", "parameters": {"town": "Köln", "days": 2}}'
    result, answers = '"It\\n\\"rains\\""', ("It rains.", "You are welcome.")

    def ended(*texts: str) -> list[str]:
        return [f"{text}<|eot_id|>" for text in texts]

    assert learned(llama, TrainOnWhat.LAST_ASSISTANT_MESSAGE) == ended(answers[1])
    assert learned(llama, TrainOnWhat.ALL_ASSISTANT_MESSAGES) == ended(call, *answers)
    assert learned(llama, TrainOnWhat.ALL_USER_AND_SYSTEM_MESSAGES) == ended(brief, asked, thanks)
    everything = ended(brief, asked, call, result, answers[0], thanks, answers[1])
    assert learned(llama, TrainOnWhat.ALL_MESSAGES) == everything
    whole = Llama3Renderer(llama, date=DATE).supervised(STORY, tools=TOOLS[1:]).tokens
    assert learned(llama, TrainOnWhat.ALL_TOKENS) == [llama.decode(whole)]
    chosen = tuple(replace(message, trainable=at in (1, 4)) for at, message in enumerate(STORY))
    assert learned(llama, TrainOnWhat.CUSTOMIZED, chosen) == ended(asked, answers[0])
    for train_on, story in ((TrainOnWhat.CUSTOMIZED, STORY), (TrainOnWhat.ALL_MESSAGES, chosen)):
        with pytest.raises(InputError, match="trainable"):
            learned(llama, train_on, story)


@pytest.mark.parametrize(
    ("conversation", "tools", "reason"),
    [
        ((user("a"), assistant("", tool_calls=[CALL, CALL]), tool("b"), tool("c")), (), "2 tools"),
        ((user("a"), assistant("", tool_calls=[ToolCall("n", "[")]), tool("b")), (), "not JSON"),
        ((assistant("a"), user("b")), TOOLS, "first question"),
        ((Message("user", (ImagePart("a.png"), TextPart("b"))),), (), "pictures"),
        ((system("a"),), (), "no question"),
    ],
)
def test_what_has_no_place_is_refused(
    llama: Any, conversation: Conversation, tools: Sequence[Tool], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        Llama3Renderer(llama).generation_prompt(conversation, tools)


@settings(max_examples=60, deadline=None)
@given(conversation=conversations(text=plain, tools=True, most_calls=1, answered=True))
def test_an_answer_is_read_back(llama: Any, conversation: Conversation) -> None:
    renderer = Llama3Renderer(llama)
    for last in (conversation[-1], assistant("", tool_calls=[CALL])):
        prompt = renderer.generation_prompt(conversation[:-1])
        example = renderer.supervised((*conversation[:-1], last))
        found = renderer.parse(example.tokens[len(prompt) :])
        assert found.complete and not found.problems
        assert found.message == assistant(last.text.strip(), tool_calls=last.tool_calls)


@pytest.mark.parametrize(
    ("written", "said", "calls", "reasons"),
    [
        ('{"name": "n", "parameters": {"a": 1}}<|eom_id|>', "", [("n", '{"a": 1}')], []),
        ('\n{ "name":"n", "parameters":{}}<|eot_id|>', "", [("n", "{}")], []),
        ('<|python_tag|>{"name": "n", "parameters": {}}<|eom_id|>', "", [("n", "{}")], []),
        ('Look:<|python_tag|>{"name": "n", "parameters": {}}', "Look:", [("n", "{}")], []),
        ('{"name": "Ann", "age": 3}<|eot_id|>', '{"name": "Ann", "age": 3}', [], []),
        ("{x | x > 0}<|eot_id|>", "{x | x > 0}", [], []),
        ('{"na<|eot_id|>', '{"na', [], []),
        ('a {"name": "n", "parameters": {}}', 'a {"name": "n", "parameters": {}}', [], []),
        ('{"name": "n", "parameters": {"a"', "", [], ["not JSON"]),
        ('{"name": "n", "parameters": {}}; {"name": "m"}<|eot_id|>', "", [], ["not JSON"]),
        ('{"name": "n", "parameters": [1]}<|eot_id|>', "", [], ["no object"]),
        (r'{"name": "n", "parameters": {"a": "\ud83d"}}<|eot_id|>', "", [], ["half a character"]),
        ("<|python_tag|>print(1)<|eom_id|>", "", [], ["no tool call"]),
        ("a<|start_header_id|>b<|eot_id|>", "ab", [], ["no place"]),
    ],
)
def test_what_a_model_writes_is_understood_or_reported(
    llama: Any, written: str, said: str, calls: list[tuple[str, str]], reasons: list[str]
) -> None:
    tokens = llama(written, add_special_tokens=False)["input_ids"]
    found = Llama3Renderer(llama).parse(tokens)
    assert found.complete == written.endswith(("<|eot_id|>", "<|eom_id|>"))
    assert found.message.text == said
    assert [(call.name, call.arguments) for call in found.message.tool_calls] == calls
    assert len(found.problems) == len(reasons)
    for problem, reason in zip(found.problems, reasons, strict=True):
        assert reason in problem.reason and problem.text in written


def test_text_comes_while_it_is_written(llama: Any) -> None:
    parser = Llama3Renderer(llama).parser()
    assert parser.feed(llama.convert_tokens_to_ids("Hello")) == [TextPart("Hello")]
    parser = Llama3Renderer(llama).parser()
    for token in llama('{"name": "n", "parameters": {}}', add_special_tokens=False)["input_ids"]:
        assert parser.feed(token) == []
    assert parser.finish()[0] == [ToolCall("n", "{}")]
