"""What is said about training: the same words in the chat and in the shell.

Turns values into text. Knows nothing of prompts or of where the text goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shammah.repl import text
from shammah.repl.text import counted, duration, one_line, size, when

if TYPE_CHECKING:
    from shammah.learning.plan import TrainingPlan
    from shammah.learning.queue import Job
    from shammah.learning.status import TrainingStatus


def jobs_table(jobs: Sequence[Job], *, coloured: bool) -> str:
    """One line for each job."""
    return text.table(
        ["job", "status", "queued", "examples", "learned", "loss", "result"],
        [
            (
                job.id,
                job.status,
                when(job.created_at),
                job.examples,
                job.learned if job.learned is not None else "-",
                f"{job.final_loss:.3f}" if job.final_loss is not None else "-",
                job.adapter or one_line(job.error or "", text.cell(60, 1)),
            )
            for job in jobs
        ],
        coloured=coloured,
        right=(0, 3, 4, 5),
        whole=(1, 3, 4, 5, 6),
    )


def training(now: TrainingStatus) -> list[tuple[str, object]]:
    """Names and values of a running job."""
    lines: list[tuple[str, object]] = [("training", now.state)]
    if now.job is not None:
        where = " (run by another process)" if now.elsewhere else ""
        lines.append(("job", f"{now.job}{where}"))
        lines.append(("examples", now.examples))
    if now.epochs:
        lines.append(("epoch", f"{now.epoch} of {now.epochs} at most"))
    if now.steps:
        lines.append(("step", f"{now.step} of {now.steps} at most"))
    if now.loss is not None:
        lines.append(("loss", f"{now.loss:.4f}"))
    if now.learned is not None:
        lines.append(("learned so far", f"{now.learned} of {now.examples}"))
    if now.learning_rate is not None:
        lines.append(("learning rate", f"{now.learning_rate:.2e}"))
    if now.tokens_per_second is not None:
        lines.append(("speed", f"{now.tokens_per_second:.0f} tokens/s"))
    if now.seconds_left is not None:
        lines.append(("time left", f"{duration(now.seconds_left)} at most"))
    return lines


def plan(what: TrainingPlan, *, coloured: bool) -> str:
    """What `train plan` says."""
    if not what.lessons:
        empty = "There is nothing to train on: the buffer is empty."
        if what.waiting:
            empty += f" {counted(what.waiting, 'rated answer')} without a correction."
        return empty
    width = text.cell(60, 2)
    lines = [
        text.table(
            ["#", "weight", "ways", "objective", "question", "answer to learn"],
            [
                (
                    item.feedback_id,
                    f"{item.weight:g}",
                    item.examples,
                    item.objective,
                    one_line(item.question, width),
                    one_line(item.problem or item.target, width),
                )
                for item in what.lessons
            ],
            coloured=coloured,
            right=(0, 1, 2),
        )
    ]
    facts: list[tuple[str, object]] = [
        ("base model", what.model),
        ("domain", what.domain or "none"),
        ("goes on from", what.parent or "the base model"),
        (
            "replayed",
            f"{counted(what.earlier, 'earlier lesson')} and {counted(what.anchors, 'anchor')}, "
            f"{what.replay_share:.0%} of each batch",
        ),
        ("steps", f"{what.steps_at_most} at most; it ends when all lessons are learned"),
    ]
    if what.seconds is not None:
        facts.append(("time", f"about {duration(what.seconds)}, going by the last adapter"))
    if what.training_bytes is not None:
        facts.append(("memory", f"about {size(what.training_bytes)} for the worker"))
    if what.waiting:
        facts.append(("left out", f"{counted(what.waiting, 'rated answer')} without a correction"))
    return "\n".join([*lines, "", text.pairs(facts, coloured=coloured)])


def queued(job: Job) -> str:
    """What `train now` did."""
    return f"Training job {job.id} is {job.status} with {counted(job.examples, 'example')}."


def job_done(job: Job) -> str:
    """How a job ended."""
    if job.status != "done":
        return f"Training job {job.id} {job.status}: {job.error or 'no reason given'}"
    lines = [
        f"Training job {job.id} is done: {counted(job.examples, 'example')}, "
        f"{job.learned or 0} learned"
        + (f", final loss {job.final_loss:.4f}" if job.final_loss is not None else "")
    ]
    if job.adapter:
        lines.append(f"Adapter: {job.adapter}")
    return "\n".join(lines)
