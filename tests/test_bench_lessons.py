"""The benchmark's questions: what is called unseen or unrelated is."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "scripts" / "bench"))
from lessons import ROUNDS, held_out, plain, read_lessons, unrelated_questions, unseen

LESSONS = read_lessons()


def test_every_set_holds_ten_lessons_over_all_kinds() -> None:
    kinds = {lesson.kind for lesson in LESSONS}
    assert kinds == {"personal", "project", "habit", "command", "style", "error"}
    for number in range(1, ROUNDS + 1):
        chosen = [lesson for lesson in LESSONS if lesson.set == number]
        assert len(chosen) == 10
        assert {lesson.kind for lesson in chosen} == kinds
    assert all(len(lesson.other) == 5 for lesson in LESSONS)


def test_no_question_stands_twice() -> None:
    asked = Counter(plain(text) for item in LESSONS for text in (item.ask, item.near, *item.other))
    assert [text for text, count in asked.items() if count > 1] == []


def test_a_wording_that_the_rules_make_is_not_unseen() -> None:
    lesson = LESSONS[0].model_copy(update={"other": ("Tell me my name!", "whose name is mine?")})
    assert unseen(lesson) == ("whose name is mine?",)


def test_unrelated_questions_ask_nothing_that_is_taught() -> None:
    rows = held_out()
    known = {row["question"] for row in rows} | {row["id"] for row in rows if "id" in row}
    same = {name for lesson in LESSONS for name in lesson.same}
    assert same <= known
    asked = unrelated_questions(len(rows), LESSONS)
    ids = {row["question"]: row.get("id") for row in rows}
    assert len(asked) > 600
    assert not same & {name for text in asked for name in (text, ids[text])}
    assert unrelated_questions(200, LESSONS) == unrelated_questions(200, LESSONS)
    assert not set(unrelated_questions(60, LESSONS, without=asked[:200])) & set(asked[:200])
