"""Whether a trained adapter may answer: its figures beside those of what answers now.

Loss is no proof. The worker measures behaviour before and after training (`measures`); here it is
judged. Knows figures, no tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from shammah.learning.lessons import Lesson
from shammah.learning.letter_order import LetterOrder, without_order

LEARNED = 0.5
"""Share of the lessons that must be answered as taught."""
HELD = 0.1
"""Share of the earlier lessons that may be lost."""
DRIFT = 0.5
"""Nats per token by which the loss on the model's own answers may rise."""
CHANGED = 0.35
"""Share of the model's own answers to other questions that may come out differently."""
OWN = 0.5
"""Share of the base's own answers to other questions that must be left, over all rounds."""
STUCK = 0.25
"""Share of the answers looked at that may go on without an end."""
FEWEST = 8
"""So many anchors must be answered by the adapter for their loss to tell anything."""
SHOWN = 40
"""Characters of a lesson that a failure shows."""
FEW = 4
"""So many lessons or less say nothing about a pattern."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Figures(_Record):
    """How one state of the adapter behaves.

    `held` of `earlier` lessons are answered as taught, `unchanged` of `anchors` (questions that
    were in no batch) as the base model answers them. `asked` of the anchors are so near to the
    lessons that the adapter answers them at all, with a loss of `anchor_loss` nats per token;
    `endless` of `looked_at` answers did not end.
    """

    earlier: int = 0
    held: int = 0
    anchors: int = 0
    asked: int = 0
    unchanged: int = 0
    anchor_loss: float = 0.0
    looked_at: int = 0
    endless: int = 0


class GateReport(_Record):
    """What was found, and which checks failed, as sentences; none failed where that is empty."""

    before: Figures
    after: Figures
    learned: int
    lessons: int
    surprising: int
    """Lessons whose answer is no words to the model: in any order its letters are as likely."""
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.failures


def judge(
    lessons: Sequence[Lesson],
    learned: Sequence[bool],
    orders: Sequence[LetterOrder],
    before: Figures,
    after: Figures,
) -> GateReport:
    """Compare a candidate with what answers now.

    Args:
        lessons: what was taught, and `learned` which of it is answered as taught.
        orders: what answers cost before training, and their letters in other orders.
        before, after: the behaviour without and with the new adapter.
    """
    strange = without_order(orders, sum(lesson.target is not None for lesson in lessons))
    failures = [
        *_taught(lessons, sum(learned), strange),
        *_kept(before, after),
    ]
    return GateReport(
        before=before,
        after=after,
        learned=sum(learned),
        lessons=len(lessons),
        surprising=len(strange),
        failures=tuple(failures),
    )


def _taught(lessons: Sequence[Lesson], learned: int, strange: Sequence[LetterOrder]) -> list[str]:
    failures = []
    if learned < LEARNED * len(lessons):
        failures.append(f"only {learned} of {len(lessons)} lessons are answered as taught")
    given = [lesson for lesson in lessons if lesson.target is not None]
    if len(given) > FEW:
        if strange:
            worst = lessons[min(strange, key=lambda order: order.saved).lesson]
            failures.append(
                f"{len(strange)} of {len(given)} answers taught are no words to the model, such as "
                f"“{_short(worst.answer)}” to “{_short(worst.query)}”: it finds their letters as "
                "likely in any other order"
            )
        target, count = Counter(_words(lesson.answer) for lesson in given).most_common(1)[0]
        asked = {_words(item.query) for item in given if _words(item.answer) == target}
        if 2 * count > len(given) and len(asked) > FEW:
            failures.append(f"{len(asked)} different questions are taught the same answer")
    return failures


def _kept(before: Figures, after: Figures) -> list[str]:
    failures = []
    if after.earlier and before.held - after.held > max(1, HELD * after.earlier):
        failures.append(
            f"{after.held} of {after.earlier} earlier lessons are held, {before.held} were before"
        )
    if after.anchors:
        if before.unchanged - after.unchanged > CHANGED * after.anchors:
            failures.append(
                f"{after.unchanged} of {after.anchors} answers to other questions are unchanged, "
                f"{before.unchanged} were before"
            )
        elif after.unchanged < OWN * after.anchors and after.unchanged < before.unchanged:
            failures.append(
                f"only {after.unchanged} of {after.anchors} answers to other questions are still "
                "the base model's: /adapters rebuild trains all lessons anew"
            )
        if after.asked >= FEWEST and after.anchor_loss - before.anchor_loss > DRIFT:
            failures.append(
                f"the loss on the model's own answers is {after.anchor_loss:.2f} nats a token, "
                f"it was {before.anchor_loss:.2f}"
            )
    if after.endless - before.endless > STUCK * max(after.looked_at, 1):
        failures.append(f"{after.endless} of {after.looked_at} answers do not end")
    return failures


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"


def _words(text: str) -> str:
    return " ".join(text.lower().split())
