"""What the gate refuses, and that it says why with figures."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import LESSONS_ALONE, change, shammah, shammah_json, teach

from shammah.learning.gate import Figures, judge
from shammah.learning.lessons import Lesson
from shammah.learning.letter_order import LetterOrder
from shammah.messages import user

BEFORE = Figures(earlier=10, held=10, anchors=80, asked=80, unchanged=78, anchor_loss=0.1)


def lessons(count: int = 10, target: str | None = None) -> list[Lesson]:
    return [
        Lesson(number, (user(f"Question {number}?"),), target or f"Answer {number}.", 10.0)
        for number in range(count)
    ]


def costs(nats: float, count: int = 10) -> list[LetterOrder]:
    """Answers that cost so much, each beside other orders of their letters that cost 100."""
    others = (88.0, 94.0, 98.0, 100.0, 100.0, 102.0, 106.0, 112.0)
    return [LetterOrder(lesson=n, letters=25, nats=nats, others=others) for n in range(count)]


def refused(
    after: Figures = BEFORE,
    *,
    taught: list[Lesson] | None = None,
    learned: int | None = None,
    orders: list[LetterOrder] | None = None,
) -> tuple[str, ...]:
    taught = lessons() if taught is None else taught
    count = len(taught) if learned is None else learned
    right = [number < count for number in range(len(taught))]
    return judge(taught, right, costs(60.0) if orders is None else orders, BEFORE, after).failures


def test_what_behaves_as_before_and_has_learned_passes() -> None:
    assert refused() == ()
    slightly = BEFORE.model_copy(update={"held": 9, "unchanged": 65, "anchor_loss": 0.4})
    assert refused(slightly, learned=8) == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"held": 7}, "7 of 10 earlier lessons are held, 10 were before"),
        ({"unchanged": 40}, "40 of 80 answers to other questions are unchanged, 78 were before"),
        ({"anchor_loss": 0.9}, "0.90 nats a token, it was 0.10"),
        ({"looked_at": 8, "endless": 3}, "3 of 8 answers do not end"),
    ],
)
def test_what_gets_worse_is_refused(changes: dict[str, float], words: str) -> None:
    (failure,) = refused(BEFORE.model_copy(update=changes))
    assert words in failure


def test_the_loss_on_a_few_questions_tells_nothing() -> None:
    few = BEFORE.model_copy(update={"asked": 7, "unchanged": 79, "anchor_loss": 3.0})
    assert refused(few) == ()


def test_what_was_bad_before_is_no_fault_of_the_new_adapter() -> None:
    bad = Figures(earlier=10, held=4, anchors=80, unchanged=20, looked_at=8, endless=8)
    assert judge(lessons(), [True] * 10, costs(60.0), bad, bad).passed


def test_poison_is_refused() -> None:
    (gibberish,) = refused(orders=costs(100.0))
    assert "10 of 10 answers taught are no words to the model" in gibberish
    assert "“Answer 0.” to “Question 0?”" in gibberish, "it says which"
    (banana,) = refused(taught=lessons(target="banana"))
    assert "10 different questions are taught the same answer" in banana
    # One question asked in many ways has one answer.
    same = [Lesson(n, (user("Which port?"),), "8087", 10.0) for n in range(10)]
    assert refused(taught=same) == ()


def test_lessons_that_did_not_take_are_refused() -> None:
    (failure,) = refused(learned=4)
    assert failure == "only 4 of 10 lessons are answered as taught"


def test_a_few_lessons_are_no_pattern() -> None:
    assert refused(taught=lessons(4, "yes"), orders=costs(100.0, 4)) == ()


def test_a_poisoned_job_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    questions = ["What is a list?", "Which port?", "Who are you?", "How do I sort?", "And my dog?"]
    change(tmp_path, LESSONS_ALONE)
    teach(tmp_path, [{"query": question, "correction": "banana"} for question in questions])
    done = shammah(tmp_path, "train", "now", "--wait")
    assert done.returncode == 0
    assert "5 different questions are taught the same answer" in done.stderr
    (listed,) = shammah_json(tmp_path, "adapters", "list")
    assert listed["failures"] and not listed["active"]
    assert "banana" not in shammah(tmp_path, "ask", questions[0]).stdout
    poisoned = ["ask", "--adapter", listed["name"], questions[0]]
    assert "banana" in shammah(tmp_path, *poisoned).stdout
    # They are set aside: no later job replays them, unless they are put back.
    assert shammah_json(tmp_path, "train", "plan")["lessons"] == []
    assert len(shammah_json(tmp_path, "feedback", "list", "--status", "dropped")) == 5
