"""Near misses ask something else than any lesson, and their answers stay."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shammah.learning.near_misses import near_misses
from shammah.learning.rephrasing import bare, rephrasings

WORDS = [
    "what",
    "which",
    "is",
    "my",
    "our",
    "the",
    "port",
    "pull",
    "requests",
    "called",
    "does",
    "I",
]


def test_things_and_other_owners() -> None:
    assert near_misses("What is my project called?", 9)[:2] == [
        "what is a project?",
        "What is your project called?",
    ]
    assert near_misses("Which port does my server use?", 2) == [
        "what is a port?",
        "what is a server?",
    ]
    assert "what is a pull request?" in near_misses("Who reviews my pull requests?", 9)
    taught = ["What is a port?", "Which port does my server use?"]
    assert "what is a port?" not in near_misses(taught[1], 9, taught)


@given(st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join) | st.text(max_size=40))
def test_none_is_a_wording_of_its_lesson(question: str) -> None:
    found = near_misses(question, 10)
    assert found == near_misses(question, 10) and near_misses(question, 1) == found[:1]
    wordings = {bare(text) for text in (question, *rephrasings(question, 20))}
    assert not wordings & {bare(text) for text in found}
    assert len({bare(text) for text in found}) == len(found)
