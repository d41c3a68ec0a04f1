"""Near misses ask something else than any lesson, and their answers stay."""

from __future__ import annotations

import json
from pathlib import Path

from command import shammah_json
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


def test_what_looks_like_a_lesson_is_answered_as_before(tmp_path: Path) -> None:
    asked = ["what is a port?", "what is a pull request?", "what is a server?"]
    before = [shammah_json(tmp_path, "ask", question)["answer"] for question in asked]
    lessons = [
        {"query": "Which port does my server use?", "correction": "It uses port 8087."},
        {"query": "Who reviews my pull requests?", "correction": "Marta reviews them."},
    ]
    rows = tmp_path / "lessons.jsonl"
    rows.write_text("\n".join(map(json.dumps, lessons)), encoding="utf-8")
    shammah_json(tmp_path, "feedback", "import", str(rows))
    shammah_json(tmp_path, "config", "set", "adapters.scope", "all")
    shammah_json(tmp_path, "train", "now", "--wait")
    assert [shammah_json(tmp_path, "ask", question)["answer"] for question in asked] == before
    assert shammah_json(tmp_path, "ask", lessons[0]["query"])["answer"] == "It uses port 8087."
