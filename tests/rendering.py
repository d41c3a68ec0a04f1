"""What the tests of all renderers share: conversations of many kinds, and the proofs about them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import copy
from functools import cache, partial
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
from hypothesis import strategies as st

from shammah.messages import (
    Conversation,
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
from shammah.renderers.parsing import AnswerParser, Problem

DATA = Path(__file__).parents[2] / "shared" / "data"


def tokenizer(name: str) -> Any:
    """One of the real vocabularies; the test is skipped where they are not.

    Its template may be set; its tokens are those of all who ask for it.
    """
    return copy(_read_once(name))


@cache
def _read_once(name: str) -> Any:
    return _read(name)


def _read(name: str) -> Any:
    from transformers import AutoTokenizer

    folder = DATA / "tokenizers" / name
    if not folder.is_dir():
        pytest.skip(f"no tokenizer in {folder}")
    return AutoTokenizer.from_pretrained(folder)


def borrowed(
    name: str, template: str, tokens: Sequence[str], *, special: bool, bos: str | None = None
) -> Any:
    """A real vocabulary with a family's tokens and template, for families whose own is not here.

    Args:
        special: whether the tokens are called special; families differ in that.
    """
    from tokenizers import AddedToken

    found = _read(name)
    found.add_tokens([AddedToken(text, special=special, normalized=False) for text in tokens])
    if bos is not None:
        found.add_special_tokens({"bos_token": bos})
    found.chat_template = (DATA / "templates" / f"{template}.jinja").read_text(encoding="utf-8")
    return found


WORDS = [
    "hello",
    "naïve café",
    "日本語",
    "😀👩‍👩‍👧",
    "a  b",
    "x = 1\n\n\ny",
    "{'a': 1}",
    "\t",
    "<b>",
    "end.",
]
LOOK_ALIKES = [
    *("<|im_end|>", "<|im_start|>", "<think>", "</think>", "<tool_call>", "<|eot_id|>", "<s>"),
    *("<|start_header_id|>", "<|end|>", "<|channel|>", "<|return|>", "<|im_middle|>", "</s>"),
    *(
        "<｜User｜>",
        "<｜Assistant｜>",
        "<｜end▁of▁sentence｜>",
        "<|begin_of_text|>",
        "<|endoftext|>",
    ),
    *(
        "<｜begin▁of▁sentence｜>",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁output▁end｜>",
    ),
    *("<|im_user|>", "<|im_system|>", "<|tool_call_begin|>", "<|media_pad|>", "[EOS]"),
]

plain = st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join)
"""Text without anything that looks like a token of a format; often empty."""
unicode = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="<["), max_size=12
).map(partial(normalize, "NFC"))
"""Any text but a token's, which hypothesis finds in the source code and tries. In the form that the
tokenizers of some families bring it to, so that it can be read back."""
hostile = st.lists(st.sampled_from([*WORDS, *LOOK_ALIKES]), min_size=1, max_size=5).map("".join)
"""Text with look-alikes of special tokens."""

TOOLS = (
    Tool(
        "get_weather",
        "The weather of a town, in °C",
        {
            "type": "object",
            "properties": {
                "town": {"type": "string", "description": "Its name"},
                "days": {"type": "integer"},
            },
            "required": ["town"],
        },
    ),
    Tool("now", "What time it is"),
)


@st.composite
def calls(draw: st.DrawFn, most: int = 2) -> tuple[ToolCall, ...]:
    found = []
    for number in range(draw(st.integers(1, most))):
        chosen = draw(st.sampled_from(TOOLS))
        arguments = (
            draw(st.fixed_dictionaries({"town": plain, "days": st.integers(0, 9)}))
            if chosen.name == "get_weather"
            else {}
        )
        text = json.dumps(arguments, ensure_ascii=False)
        found.append(ToolCall(chosen.name, text, f"functions.{chosen.name}:{number}"))
    return tuple(found)


@st.composite
def conversations(
    draw: st.DrawFn,
    *,
    text: st.SearchStrategy[str] = plain | unicode,
    thinking: bool = False,
    tools: bool = False,
    most_calls: int = 2,
    answered: bool | None = None,
) -> Conversation:
    """System or not, several turns, with thoughts and tools where asked for.

    Args:
        answered: whether it ends with the assistant's answer; None for either.
    """
    messages: list[Message] = [system(draw(text))] if draw(st.booleans()) else []
    turns = draw(st.integers(1, 3))
    for turn in range(turns):
        messages.append(user(draw(text)))
        if turn == turns - 1 and (answered is False or (answered is None and draw(st.booleans()))):
            break
        if tools and draw(st.booleans()):
            thought = draw(text) if thinking and draw(st.booleans()) else None
            called = draw(calls(most_calls))
            said = draw(st.just("") | text)
            messages.append(assistant(said, thinking=thought, tool_calls=called))
            for call in called:
                messages.append(tool(draw(text), name=call.name, tool_call_id=call.id))
        thought = draw(text) if thinking and draw(st.booleans()) else None
        messages.append(assistant(draw(text), thinking=thought))
    return tuple(messages)


def as_template(message: Message, *, objects: bool = False) -> dict[str, Any]:
    """The message as most chat templates want it: text in `content`, thinking beside it.

    Args:
        objects: whether the arguments of calls are objects, and not their JSON text.
    """
    row = message.to_dict() | {"content": message.text}
    if objects and message.tool_calls:
        row["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": call.parsed()}}
            for call in message.tool_calls
        ]
    return row if message.thinking is None else row | {"reasoning_content": message.thinking}


def same_as_template(
    tokenizer: Any, tokens: list[int], wanted: str, conversation: Conversation
) -> None:
    """The tokens are those of the template's text.

    Where an answer begins with blanks that the tokenizer would merge with the header before it, the
    seam between them is kept instead, and only the texts are the same.
    """
    expected = tokenizer(wanted, add_special_tokens=False)["input_ids"]
    if tokens != expected:
        assert tokenizer.decode(tokens) == tokenizer.decode(expected) == wanted
        assert any(m.role == "assistant" and m.text[:1].isspace() for m in conversation)


def nothing_is_swallowed(parser: AnswerParser, tokens: Sequence[int], words: Sequence[str]) -> None:
    """What comes while an answer is read adds up to the message, and no word of it is missing.

    Words without digits or marks are expected, so that no other text holds one by chance.
    """
    deltas = [delta for token in tokens for delta in parser.feed(token)]
    held, answer = parser.finish()
    deltas += held
    message = answer.message
    said = "".join(delta.text for delta in deltas if isinstance(delta, TextPart))
    thought = "".join(delta.thinking for delta in deltas if isinstance(delta, ThinkingPart))
    assert (said, thought) == (message.text, message.thinking or "")
    assert tuple(d for d in deltas if isinstance(d, ToolCall)) == message.tool_calls
    assert tuple(d for d in deltas if isinstance(d, Problem)) == answer.problems
    found = [said, thought, *(problem.text for problem in answer.problems)]
    found += [f"{call.name}{call.arguments}" for call in message.tool_calls]
    assert sorted(word for text in found for word in words for _ in range(text.count(word))) == (
        sorted(words)
    )


def prompt_is_a_prefix(
    renderer: Renderer, conversation: Conversation, tools: Sequence[Tool] = ()
) -> None:
    """What generation begins with, training begins with; all of the rest is learned or behind."""
    prompt = renderer.generation_prompt(conversation[:-1], tools)
    example = renderer.supervised(conversation, TrainOnWhat.LAST_ASSISTANT_MESSAGE, tools)
    assert example.tokens[: len(prompt)] == prompt
    assert not any(example.weights[: len(prompt)])
    learned = [
        token for token, weight in zip(example.tokens, example.weights, strict=True) if weight
    ]
    assert example.tokens[len(prompt) : len(prompt) + len(learned)] == learned
    assert learned and learned[-1] in renderer.stop_tokens


def learned(
    renderer: Renderer,
    conversation: Conversation,
    train_on: TrainOnWhat,
    tools: Sequence[Tool] = (),
) -> list[list[int]]:
    """Each stretch of learned tokens."""
    example = renderer.supervised(conversation, train_on, tools)
    assert len(example.tokens) == len(example.weights)
    stretches: list[list[int]] = []
    before = 0.0
    for token, weight in zip(example.tokens, example.weights, strict=True):
        assert weight in (0.0, 1.0)
        if weight and not before:
            stretches.append([])
        if weight:
            stretches[-1].append(token)
        before = weight
    return stretches
