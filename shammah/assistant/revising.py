"""`/feedback revise`: the live model rewrites an answer by its note, for the user to judge.

A training job does the same for what was not revised before it (`learning.revision`).
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from shammah.errors import FeedbackError

if TYPE_CHECKING:
    from shammah.assistant.application import Assistant
    from shammah.feedback.store import Recorded


async def revise(assistant: Assistant, feedback_id: int) -> Recorded:
    """Ask the live model for a revision and store it as proposed, in place of an earlier one.

    Raises:
        FeedbackError: no such feedback, it needs no revision, or the model found none.
        GenerationError, ContextTooLongError: the model could not answer.
    """
    from shammah.generation.params import GenerationParams
    from shammah.learning import revision
    from shammah.learning.lessons import lesson_from

    store = (await assistant.workspace()).feedback
    row = await asyncio.to_thread(store.get, feedback_id)
    if not row.revisable:
        raise FeedbackError(
            f"Feedback {feedback_id} needs no revision: it has a correction, or was rated good, "
            "or no note says what to change.",
            hint=f"`/feedback edit {feedback_id} note=...` says it.",
        )
    lesson = lesson_from(replace(row, revision=None, revision_accepted=None))
    known = row.revision
    for number in range(1 + revision.DRAWN):
        params = GenerationParams(
            max_tokens=revision.MOST_TOKENS,
            temperature=revision.TEMPERATURE if number else 0.0,
            seed=number,
        )
        for asked in revision.requests(lesson):
            answer = await assistant.aside(asked, params)
            text = answer.text.strip()
            # Asked for again, it is to be another one.
            if not answer.cut and revision.acceptable(text, lesson) and text != known:
                done = await asyncio.to_thread(store.propose, feedback_id, text)
                await assistant.feedback_changed()
                return done
    raise FeedbackError(
        f"The model found no {'other ' if known else ''}revision of feedback {feedback_id}.",
        hint=f"Give the right answer with `/feedback edit {feedback_id}`.",
    )
