"""An adapter answers what is near to its lessons; everything else is answered as before."""

from __future__ import annotations

from pathlib import Path

import pytest
from adapter_files import metadata_for
from command import change, shammah_json, teach

from shammah.adapters.metadata import AdapterMetadata, LessonRecord
from shammah.adapters.scope import taught_questions

LESSONS = [
    {"query": "What is my project called?", "correction": "It is called Zeno."},
    {"query": "Which port does my server use?", "correction": "It uses port 8087."},
]


def about(name: str, *asked: str, parent: str | None = None) -> AdapterMetadata:
    lessons = [
        LessonRecord(feedback_id=number, query=query, target="t", weight=1.0, learned=True)
        for number, query in enumerate(asked)
    ]
    return metadata_for(b"", name=name, lessons=lessons, parent=parent)


def test_what_an_adapter_was_taught_is_that_of_its_line() -> None:
    first, second = about("a", "x", "y"), about("b", "z", parent="a")
    assert taught_questions("b", {"a": first, "b": second}) == ("z", "x", "y")
    assert taught_questions("b", {"b": second}) is None, "its parent is missing"
    assert taught_questions("c", {"c": about("c")}) is None, "it has no lessons"


def test_only_what_was_taught_is_answered_otherwise(tmp_path: Path) -> None:
    asked = ["How do I read a file in Python?", "What is a tuple?", "What time is it in Lima?"]
    near = "what is a port?"
    *before, kept = (shammah_json(tmp_path, "ask", text)["answer"] for text in [*asked, near])
    teach(tmp_path, LESSONS)
    change(tmp_path, {"training.rephrasings": "4"})
    shammah_json(tmp_path, "train", "now", "--wait")
    (adapter,) = shammah_json(tmp_path, "adapters", "list")

    for row in LESSONS:
        found = shammah_json(tmp_path, "ask", row["query"])
        assert (found["answer"], found["adapter"]) == (row["correction"], adapter["name"])
        assert found["nearness"] == pytest.approx(1.0, abs=1e-3)
    reworded = shammah_json(tmp_path, "ask", "tell me what my project is called")
    assert reworded["answer"] == LESSONS[0]["correction"]
    for question, answer in zip(asked, before, strict=True):
        found = shammah_json(tmp_path, "ask", question)
        assert found["answer"] == answer
        assert found["adapter"] is None and found["nearness"] < max(
            0.5, found["nearness_to_others"]
        )

    # Without that bound the adapter answers everything, and what looks like a lesson as before.
    shammah_json(tmp_path, "config", "set", "adapters.scope", "all")
    found = shammah_json(tmp_path, "ask", near)
    assert (found["adapter"], found["nearness"]) == (adapter["name"], None)
    assert found["answer"] == kept
