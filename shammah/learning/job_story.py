"""A job's story: what is taught, how the model answers before and after, and what the gate saw.

Knows what a job works with and finds, not how.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from shammah.learning.curriculum import Curriculum
from shammah.learning.gate import Figures, GateReport
from shammah.learning.job import JobSpec
from shammah.learning.lessons import Lesson, answered
from shammah.learning.material import questions
from shammah.tracking import telemetry
from shammah.tracking.story import StoryWriter

HANDLER = "job story"
NEAR_MISSES = 40
"""Of those, the first so many are told."""
TITLE = 80


class JobStory:
    """Tells one job's story.

    Args:
        story: where it is told.
        spec: the job.
    """

    def __init__(self, story: StoryWriter, spec: JobSpec) -> None:
        self._story = story
        self.spec = spec

    def taught(self, curriculum: Curriculum, near: Sequence[Lesson]) -> None:
        """What the job teaches, and what it holds.

        Args:
            near: questions near to the lessons, with the base's own answers.
        """
        story, lessons = self._story, curriculum.lessons
        with story.scope("What is taught"):
            for lesson in lessons.lessons:
                with story.scope(_title(lesson)):
                    self._lesson(lesson)
            for number, problem in lessons.problems.items():
                story.text(f"Lesson {number} is left out: {problem}.")
        if near:
            with story.scope("Near misses, which keep their answers"):
                rows = [(lesson.query, lesson.target) for lesson in near[:NEAR_MISSES]]
                story.table(("question", "the base model's answer"), rows)
                if len(near) > NEAR_MISSES:
                    story.text(f"And {len(near) - NEAR_MISSES} more.")
        story.text(
            f"Beside {len(lessons.examples)} examples of {len(lessons.lessons)} lessons, "
            f"{len(curriculum.replay)} others are replayed: {len(self.spec.replay)} earlier "
            "lessons in their wordings, and answers of the base model."
        )
        for note in self.spec.notes:
            story.text(note)

    def answers(self, title: str, lessons: Sequence[Lesson], found: Sequence[str | None]) -> None:
        """How the lessons were answered; the reward is 1 where the answer is as taught."""
        with self._story.scope(title):
            for lesson, text in zip(lessons, found, strict=False):
                if text is not None:
                    reward = None if lesson.target is None else float(text == lesson.target.strip())
                    self._story.conversation(answered(_alone(lesson), text), reward=reward)
            if None in found:
                asked = sum(text is not None for text in found)
                self._story.text(f"{asked} of {len(lessons)} lessons were asked.")

    def verdict(self, gate: GateReport) -> None:
        """What the gate compared, and what it found."""
        with self._story.scope("Checks"):
            self._figures(gate.before, gate.after)
            self._story.text(f"{gate.learned} of {gate.lessons} lessons are answered as taught.")
            for failure in gate.failures:
                self._story.text(f"Failed: {failure}.")
            if gate.passed:
                self._story.text("It passed.")

    @contextmanager
    def training(self) -> Iterator[None]:
        """While inside, each look that the loop takes at the lessons is told."""

        def looked(name: str, found: Mapping[str, int | float], about: Mapping[str, Any]) -> None:
            if "learned" in found:
                self._story.text(
                    f"After step {found['step']}: {found['learned']} examples are answered as "
                    f"taught, loss {found['loss']:.4g}."
                )

        with (
            self._story.scope("Training"),
            telemetry.attached(HANDLER, ("training.eval",), looked),
        ):
            yield

    def _lesson(self, lesson: Lesson) -> None:
        story = self._story
        if lesson.target is not None:
            title = "what the model made of the note" if lesson.note else "the right answer"
            story.conversation(answered(lesson.messages, lesson.target), title=title)
        if lesson.rejected is not None:
            wrong = answered(lesson.messages, lesson.rejected)
            story.conversation(wrong, title="not to be answered")
        if lesson.note:
            story.text(f"Note: {lesson.note}")
        story.text(f"Objective: {lesson.objective}, weight {lesson.weight:g}.")
        training = self.spec.training
        asked = questions(lesson, training.context_turns, training.rephrasings)
        others = dict.fromkeys(prompt[-1].text for prompt in asked)
        others.pop(lesson.query, None)
        if others:
            story.table(("asked in other words",), [(text,) for text in others])

    def _figures(self, before: Figures, after: Figures) -> None:
        shown = (
            ("earlier lessons held", "held", "earlier"),
            ("other answers unchanged", "unchanged", "anchors"),
            ("answers without an end", "endless", "looked_at"),
        )
        rows: list[tuple[object, ...]] = [
            (words, getattr(before, name), getattr(after, name), getattr(after, of))
            for words, name, of in shown
            if getattr(after, of) or getattr(before, of)
        ]
        if after.anchors:
            rows.append(("nats a token of the base's answers", before.anchor_loss,
                         after.anchor_loss, None))  # fmt: skip
        self._story.table(("what", "before", "after", "of"), rows)


def _alone(lesson: Lesson) -> tuple[Any, ...]:
    """The question by itself, as it is learned."""
    return questions(lesson, 0, 0)[0]


def _title(lesson: Lesson) -> str:
    line = " ".join(lesson.query.split())
    return line if len(line) <= TITLE else line[: TITLE - 1] + "…"
