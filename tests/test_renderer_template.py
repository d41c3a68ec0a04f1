"""Any tokenizer's own chat template: its text, its tokens, and who wrote which of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from rendering import (
    DATA,
    LOOK_ALIKES,
    TOOLS,
    as_template,
    conversations,
    hostile,
    learned,
    prompt_is_a_prefix,
    tokenizer,
)
from tiny_models import CHATML, byte_tokenizer

from shammah.errors import InputError, ModelError
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
from shammah.renderers.base import Renderer, TrainOnWhat
from shammah.renderers.llama3 import Llama3Renderer
from shammah.renderers.qwen3 import Qwen3Renderer
from shammah.renderers.template import TemplateRenderer

NAMES = (
    *("qwen3", "llama3.2", "gpt-oss", "tinyllama"),
    *("qwen3+deepseek-v3", "gpt2+deepseek-v3", "qwen3+kimi-k2", "gpt2+kimi-k2"),
)
WITH_TOOLS = ("qwen3", "llama3.2", "gpt-oss", "qwen3+kimi-k2", "gpt2+kimi-k2")
CALL = ToolCall("get_weather", '{"town": "Köln", "days": 2}', "functions.get_weather:0")
STORY = (
    system(" Be brief. "),
    user("Weather?"),
    assistant("", thinking="Call.", tool_calls=[CALL]),
    tool("rain", name="get_weather", tool_call_id=CALL.id),
    assistant("It rains.", thinking="hm"),
    user("Thanks"),
    assistant("\n Welcome. ", thinking="so"),
)
PLAIN = tuple(replace(m, content=m.text) for m in (*STORY[:2], *STORY[4:]))
relaxed = settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))


@cache
def loaded(name: str) -> tuple[Any, TemplateRenderer]:
    vocabulary, _, template = name.partition("+")
    inner = tokenizer(vocabulary)
    if template:
        inner.chat_template = (DATA / "templates" / f"{template}.jinja").read_text()
    return inner, TemplateRenderer(inner)


def written(name: str, conversation: Conversation, tools: Sequence[Tool], prompt: bool) -> str:
    rows = [as_template(message, objects="deepseek" not in name) for message in conversation]
    for row, message in zip(rows, conversation, strict=True):
        for call, other in zip(message.tool_calls, row.get("tool_calls", ()), strict=True):
            other["id"] = call.id
    return str(
        loaded(name)[0].apply_chat_template(
            rows,
            tools=[tool.to_dict() for tool in tools] or None,
            tokenize=False,
            add_generation_prompt=prompt,
        )
    )


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_template_with_the_answer_behind_the_prompt(name: str) -> None:
    inner, renderer = loaded(name)
    has_tools = name in WITH_TOOLS
    tools = TOOLS if has_tools else ()
    most = 1 if name in ("llama3.2", "gpt-oss") else 2

    @relaxed
    @given(conversation=conversations(thinking=True, tools=has_tools, most_calls=most))
    def check(conversation: Conversation) -> None:
        if name == "gpt-oss":  # refuses a call with both
            assume(not any(m.tool_calls and m.thinking and m.text for m in conversation))
        answered = conversation[-1].role == "assistant"
        if answered:
            prompt_is_a_prefix(renderer, conversation, tools)
        asked = conversation[:-1] if answered else conversation
        wanted = written(name, asked, tools, True)
        tokens = renderer.generation_prompt(asked, tools)
        assert tokens == inner(wanted, add_special_tokens=False)["input_ids"]

    check()


@pytest.mark.parametrize("name", NAMES)
def test_look_alikes_are_text_wherever_they_are(name: str) -> None:
    inner, renderer = loaded(name)
    special = set(inner.convert_tokens_to_ids(inner.all_special_tokens)) | {
        number for number, token in inner.added_tokens_decoder.items() if token.special
    }

    def specials(text: str) -> list[int]:
        rounds: Conversation = (system(text), user(text), assistant(text))
        tools: Sequence[Tool] = ()
        if name in WITH_TOOLS:
            call = ToolCall("n" + text, f'{{"{text}": ["{text}"]}}', text)
            rounds = (
                *rounds,
                user(text),
                assistant("", tool_calls=[call]),
                tool(text, name="n" + text, tool_call_id=text),
                assistant(text, thinking=text),
            )
            tools = (Tool("n" + text, text, {"type": "object", "properties": {text: {}}}),)
        prompt = renderer.generation_prompt((*rounds, user(text)), tools)
        return [token for token in prompt if token in special]

    @relaxed
    @given(text=hostile)
    def check(text: str) -> None:
        text = f"x{' '.join(text.split())}y"
        # Templates look for this themselves in what a model said.
        text = text.replace("</think>", "")
        assert specials(text) == specials("xy")

    check()
    for mark in LOOK_ALIKES:
        text = f"say {mark} now"
        decoded = inner.decode(renderer.generation_prompt((user(text),)))
        assert mark.replace("▁", " ") in decoded.replace("▁", " ")


def family(name: str) -> Renderer:
    inner = loaded(name)[0]
    return Qwen3Renderer(inner) if name == "qwen3" else Llama3Renderer(inner)


@pytest.mark.parametrize("name", ["qwen3", "llama3.2"])
def test_it_learns_what_the_family_learns(name: str) -> None:
    @relaxed
    @given(
        conversation=conversations(
            thinking=name == "qwen3", tools=True, most_calls=1, answered=True
        )
    )
    def check(conversation: Conversation) -> None:
        # A family keeps the seam before an answer that begins with blanks.
        assume(not any(m.role == "assistant" and m.text[:1].isspace() for m in conversation))
        for kind in (
            TrainOnWhat.LAST_ASSISTANT_MESSAGE,
            TrainOnWhat.ALL_ASSISTANT_MESSAGES,
            TrainOnWhat.ALL_TOKENS,
        ):
            for tools in ((), TOOLS):
                found = loaded(name)[1].supervised(conversation, kind, tools)
                wanted = family(name).supervised(conversation, kind, tools)
                assert found.tokens == wanted.tokens
                # The line break behind the last end token is nobody's.
                assert found.weights == wanted.weights

    check()


SPANS: dict[str, tuple[Conversation, list[str]]] = {
    "qwen3": (
        STORY,
        [
            " Be brief. <|im_end|>",
            "Weather?<|im_end|>",
            '<tool_call>\n{"name": "get_weather", "arguments": {"town": "Köln", "days": 2}}\n'
            "</tool_call><|im_end|>",
            "rain\n</tool_response><|im_end|>",
            "It rains.<|im_end|>",
            "Thanks<|im_end|>",
            "<think>\nso\n</think>\n\n Welcome. <|im_end|>",
        ],
    ),
    "llama3.2": (
        STORY,
        [
            "Be brief.<|eot_id|>",
            "Weather?<|eot_id|>",
            '{"name": "get_weather", "parameters": {"town": "Köln", "days": 2}}<|eot_id|>',
            'rain"<|eot_id|>',
            "It rains.<|eot_id|>",
            "Thanks<|eot_id|>",
            "Welcome.<|eot_id|>",
        ],
    ),
    "gpt-oss": (
        STORY,
        [
            " Be brief. \n\n<|end|>",
            "Weather?<|end|>",
            " to=functions.get_weather<|channel|>commentary json<|message|>"
            '{"town": "Köln", "days": 2}<|call|>',
            'rain"<|end|>',
            "<|channel|>final<|message|>It rains.<|end|>",
            "Thanks<|end|>",
            "<|channel|>analysis<|message|>so<|end|><|start|>assistant<|channel|>final<|message|>"
            "\n Welcome. <|return|>",
        ],
    ),
    "tinyllama": (
        PLAIN,
        [" Be brief. </s>", "Weather?</s>", "It rains.</s>", "Thanks</s>", "\n Welcome. </s>"],
    ),
    "gpt2+deepseek-v3": (
        PLAIN,
        [
            " Be brief. ",
            "Weather?",
            "It rains.<｜end▁of▁sentence｜>",
            "Thanks",
            "\n Welcome. <｜end▁of▁sentence｜><|endoftext|>",
        ],
    ),
}


@pytest.mark.parametrize("name", list(SPANS))
def test_each_kind_of_training_learns_what_it_says(name: str) -> None:
    inner, renderer = loaded(name)
    story, spans = SPANS[name]

    def found(kind: TrainOnWhat, story: Conversation = story) -> list[str]:
        # Tokens of a vocabulary that is not the template's may go over the end of a message.
        texts = [inner.decode(tokens) for tokens in learned(renderer, story, kind)]
        return [text.removesuffix("<") if "+" in name else text.strip(" ") for text in texts]

    def said(*roles: str) -> list[str]:
        chosen = [span for m, span in zip(story, spans, strict=True) if m.role in roles]
        return chosen if "+" in name else [span.strip(" ") for span in chosen]

    assert found(TrainOnWhat.LAST_ASSISTANT_MESSAGE) == said("assistant")[-1:]
    assert found(TrainOnWhat.ALL_ASSISTANT_MESSAGES) == said("assistant")
    assert found(TrainOnWhat.ALL_USER_AND_SYSTEM_MESSAGES) == said("user", "system")
    assert found(TrainOnWhat.ALL_MESSAGES) == said("user", "system", "assistant", "tool")
    example = renderer.supervised(story, TrainOnWhat.ALL_TOKENS)
    assert set(example.weights) == {1.0}
    assert example.tokens == renderer.supervised(story).tokens
    chosen = tuple(replace(message, trainable=at == 1) for at, message in enumerate(story))
    assert found(TrainOnWhat.CUSTOMIZED, chosen) == said("user")[:1]
    some = (replace(story[0], trainable=True), *story[1:])
    for kind, misused in (
        (TrainOnWhat.CUSTOMIZED, story),
        (TrainOnWhat.CUSTOMIZED, some),
        (TrainOnWhat.ALL_MESSAGES, some),
        (TrainOnWhat.CUSTOMIZED, tuple(replace(m, trainable=False) for m in story)),
    ):
        with pytest.raises(InputError, match=r"trainable|nothing in this conversation"):
            learned(renderer, misused, kind)


@pytest.mark.parametrize("name", NAMES)
def test_messages_are_found_in_any_conversation(name: str) -> None:
    """What is learned of all users is what they said, whatever it is."""
    inner, renderer = loaded(name)

    @relaxed
    @given(conversation=conversations(answered=True, tools=name in WITH_TOOLS, most_calls=1))
    def check(conversation: Conversation) -> None:
        stretches = learned(renderer, conversation, TrainOnWhat.ALL_ASSISTANT_MESSAGES)
        answers = [m for m in conversation if m.role == "assistant"]
        assert len(stretches) == len(answers)
        for tokens, answer in zip(stretches, answers, strict=True):
            if "+" not in name and not answer.tool_calls:
                assert answer.text.strip() in inner.decode(tokens) or name == "qwen3"
        text = "".join(inner.decode(t) for t in stretches)
        assert all(call.name in text for m in answers for call in m.tool_calls)

    check()


def test_an_answer_is_read_as_far_as_its_tags_are_known() -> None:
    inner, renderer = loaded("qwen3")
    last = assistant("It rains.", thinking="so", tool_calls=[replace(CALL, id=None)])
    prompt = renderer.generation_prompt((user("a"),))
    example = renderer.supervised((user("a"), last))
    found = renderer.parse(example.tokens[len(prompt) :])
    assert found.complete and not found.problems and found.message == last
    tokens = inner("<think>\nhm")["input_ids"]
    parser = renderer.parser()
    given = [delta for token in tokens for delta in parser.feed(token)]
    assert given == [ThinkingPart("hm")]
    (problem,) = parser.finish()[1].problems
    assert "within a thought" in problem.reason
    inner, renderer = loaded("tinyllama")
    text = "<think> a </think> <tool_call>{}</tool_call>"
    found = renderer.parse([*inner(text, add_special_tokens=False)["input_ids"], 2])
    assert found.complete and found.message.text.strip() == text


def test_a_prompt_that_opens_a_thought_is_answered_within_it() -> None:
    inner, renderer = loaded("qwen3+deepseek-v3")
    asked = (user("a"), assistant("b", thinking="left out"), user("c"))
    prompt = renderer.generation_prompt(asked)
    example = renderer.supervised((*asked, assistant("d", thinking="hm")))
    assert inner.decode(prompt).endswith("<think>\n")
    assert inner.decode(example.tokens[len(prompt) :]).startswith("hm\n</think>\n\nd")
    found = renderer.parse(example.tokens[len(prompt) :])
    assert found.message.thinking == "hm" and found.message.text.startswith("d")


def test_what_a_template_has_no_place_for_is_refused() -> None:
    picture = Message("user", (ImagePart("a.png"), TextPart("What is it?")))
    calls = assistant("", tool_calls=[CALL, replace(CALL, name="now")])
    asked = (user("a"), calls, tool("b", name="get_weather"))
    for name, conversation, tools, reason in (
        ("tinyllama", (user("a"),), TOOLS, "no place for tools"),
        ("tinyllama", asked, (), "no place for calls of tools"),
        ("tinyllama", (user("a"), tool("b")), (), "no place for results"),
        ("qwen3", (picture,), (), "no place for pictures"),
        ("gpt-oss", asked, (), "leaves out a call"),
        ("qwen3+deepseek-v3", (user("a"),), TOOLS, "no place for tools"),
    ):
        with pytest.raises(InputError, match=reason):
            loaded(name)[1].generation_prompt(conversation, tools)
    with pytest.raises(ModelError, match="single tool-calls"):
        loaded("llama3.2")[1].generation_prompt(asked)
    inner, renderer = loaded("qwen3+kimi-k2")
    text = inner.decode(renderer.generation_prompt((picture,)))
    assert "<|media_pad|>" in text and "What is it?" in text


def test_what_cannot_be_located_is_not_guessed() -> None:
    twice = CHATML.replace("{{ message['content'] }}", "{{ message['content'] * 2 }}")
    renderer = TemplateRenderer(byte_tokenizer(twice))
    asked = (user("ab"), assistant("cd"), user("ef"), assistant("gh"))
    (last,) = learned(renderer, asked, TrainOnWhat.LAST_ASSISTANT_MESSAGE)
    assert renderer.decode(last) == "ghgh"
    with pytest.raises(InputError, match="Message 2 is not to be found"):
        renderer.supervised(asked, TrainOnWhat.ALL_ASSISTANT_MESSAGES)


def test_a_system_text_in_the_first_question_and_merged_turns_are_found() -> None:
    refusing = (
        "{% for m in messages %}{% if m.role == 'system' or (m.role == 'user') != "
        "(loop.index0 % 2 == 0) %}{{ raise_exception('no') }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    renderer = TemplateRenderer(byte_tokenizer(refusing))
    story = (system("Be brief."), user("one "), user(" two"), assistant(" three "))

    def found(kind: TrainOnWhat) -> list[str]:
        return [renderer.decode(tokens) for tokens in learned(renderer, story, kind)]

    asked = ["Be brief.", "one ", " two"]
    assert found(TrainOnWhat.ALL_USER_AND_SYSTEM_MESSAGES) == asked
    assert found(TrainOnWhat.ALL_MESSAGES) == [*asked, "three"]
