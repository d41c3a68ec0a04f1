"""Objectives: what examples a lesson becomes, by name.

- `towards`: supervised, towards an answer.
- `prefer`: the same, and beside it the answer rather than the rejected one (DPO).
- `avoid`: away from a rejected answer, bounded (NPO).
- `note`: each token of a rejected answer by what the note makes of it; its advantages are filled in
  by `revision.with_advantages`.

Knows lessons and losses by name; rendering is given to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shammah.learning.lessons import Lesson
from shammah.messages import Conversation
from shammah.ports.datum import Datum
from shammah.training.examples import Example, Term, supervised

Render = Callable[[Conversation, str], Datum]
"""A prompt and its answer as a datum that weighs 1."""


@dataclass(frozen=True, slots=True)
class Objective:
    """`example(lesson, prompt, render)` is what is learned of a lesson after one prompt.

    Args:
        reworded: whether it is also learned after other wordings of the question, and
        `elsewhere`, if so, the objective for those.
    """

    name: str
    example: Callable[[Lesson, Conversation, Render], Example]
    reworded: bool = True
    elsewhere: str | None = None


def _towards(lesson: Lesson, prompt: Conversation, render: Render) -> Example:
    return supervised(render(prompt, lesson.answer))


def _prefer(lesson: Lesson, prompt: Conversation, render: Render) -> Example:
    given = render(prompt, lesson.answer)
    pair = (given, render(prompt, lesson.rejected or ""))
    return Example((Term("cross_entropy", (given,)), Term("preference", pair)))


def _avoid(lesson: Lesson, prompt: Conversation, render: Render) -> Example:
    return _away("npo", render(prompt, lesson.answer))


def _note(lesson: Lesson, prompt: Conversation, render: Render) -> Example:
    datum = render(prompt, lesson.answer)
    return Example((Term("clipped_advantage", (datum,)),), shows="avoided")


def _away(loss: str, datum: Datum) -> Example:
    # The loss is of the whole answer. Divided by its length, it begins with the same force on each
    # token as a supervised term of the same weight has.
    length = int(np.count_nonzero(datum.loss_fn_inputs["weights"].data))
    return Example((Term(loss, (datum,), 1.0 / length),), shows="avoided")


OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective("towards", _towards),
        Objective("prefer", _prefer, elsewhere="towards"),
        Objective("avoid", _avoid, reworded=False),
        Objective("note", _note, reworded=False),
    )
}


def example(lesson: Lesson, prompt: Conversation, render: Render, *, reworded: bool) -> Example:
    """What is learned of a lesson after one prompt, which has its question in the given words or,
    where `reworded`, in others.

    Raises:
        KeyError: no objective of that name; a lesson that is to be revised first has none.
    """
    objective = OBJECTIVES[lesson.objective]
    if reworded and objective.elsewhere is not None:
        objective = OBJECTIVES[objective.elsewhere]
    return objective.example(lesson, prompt, render)
