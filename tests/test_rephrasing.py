"""Other wordings of a taught question, and the anchors that would hold it back."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shammah.learning.rephrasing import LONGEST, rephrasings
from shammah.models.anchors import Anchor, unrelated_anchors


@pytest.mark.parametrize(
    ("question", "others"),
    [
        ("What is my name?", {"what's my name?", "tell me my name", "my name?"}),
        ("How do I run the tests?", {"how can i run the tests?", "how to run the tests?"}),
        (
            "Which database do we use?",
            {"what database do we use?", "tell me which database we use"},
        ),
        (
            "Where is my keyboard?",
            {"tell me where my keyboard is", "where can i find my keyboard?"},
        ),
        ("Who wrote Don Quixote?", {"tell me who wrote Don Quixote"}),
        ("Hello", {"Hello there", "hey, Hello"}),
        ("Wie heißt mein Projekt?", {"please, wie heißt mein Projekt?"}),
    ],
)
def test_a_question_is_asked_in_other_words(question: str, others: set[str]) -> None:
    found = rephrasings(question, 8)
    assert others <= set(found)
    assert rephrasings(question, 8) == found
    assert rephrasings(question, 3) == found[:3]


@given(st.text(max_size=200), st.integers(0, 12))
def test_no_wording_is_the_question_itself_or_another_one_again(question: str, count: int) -> None:
    found = rephrasings(question, count)
    bare = [" ".join(re.sub(r"[^\w\s]", " ", text.lower()).split()) for text in (question, *found)]
    assert len(found) <= count
    assert len(set(bare)) == len(bare)
    assert all(text == text.strip() and "\n" not in text for text in found)


def test_a_text_is_not_reworded() -> None:
    assert rephrasings("Explain this:\nx = 1", 5) == []
    assert rephrasings("why " * LONGEST, 5) == []


def test_anchors_that_ask_what_is_taught_are_left_out() -> None:
    greeting, thanks = "Hello! Ask me anything.", "You're welcome!"
    unknown = [
        Anchor(query=f"who is number {n}?", answer="I don't know that one.") for n in range(40)
    ]
    kept = [
        Anchor(query="thanks", answer=thanks),
        Anchor(query="how do i run a program?", answer="Type its name."),
        Anchor(query="what is a capital?", answer="The city of the government."),
        *unknown,
    ]
    dropped = [
        Anchor(query="hello", answer=greeting),
        Anchor(query="hi there", answer=greeting),
        Anchor(query="how can I run the tests", answer="Use pytest."),
    ]
    taught = ["Hello!", "How do I run the tests?", "Who is number 7?"]
    found = unrelated_anchors([*kept, *dropped], taught)
    assert [a for a in found if a not in unknown] == kept[:3]
    # One of them was asked; what is said to all of them is still held.
    assert 0 < len([a for a in found if a in unknown]) < len(unknown)
