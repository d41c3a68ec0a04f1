"""Lessons as training examples: what is rendered, how long it may be, what is replayed.

Knows renderers and datums; nothing about models or how training runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from shammah.errors import ContextTooLongError, EmptyLessonError
from shammah.learning.lessons import Lesson, answered
from shammah.learning.objectives import OBJECTIVES, example
from shammah.learning.rephrasing import rephrasings
from shammah.messages import Conversation, user
from shammah.ports.datum import Datum
from shammah.renderers.base import Renderer
from shammah.renderers.trim import trim_conversation
from shammah.training.datums import datum
from shammah.training.examples import Example

Anchor = TypeVar("Anchor")

PROBED = 80
"""Anchors that a job measures, about."""
REPLAYED, REPLAYED_NEAR = 240, 120
"""Anchors that a job trains on, at most; and where the adapter will only be asked what is near."""


@dataclass(frozen=True, slots=True)
class Material:
    """Lessons that can be trained on, each as one or more examples.

    `examples[i]` belongs to `lessons[owners[i]]` and has its share of that lesson's weight,
    `weights[i]`; `problems` says of the other lessons why they were left out.
    """

    lessons: tuple[Lesson, ...]
    examples: tuple[Example, ...]
    owners: tuple[int, ...]
    weights: tuple[float, ...]
    problems: dict[int | None, str]

    @property
    def datums(self) -> tuple[Datum, ...]:
        """What each example is judged by."""
        return tuple(example.judged for example in self.examples)

    def learned(self, right: Sequence[bool]) -> list[bool]:
        """Which lessons are answered as taught, given which examples are: all of a lesson's."""
        found = [True] * len(self.lessons)
        for owner, fine in zip(self.owners, right, strict=True):
            found[owner] = found[owner] and fine
        return found

    def shown(self, greedy: Sequence[bool]) -> list[bool]:
        """`learned`, given where greedy decoding gives what the examples are judged by."""
        pairs = zip(self.examples, greedy, strict=True)
        return self.learned([example.learned(same) for example, same in pairs])


def material(
    lessons: Sequence[Lesson],
    renderer: Renderer,
    *,
    context_turns: int,
    max_length: int,
    rephrased: int = 0,
) -> Material:
    """Render lessons; those that cannot be learned are left out and said why.

    A question that came later in a conversation is learned twice, after the turns before it and
    by itself: it may be asked again either way. By itself it is also learned in other words.

    Args:
        context_turns: how many turns before the question are kept.
        rephrased: how many other wordings of the question are learned.
        max_length: tokens of an example; a longer one loses its oldest turns, never its answer.
    """
    kept: list[Lesson] = []
    examples: list[Example] = []
    owners: list[int] = []
    weights: list[float] = []
    problems: dict[int | None, str] = {}
    for lesson in lessons:
        given, others = _questions(lesson, context_turns, rephrased)
        render = _Renders(renderer, max_length)
        try:
            made = [example(lesson, prompt, render, reworded=False) for prompt in given]
            made += [example(lesson, prompt, render, reworded=True) for prompt in others]
        except EmptyLessonError as error:
            problems[lesson.feedback_id] = error.message
        except ContextTooLongError:
            problems[lesson.feedback_id] = (
                f"question and answer are longer than training.max_length ({max_length} tokens)"
            )
        else:
            owners += [len(kept)] * len(made)
            weights += [lesson.weight / len(made)] * len(made)
            examples += made
            kept.append(lesson)
    return Material(tuple(kept), tuple(examples), tuple(owners), tuple(weights), problems)


def kept_out(anchors: Sequence[Anchor]) -> tuple[list[Anchor], list[Anchor]]:
    """Those that may be trained on, and every fourth, at most `PROBED` of them, which is kept out
    of training: to see what becomes of questions that are in no batch."""
    step = max(4, len(anchors) // PROBED)
    return [a for place, a in enumerate(anchors) if place % step], list(anchors[::step])


def questions(lesson: Lesson, context_turns: int, rephrased: int) -> list[Conversation]:
    """The prompts that a lesson is learned after: its question by itself, after up to
    `context_turns` turns before it, and in up to `rephrased` other wordings."""
    given, others = _questions(lesson, context_turns, rephrased)
    return given + others


def replayed(earlier: Sequence[Datum], anchors: Sequence[Datum]) -> list[Datum]:
    """What is mixed into the batches: earlier lessons and anchors, each about half of it.

    A pass over the list takes every entry once, so the fewer are in it several times.
    """
    if not earlier or not anchors:
        return [*earlier, *anchors]
    fewer, more = sorted((earlier, anchors), key=len)
    return [*more, *(fewer[index % len(fewer)] for index in range(len(more)))]


def _questions(
    lesson: Lesson, context_turns: int, rephrased: int
) -> tuple[list[Conversation], list[Conversation]]:
    """The prompts with the question as it was asked, and those with it in other words."""
    given = _prompts(lesson.messages, context_turns)
    objective = OBJECTIVES.get(lesson.objective)
    if objective is not None and not objective.reworded:
        return given, []
    return given, [_asked(given[0], text) for text in rephrasings(lesson.query, rephrased)]


def _prompts(messages: Conversation, context_turns: int) -> list[Conversation]:
    """The question by itself, and after the turns before it."""
    system = tuple(message for message in messages if message.role == "system")
    said = tuple(message for message in messages if message.role != "system")
    asked = [index for index, message in enumerate(said) if message.role == "user"]
    alone = (*system, *said[asked[-1] :]) if asked else messages
    if context_turns == 0 or len(asked) < 2:
        return [alone]
    return [alone, (*system, *said[asked[-1 - min(context_turns, len(asked) - 1)] :])]


def _asked(messages: Conversation, question: str) -> Conversation:
    """A prompt with another question at its end."""
    return (*messages[:-1], user(question))


@dataclass(frozen=True, slots=True)
class _Renders:
    """A prompt and its answer as a datum of at most `max_length` tokens."""

    renderer: Renderer
    max_length: int

    def __call__(self, prompt: Conversation, answer: str) -> Datum:
        rendered = self.renderer.supervised(answered(prompt, answer))
        if len(rendered.tokens) > self.max_length:
            room = self.max_length - sum(weight > 0 for weight in rendered.weights)
            fitting, _ = trim_conversation(self.renderer, prompt, room, 0)
            rendered = self.renderer.supervised(answered(fitting, answer))
        return datum(rendered)
