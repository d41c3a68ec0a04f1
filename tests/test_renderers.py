"""Conversations to tokens and back: equal to the templates, closed to look-alikes, with an end."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import SHARED
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rendering import learned, prompt_is_a_prefix
from tiny_models import CHATML, IM_END, IM_START, byte_tokenizer

from shammah.errors import ContextTooLongError, InputError, ModelError
from shammah.messages import (
    Conversation,
    ImagePart,
    Message,
    TextPart,
    Tool,
    ToolCall,
    assistant,
    system,
    to_dicts,
    tool,
    user,
)
from shammah.models.source import EMBEDDED
from shammah.renderers.base import Renderer, TrainOnWhat
from shammah.renderers.registry import renderer_for
from shammah.renderers.role_colon import RoleColonRenderer
from shammah.renderers.trim import trim_conversation

TOKENIZERS = {
    "embedded": EMBEDDED,
    **{
        name: SHARED / "tokenizers" / name
        for name in ("qwen3", "llama3.2", "tinyllama", "gpt-oss", "gpt2")
    },
}
TEMPLATED = [name for name in TOKENIZERS if name != "gpt2"]


@cache
def _load(name: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TOKENIZERS[name])


def tokenizer(name: str) -> Any:
    if not TOKENIZERS[name].exists():
        pytest.skip(f"{TOKENIZERS[name]} is not here")
    return _load(name)


@cache
def _renderer(name: str) -> Renderer:
    return renderer_for(_load(name))


words = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Co"]), min_size=0, max_size=20
)
plain = st.one_of(
    words, st.sampled_from(["Hello, you", "a\n\nb", "  spaces ", "naïve 日本 🙂", ""])
)


@st.composite
def conversations(draw: st.DrawFn, text: st.SearchStrategy[str] = plain) -> Conversation:
    messages: list[Message] = []
    if draw(st.booleans()):
        messages.append(system(draw(text)))
    for _ in range(draw(st.integers(0, 2))):
        messages += [user(draw(text)), assistant(draw(text))]
    return (*messages, user(draw(text)))


def without_look_alikes(name: str, conversation: Conversation) -> bool:
    marks = [token.content for token in tokenizer(name).added_tokens_decoder.values()]
    return not any(mark in message.content for mark in marks for message in conversation)


def begins_below(conversation: Conversation) -> bool:
    """Whether an answer begins with a line break. A template joins that with the one behind the
    header into one token; a model begins its answer behind the header, and the renderer with it."""
    answers = [message.text for message in conversation if message.role == "assistant"]
    return any(re.match(r"\s*[\n\r]", text) for text in answers)


def reference(name: str, conversation: Conversation, prompt: bool) -> list[int]:
    rendered = tokenizer(name).apply_chat_template(
        to_dicts(conversation), add_generation_prompt=prompt, return_dict=False
    )
    return list(rendered)


@pytest.mark.parametrize("name", TEMPLATED)
def test_prompts_equal_the_tokenizers_own_template(name: str) -> None:
    tokenizer(name)

    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    @given(conversations())
    def check(conversation: Conversation) -> None:
        if without_look_alikes(name, conversation) and not begins_below(conversation):
            got = _renderer(name).generation_prompt(conversation)
            assert got == reference(name, conversation, True)

    check()


@pytest.mark.parametrize("name", TEMPLATED)
def test_a_supervised_example_begins_with_the_prompt_and_ends_with_a_stop(name: str) -> None:
    tokenizer(name)

    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    @given(conversations(), plain)
    def check(asked: Conversation, answer: str) -> None:
        renderer = _renderer(name)
        conversation = (*asked, assistant(answer))
        prompt = renderer.generation_prompt(asked)
        example = renderer.supervised(conversation)
        assert len(example.tokens) == len(example.weights)
        assert example.tokens[: len(prompt)] == prompt
        learned = [
            token
            for token, weight in zip(example.tokens, example.weights, strict=True)
            if weight == 1.0
        ]
        assert set(example.weights[: len(prompt)]) == {0.0}
        assert learned[-1] in renderer.stop_tokens
        assert answer.strip() in renderer.decode(learned)
        if without_look_alikes(name, conversation):
            whole = reference(name, conversation, False)
            # A template may write its end so that the tokenizer sees no token in it (tinyllama).
            ended = any(token in renderer.stop_tokens for token in whole[len(prompt) :])
            assert example.tokens == (whole if ended else [*whole, learned[-1]])

    check()


@pytest.mark.parametrize("name", list(TOKENIZERS))
def test_look_alikes_in_messages_stay_text(name: str) -> None:
    inner = tokenizer(name)
    marks = [token.content for token in inner.added_tokens_decoder.values() if token.special][:40]
    special = set(inner.convert_tokens_to_ids(marks))

    def specials(conversation: Conversation) -> list[int]:
        prompt = _renderer(name).generation_prompt(conversation)
        return [token for token in prompt if token in special]

    def clean(text: str) -> Conversation:
        return (system(text), user(text), assistant(text), user(text))

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.one_of(st.sampled_from(marks), st.sampled_from(["a ", "é", "\n"]))))
    def check(pieces: list[str]) -> None:
        text = "x" + "".join(pieces) + "y"
        assert specials(clean(text)) == specials(clean("xy"))

    check()
    mark = marks[0]
    prompt = _renderer(name).generation_prompt((user(f"say {mark} now"),))
    assert mark in inner.decode(prompt, skip_special_tokens=False).replace(" ", "")
    answer = _renderer(name).supervised((user("hi"), assistant(f"it is {mark} there")))
    learned = [t for t, w in zip(answer.tokens, answer.weights, strict=True) if w]
    assert not special & set(learned[:-1]) - {learned[-1]} or name == "gpt-oss"


def test_steering_tokens_that_are_not_called_special_stay_text_in_a_users_words() -> None:
    inner = tokenizer("qwen3")
    call = inner.convert_tokens_to_ids("<tool_call>")
    assert call not in _renderer("qwen3").generation_prompt((user("a <tool_call> b"),))


def test_a_model_without_template_gets_plain_roles_and_says_so() -> None:
    renderer = renderer_for(byte_tokenizer(chat_template=None))
    prompt = renderer.generation_prompt(
        (system("Be brief."), user("Hi"), assistant("Yes"), user("So?"))
    )
    assert (
        renderer.decode(prompt)
        == "Be brief.\n\nUser: Hi\n\nAssistant: Yes\n\nUser: So?\n\nAssistant:"
    )
    assert "chat template" in renderer.notes[0]
    example = renderer.supervised((user("Hi"), assistant("Yes")))
    prompt = renderer.generation_prompt((user("Hi"),))
    assert example.tokens[: len(prompt)] == prompt
    learned = example.tokens[len(prompt) :]
    assert renderer.decode(learned) == " Yes"
    assert learned[-1] in renderer.stop_tokens


def _plain() -> RoleColonRenderer:
    return RoleColonRenderer(byte_tokenizer(chat_template=None))


def test_plain_roles_learn_answers_with_what_ends_them() -> None:
    story = (system("Be brief."), user("Hi"), assistant("Yes"), user("So?"), assistant("No"))
    renderer = _plain()
    end = byte_tokenizer(chat_template=None).eos_token

    def found(kind: TrainOnWhat, story: Conversation = story) -> list[str]:
        inner = byte_tokenizer(chat_template=None)
        return [inner.decode(tokens) for tokens in learned(renderer, story, kind)]

    assert found(TrainOnWhat.LAST_ASSISTANT_MESSAGE) == [f" No{end}"]
    assert found(TrainOnWhat.ALL_ASSISTANT_MESSAGES) == [" Yes\n\nUser:", f" No{end}"]
    assert found(TrainOnWhat.ALL_USER_AND_SYSTEM_MESSAGES) == ["Be brief.", "Hi", "So?"]
    assert found(TrainOnWhat.ALL_MESSAGES) == [
        *("Be brief.", "Hi", " Yes\n\nUser:", "So?", f" No{end}")
    ]
    whole = f"Be brief.\n\nUser: Hi\n\nAssistant: Yes\n\nUser: So?\n\nAssistant: No{end}"
    assert found(TrainOnWhat.ALL_TOKENS) == [whole]
    chosen = tuple(replace(message, trainable=at in (1, 2)) for at, message in enumerate(story))
    assert found(TrainOnWhat.CUSTOMIZED, chosen) == ["Hi", " Yes\n\nUser:"]
    for kind, misused in ((TrainOnWhat.CUSTOMIZED, story), (TrainOnWhat.ALL_TOKENS, chosen)):
        with pytest.raises(InputError, match="trainable"):
            found(kind, misused)


@settings(max_examples=40, deadline=None)
@given(conversations(), plain)
def test_plain_roles_begin_with_the_prompt_and_are_read_back(
    asked: Conversation, answer: str
) -> None:
    renderer = _plain()
    conversation = (*asked, assistant(answer))
    prompt_is_a_prefix(renderer, conversation)
    prompt = renderer.generation_prompt(asked)
    found = renderer.parse(renderer.supervised(conversation).tokens[len(prompt) :])
    assert found.complete and not found.problems
    assert found.message.text.strip("\n") == answer.strip("\n")
    # What was generated and the same turn read back are the same tokens.
    later = renderer.generation_prompt((*conversation, user("So?")))
    answered = [*prompt, *byte_tokenizer(chat_template=None)(f" {answer}")["input_ids"]]
    assert later[: len(answered)] == answered


def test_plain_roles_end_where_the_next_turn_begins_also_while_streaming() -> None:
    inner, parser = byte_tokenizer(chat_template=None), _plain().parser()
    given: list[object] = []
    for token in inner(" Yes.\nUse it\n\nUser: more")["input_ids"]:
        given += parser.feed(token)
    assert "".join(delta.text for delta in given if isinstance(delta, TextPart)) == "Yes.\nUse it"
    found = parser.finish()[1]
    assert found.complete and found.message == assistant("Yes.\nUse it")
    assert not _plain().parse(inner(" Yes")["input_ids"]).complete


def test_plain_roles_write_results_and_refuse_what_they_have_no_place_for() -> None:
    renderer = _plain()
    prompt = renderer.generation_prompt((user("Hi"), tool("42")))
    assert renderer.decode(prompt) == "User: Hi\n\nTool: 42\n\nAssistant:"
    called = (user("Hi"), assistant("", tool_calls=[ToolCall("now")]), tool("42"))
    picture = (Message("user", (ImagePart("a.png"),)),)
    for conversation, tools, reason in (
        ((user("Hi"),), [Tool("now")], "no place for tools"),
        (called, [], "no place for calls"),
        (picture, [], "no place for pictures"),
    ):
        with pytest.raises(InputError, match=reason):
            renderer.generation_prompt(conversation, tools)


def test_a_template_that_refuses_the_system_role_gets_it_in_the_first_question() -> None:
    refusing = CHATML.replace(
        "{% for message in messages %}",
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for message in messages %}",
    )
    renderer = renderer_for(byte_tokenizer(refusing))
    prompt = renderer.generation_prompt((system("Be brief."), user("Hi")))
    assert renderer.decode(prompt) == "user\nBe brief.\n\nHi\nassistant\n"
    assert "system" in renderer.notes[0]


def test_a_template_that_wants_alternating_roles_gets_them() -> None:
    alternating = (
        "{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "{{ message['role'] }}:{{ message['content'] }}<|im_end|>{% endfor %}"
    )
    renderer = renderer_for(byte_tokenizer(alternating))
    prompt = renderer.generation_prompt((user("one"), user("two")))
    assert renderer.decode(prompt) == "user:one\n\ntwo"
    with pytest.raises(ModelError, match="roles must alternate"):
        renderer.generation_prompt((assistant("first"), user("two")))


def test_a_template_without_an_end_still_teaches_to_stop() -> None:
    endless = (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    )
    inner = byte_tokenizer(endless)
    example = renderer_for(inner).supervised((user("Hi"), assistant("Yes")))
    assert example.tokens[-1] == inner.eos_token_id
    assert example.weights[-1] == 1.0


def test_a_template_whose_prompt_is_not_a_prefix_learns_from_the_prompt() -> None:
    thinking = CHATML.replace(
        "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}"
    )
    renderer = renderer_for(byte_tokenizer(thinking))
    prompt = renderer.generation_prompt((user("Hi"),))
    example = renderer.supervised((user("Hi"), assistant(f"Yes {IM_START}")))
    assert example.tokens[: len(prompt)] == prompt
    assert renderer.decode(example.tokens[len(prompt) :]) == f"Yes {IM_START}"
    assert example.tokens[-1] == renderer.stop_tokens[0]


def test_nothing_to_answer_is_an_input_error() -> None:
    renderer = renderer_for(byte_tokenizer())
    with pytest.raises(InputError):
        renderer.generation_prompt((system("x"),))
    with pytest.raises(InputError):
        renderer.generation_prompt((user("x"), assistant("y")))
    with pytest.raises(InputError):
        renderer.supervised((user("x"),))


def test_the_end_token_of_the_template_stops_generation() -> None:
    inner = byte_tokenizer()
    inner.eos_token = "<|endoftext|>"
    renderer = renderer_for(inner, [inner.convert_tokens_to_ids("<|endoftext|>")])
    assert inner.convert_tokens_to_ids(IM_END) in renderer.stop_tokens


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=12), st.integers(0, 200), st.booleans())
def test_trimming_drops_as_few_whole_turns_as_possible(
    sizes: list[int], reserve: int, has_system: bool
) -> None:
    renderer = _chatml()
    context = 256
    messages: list[Message] = [system("Be brief.")] if has_system else []
    for size in sizes[:-1]:
        messages += [user("q" * size), assistant("a" * size)]
    conversation = (*messages, user("q" * sizes[-1]))
    room = context - min(reserve, context // 2)
    kept, dropped = trim_conversation(renderer, conversation, context, reserve)
    assert kept[-1] == conversation[-1]
    assert kept == conversation[: int(has_system)] + conversation[int(has_system) + 2 * dropped :]
    assert len(renderer.generation_prompt(kept)) <= room or len(kept) == 1 + has_system
    if dropped:
        one_more = (
            conversation[: int(has_system)] + conversation[int(has_system) + 2 * (dropped - 1) :]
        )
        assert len(renderer.generation_prompt(one_more)) > room


@cache
def _chatml() -> Renderer:
    return renderer_for(byte_tokenizer())


def test_a_message_that_does_not_fit_alone_says_so() -> None:
    with pytest.raises(ContextTooLongError, match="128 altogether"):
        trim_conversation(_chatml(), (user("q" * 200),), 128, 32)


def test_the_fallback_works_on_a_pretrained_model_without_template(
    shared_data: Callable[[str], Path],
) -> None:
    from transformers import AutoTokenizer

    renderer = renderer_for(AutoTokenizer.from_pretrained(shared_data("models/stories260K")))
    prompt = renderer.generation_prompt((user("Hello </s>"), assistant("Hi"), user("Who?")))
    assert prompt[0] == 1
    assert 2 not in prompt
