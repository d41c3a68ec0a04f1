"""How many of the user's lessons are answered as taught, asked aside: the conversation goes on
between two of these answers, with its own adapter and its own cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shammah.assistant.comparison import LONGEST, ready_aside
from shammah.assistant.views import LessonAnswer, LessonCheck
from shammah.evaluation.comparison import compare
from shammah.evaluation.report import report
from shammah.evaluation.runner import evaluate
from shammah.evaluation.scorer import Score

if TYPE_CHECKING:
    from shammah.adapters.library import Adapter
    from shammah.datasets import ChatExample
    from shammah.evaluation.results import Results
    from shammah.evaluation.rows import EvaluationRow
    from shammah.feedback.store import FeedbackStore
    from shammah.generation.engine import Engine
    from shammah.learning.lessons import Lesson
    from shammah.models.load import BaseModel

AS_TAUGHT = "as taught"


class AsTaught:
    """1 where the answer is the taught one, word for word; of a lesson that only says what not to
    answer, where it is another. Line ends and blanks do not count."""

    name = AS_TAUGHT

    async def score(self, output: str, target: str, metadata: Mapping[str, Any]) -> Score:
        """The port's `score`; `metadata["rejected"]` is there where there is no target."""
        rejected = metadata.get("rejected")
        same = output.split() == (target if rejected is None else rejected).split()
        return Score(float(same if rejected is None else not same))


def trained_lessons(feedback: FeedbackStore) -> list[Lesson]:
    """The lessons that were trained and stand, the newest first."""
    from shammah.learning.contradictions import settle
    from shammah.learning.lessons import lessons_from

    return settle(lessons_from(feedback.list("trained")))[0]


async def check_lessons(
    base: BaseModel, engine: Engine, adapter: Adapter | None, lessons: Sequence[Lesson], limit: int
) -> LessonCheck:
    """Greedy answers of an adapter, and of the base model, to the first `limit` lessons.

    Args:
        adapter: None asks the base model alone.

    Raises:
        AdapterInvalidError: it does not fit the model, or is broken.
    """
    asked = lessons[:limit]
    examples = [_example(lesson) for lesson in asked]
    rows, results = await _answers(base, engine, adapter, examples)
    base_rows: list[EvaluationRow] = []
    before: Results | None = None
    if adapter is not None:
        base_rows, before = await _answers(base, engine, None, examples)
    figures = report(results)
    return LessonCheck(
        adapter=adapter.name if adapter else None,
        lessons=len(lessons),
        asked=len(asked),
        failed=figures.failed,
        as_taught=sum(map(_taught, rows)),
        base_as_taught=sum(map(_taught, base_rows)) if adapter else None,
        p=compare(before, results).metrics[0].test.p
        if before is not None and len(results) > max(before.failed, results.failed)
        else None,
        answers=tuple(
            LessonAnswer(
                lesson.query,
                lesson.aim,
                _said(row),
                _taught(row),
                _said(base_rows[row.index]) if adapter else None,
            )
            for lesson, row in zip(asked, rows, strict=True)
        ),
    )


async def _answers(
    base: BaseModel, engine: Engine, adapter: Adapter | None, examples: Sequence[ChatExample]
) -> tuple[list[EvaluationRow], Results]:
    from shammah.generation.engine_batch import EngineCompleter
    from shammah.ports.llm_client import ChatParams

    state = await asyncio.to_thread(ready_aside, base, engine, adapter)
    completer = EngineCompleter(engine, state, ChatParams(max_tokens=LONGEST))
    rows: list[EvaluationRow] = []
    results = await evaluate(examples, completer, [AsTaught()], on_row=rows.append)
    return sorted(rows, key=lambda row: row.index), results


def _example(lesson: Lesson) -> ChatExample:
    from shammah.datasets import ChatExample
    from shammah.messages import assistant

    if lesson.target is None:
        return ChatExample(lesson.messages, metadata={"rejected": lesson.rejected or ""})
    return ChatExample((*lesson.messages, assistant(lesson.target)))


def _said(row: EvaluationRow) -> str:
    """The answer, or why there is none."""
    if row.predicted is None and row.error is not None:
        return f"({row.error.message})"
    return row.predicted or ""


def _taught(row: EvaluationRow) -> bool:
    score = row.scores.get(AS_TAUGHT)
    return score is not None and score.value == 1
