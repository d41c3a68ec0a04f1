"""Lessons that contradict each other: the heavier stands, then the newer, and it is said why."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shammah.learning.contradictions import settle
from shammah.learning.lessons import Lesson
from shammah.messages import assistant, user

lessons = st.lists(
    st.builds(
        lambda question, target, weight: (question, target, weight),
        st.sampled_from(["Which port?", "which  PORT?", "Who are you?"]),
        st.sampled_from(["8080", "9090", " 9090"]),
        st.sampled_from([1.0, 3.0, 10.0]),
    ),
    max_size=8,
).map(
    lambda rows: [
        Lesson(number, (user(question),), target, weight)
        for number, (question, target, weight) in enumerate(rows, start=1)
    ]
)


def test_the_heavier_wins_then_the_newer() -> None:
    asked = (user("Which port?"),)
    critical = Lesson(1, asked, "8080", 10.0)
    good = Lesson(2, asked, "9090", 1.0)
    standing, ((overruled, winner),) = _settled([critical, good])
    assert standing == [critical] and (overruled, winner) == (good, critical)
    later = Lesson(3, (user("which port? "),), "7070", 10.0)
    standing, found = _settled([critical, good, later])
    assert standing == [later]
    assert found == [(critical, later), (good, later)]


def test_the_reason_names_the_other_lesson() -> None:
    asked = (user("Which port?"),)
    rows = [Lesson(1, asked, "a", 10.0), Lesson(2, asked, "b", 10.0), Lesson(3, asked, "c", 3.0)]
    reasons = [found.reason for found in settle(rows)[1]]
    assert reasons == [
        "feedback 2 gives another answer to it and is newer",
        "feedback 2 gives another answer to it and weighs more",
    ]


def test_another_conversation_is_another_question() -> None:
    rows = [
        Lesson(1, (user("Why?"),), "a", 1.0),
        Lesson(2, (user("Hello"), assistant("Hi."), user("Why?")), "b", 10.0),
    ]
    assert settle(rows) == (rows, [])


@given(lessons)
def test_no_question_keeps_two_answers(rows: list[Lesson]) -> None:
    standing, found = settle(rows)
    assert len(standing) + len(found) == len(rows)
    kept: dict[str, set[str]] = {}
    for lesson in standing:
        kept.setdefault(" ".join(lesson.query.lower().split()), set()).add(lesson.target.strip())
    assert all(len(targets) == 1 for targets in kept.values())
    for contradiction in found:
        assert contradiction.standing in standing
        assert contradiction.standing.weight >= contradiction.overruled.weight


def _settled(rows: list[Lesson]) -> tuple[list[Lesson], list[tuple[Lesson, Lesson]]]:
    standing, found = settle(rows)
    return standing, [(item.overruled, item.standing) for item in found]
