"""What the questions of lessons are answered, so that a person can read what training changed.

Short and greedy, with the weights as they are; the gate judges by other figures. Written against
the `TrainingClient` protocol alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from shammah.errors import ContextTooLongError, SamplingError
from shammah.learning.lessons import Lesson
from shammah.learning.material import questions
from shammah.ports.datum import ModelInput
from shammah.ports.sampling_client import SamplingParams
from shammah.ports.training_client import TrainingClient
from shammah.renderers.base import Renderer
from shammah.renderers.trim import trim_conversation

ASKED = 32
"""Lessons that are asked at most, the last ones."""
MOST_TOKENS = 96
"""Of an answer; a longer one is cut and ends with `CUT`."""
MOST_LETTERS = 400
"""Of one that is known already."""
MOST_SECONDS = 5.0
"""A slow model is asked fewer."""
CUT = " …"


async def greedy_answers(
    client: TrainingClient,
    renderer: Renderer,
    lessons: Sequence[Lesson],
    known: Sequence[str | None],
    *,
    context_turns: int,
    max_length: int,
    stopped: Callable[[], bool] = lambda: False,
) -> list[str | None]:
    """The answer to each lesson's question after the turns before it; None where it was not asked.

    Args:
        known: answers that need not be asked for; None for the others.
        context_turns: turns before the question that are kept.
        max_length: tokens of question and answer.
        stopped: asked before each question whether to leave it at that.
    """
    found = [None if text is None else _short(text) for text in known]
    params = SamplingParams(
        max_tokens=MOST_TOKENS, stop_tokens=renderer.stop_tokens, stop_texts=renderer.stop_texts
    )
    began = time.monotonic()
    for index in [place for place, text in enumerate(found) if text is None][-ASKED:]:
        if stopped() or time.monotonic() - began > MOST_SECONDS:
            break
        asked = questions(lessons[index], context_turns, 0)[-1]
        try:
            fitting, _ = trim_conversation(renderer, asked, max_length, MOST_TOKENS)
            prompt = renderer.generation_prompt(fitting)
            (sample,) = await client.sampler.sample(ModelInput.of(prompt), params)
        except (ContextTooLongError, SamplingError):
            continue
        text = renderer.parse(sample.tokens, prompt).message.text.strip()
        found[index] = text if sample.stop_reason == "stop" else text + CUT
    return found


def _short(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else text[:MOST_LETTERS].rstrip() + CUT
