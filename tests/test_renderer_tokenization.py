"""Pieces tokenized at once are what the tokenizer makes of the whole text, and know their part."""

from __future__ import annotations

from functools import cache
from itertools import groupby
from typing import Any

import pytest
import rendering
from hypothesis import given, settings
from hypothesis import strategies as st
from rendering import LOOK_ALIKES, WORDS, plain

from shammah.renderers.tokenization import TextTokenizer

VOCABULARIES = ["qwen3", "llama3.2", "gpt-oss", "gpt2", "tinyllama"]
Part = tuple[str, bool, int]


@cache
def vocabulary(name: str) -> TextTokenizer:
    return TextTokenizer(rendering.tokenizer(name))


texts = st.lists(st.sampled_from([*WORDS, *LOOK_ALIKES, " ", "\n", "  "]), max_size=5).map("".join)
parts = st.tuples(texts, st.just(False), st.integers(0, 1)) | st.tuples(
    st.sampled_from(LOOK_ALIKES), st.just(True), st.integers(0, 1)
)
runs = st.lists(st.lists(parts, max_size=6), max_size=3)


def reference(text: TextTokenizer, run: list[Part]) -> list[int]:
    """Neighbours joined and tokenized by the tokenizer's own call; a literal's first character
    alone."""
    tokens: list[int] = []
    for literal, group in groupby(run, key=lambda part: part[1]):
        written = [part[0] for part in group]
        for piece in [s for w in written for s in (w[0], w[1:])] if literal else ["".join(written)]:
            tokens += text.tokenizer(piece, add_special_tokens=False)["input_ids"]
    return tokens


def begins(text: TextTokenizer, run: list[Part], tokens: list[int]) -> list[set[int]]:
    """For each token the marks of where it begins, with its blanks and without."""
    marks = [mark for written, _, mark in run for _ in written]
    whole = "".join(written for written, _, _ in run)
    found = []
    for at in range(len(tokens)):
        start = len(text.decode_whole(tokens[:at]).rstrip("\N{REPLACEMENT CHARACTER}"))
        end = len(text.decode_whole(tokens[: at + 1]).rstrip("\N{REPLACEMENT CHARACTER}"))
        blank = len(whole[start:end]) - len(whole[start:end].lstrip(" "))
        bare = start + blank if start + blank < end else start
        found.append({marks[start], marks[bare]})
    return found


@settings(max_examples=30, deadline=None)
@given(runs=runs)
@pytest.mark.parametrize("name", ["qwen3", "llama3.2", "gpt-oss", "gpt2"])
def test_runs_are_tokenized_as_the_tokenizer_does(name: str, runs: list[list[Part]]) -> None:
    text = vocabulary(name)
    tokens, marks = text.encode_marked(runs)
    assert tokens == [token for run in runs for token in reference(text, run)]
    wanted = [found for run in runs for found in begins(text, run, reference(text, run))]
    assert len(marks) == len(wanted)
    assert all(mark in found for mark, found in zip(marks, wanted, strict=True))


@settings(max_examples=40, deadline=None)
@given(text=plain)
def test_a_vocabulary_for_which_the_place_matters_is_not_cut(text: str) -> None:
    sentencepiece = vocabulary("tinyllama")
    whole = sentencepiece.tokenizer(f"<s>{text}a\n{text}", add_special_tokens=False)["input_ids"]
    tokens, marks = sentencepiece.encode_marked(
        [[(f"<s>{text}a", False, 0), (f"\n{text}", False, 1)]]
    )
    assert tokens == whole
    newline = max(at for at, m in enumerate(marks) if not m) + 1
    assert marks == sorted(marks) and sentencepiece.decode_whole(whole[newline:]) == f"\n{text}"


@pytest.mark.parametrize("name", VOCABULARIES)
def test_what_the_tokenizer_was_set_to_before_does_not_matter(name: str) -> None:
    text = vocabulary(name)
    run: list[tuple[str, bool, Any]] = [("one two three four five</s>", False, None)]
    wanted = text.encode_marked([run])
    text.tokenizer("one two three", truncation=True, max_length=1)
    assert text.encode_marked([run]) == wanted
    text.tokenizer("one", split_special_tokens=True)
    assert text.encode_marked([run]) == wanted
