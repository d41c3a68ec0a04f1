"""What is said about feedback, adapters and jobs: the same words in the chat and in the shell.

Turns values into text. Knows nothing of prompts or of where the text goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from shammah.repl import text
from shammah.repl.text import duration, one_line, size, unicode_output

if TYPE_CHECKING:
    from shammah.adapters.domains import Route
    from shammah.adapters.library import Adapter
    from shammah.assistant import AdapterInfo
    from shammah.assistant.views import AdapterComparison, AdapterRecord
    from shammah.feedback.records import BufferState, Feedback, Recorded
    from shammah.learning.plan import TrainingPlan
    from shammah.learning.queue import Job
    from shammah.learning.status import TrainingStatus

_LAYERS = 5
MARKS = {"critical": "🔴", "medium": "🟡", "good": "🟢"}


def recorded(done: Recorded, *, fix: str) -> str:
    """The reply to a rating, a correction or an edit.

    Args:
        done: what the store did.
        fix: how the right answer is given, such as `/correct`.
    """
    feedback, before = done.feedback, done.replaced
    mark = MARKS.get(feedback.rating or "", "") if unicode_output() else ""
    lines = [f"{mark} Feedback recorded (weight: {feedback.weight:g}x)".strip()]
    if feedback.note:
        lines.append(f"Note: {feedback.note}")
    if feedback.correction:
        lines.append(f"Correction: {one_line(feedback.correction, text.cell(14, 1))}")
    if before is not None:
        lines.append(f"Replaces what you said of this answer before ({_said(before)}).")
    if feedback.status == "waiting":
        lines.append(
            "Waiting: nobody has said what the right answer is, and a bad one is never learned. "
            f"{fix} gives it."
        )
    lines.append(buffer(done.buffer))
    if done.dropped:
        numbers = ", ".join(f"#{other.id}" for other in done.dropped)
        lines.append(
            f"The buffer holds {done.buffer.capacity} at most: {numbers} left training (the "
            "lightest and oldest go first). Still in the store."
        )
    lines.extend(f"Warning: {warning}" for warning in done.warnings)
    return text.harmless("\n".join(lines))


def buffer(state: BufferState) -> str:
    """`Training buffer: 8 examples (42.0 weighted)`."""
    line = f"Training buffer: {_count(state.count, 'example')} ({state.weight:.1f} weighted)"
    return line + (f", {state.waiting} waiting for a correction" if state.waiting else "")


def feedback_table(rows: Sequence[Feedback], *, coloured: bool) -> str:
    """One line for each, newest first."""
    width = text.cell(40, 2)
    return text.table(
        ["#", "rating", "weight", "status", "question", "note or correction"],
        [
            (
                row.id,
                row.rating or "-",
                f"{row.weight:g}",
                status(row),
                one_line(row.query, width),
                one_line(row.correction or row.note or "", width),
            )
            for row in rows
        ],
        coloured=coloured,
        right=(0, 2),
    )


def feedback_details(row: Feedback, *, coloured: bool) -> str:
    """Everything about one."""
    lines: list[tuple[str, object]] = [
        ("feedback", f"#{row.id}"),
        ("rating", f"{row.rating or 'none'} (weight {row.weight:g})"),
        ("status", status(row)),
        ("given", when(row.created_at)),
    ]
    if row.updated_at != row.created_at:
        lines.append(("changed", when(row.updated_at)))
    lines.append(("answered by", f"{row.model or 'imported'}, {row.adapter or 'no adapter'}"))
    lines.extend((message.role, message.content) for message in row.messages)
    if row.response is not None:
        lines.append(("answer", row.response))
    if row.note:
        lines.append(("note", row.note))
    if row.correction:
        lines.append(("correction", row.correction))
    return text.pairs(lines, coloured=coloured)


def status(row: Feedback) -> str:
    """The status of feedback, with what became of it."""
    if row.status == "trained" and row.learned is not None:
        return "learned" if row.learned else "trained, not learned yet"
    return row.status


STILL_HELD = (
    "It was trained already: the adapters since then hold it. The next job trains without it; "
    "/adapters rebuild trains the others anew."
)


def taken_back(rows: Sequence[Feedback]) -> str:
    """What `undo` did."""
    row = rows[0]
    if len(rows) > 1:
        return f"{len(rows)} pieces of feedback are taken back (#{rows[-1].id} to #{row.id})."
    if row.status == "deleted":
        return f"Feedback #{row.id} is taken back."
    return f"Feedback #{row.id} is as it was before: {_said(row)}, {status(row)}."


def adapters_table(rows: Sequence[AdapterInfo], *, coloured: bool) -> str:
    """One line for each; the active one is marked. Domains are shown where there are some."""
    some = any(row.domain for row in rows)
    domain = ("domain",) if some else ()
    return text.table(
        ["", "adapter", *domain, "made", "lessons", "rank", "size", "loss", ""],
        [
            (
                "*" if row.active else "",
                row.name,
                *([row.domain or "-"] if some else []),
                when(row.created_at) if row.created_at else "-",
                f"{row.learned}/{row.lessons}",
                row.rank if row.rank is not None else "-",
                size(row.size_bytes),
                f"{row.final_loss:.3f}" if row.final_loss is not None else "-",
                row.problem or _remark(row),
            )
            for row in rows
        ],
        coloured=coloured,
        right=tuple(range(3 + some, 7 + some)),
        whole=(1, *range(3 + some, 7 + some)),
    )


def _remark(row: AdapterInfo) -> str:
    if not row.compatible:
        return "for another base model"
    return "failed its checks" if row.failures else ""


def adapter_comparison(found: AdapterComparison, *, coloured: bool) -> str:
    """Two adapters side by side, and what lies between them."""
    columns = [_record(found.first), _record(found.second)]
    apart = found.difference
    shown = text.table(
        ["", apart.first or "base model", apart.second],
        [(label, columns[0].get(label, "-"), value) for label, value in columns[1].items()],
        coloured=coloured,
        whole=(0,),
    )
    parts = [shown, f"\nDifference in weights: {apart.norm:.3g}"]
    largest = sorted(apart.layers, key=lambda layer: layer.difference, reverse=True)[:_LAYERS]
    parts.append(
        text.table(
            ["layer (the most changed)", "before", "after", "difference"],
            [
                (item.layer, f"{item.first:.3g}", f"{item.second:.3g}", f"{item.difference:.3g}")
                for item in largest
            ],
            coloured=coloured,
            right=(1, 2, 3),
        )
    )
    for title, lessons in (("Lessons added", apart.added), ("Lessons gone", apart.removed)):
        if lessons:
            parts.append(f"\n{title}:")
            parts += [f"  {one_line(item.query)} → {one_line(item.target)}" for item in lessons]
    return "\n".join(parts)


def _record(record: AdapterRecord | None) -> dict[str, str]:
    if record is None:
        return {}
    info, metrics = record.info, record.metrics
    ratings = ", ".join(
        f"{record.ratings[rating]} {rating}" for rating in MARKS if rating in record.ratings
    )
    rows = {
        "domain": info.domain or "none",
        "made": when(info.created_at) if info.created_at else "-",
        "lessons learned": f"{info.learned} of {info.lessons}",
        "loss": f"{info.final_loss:.3f}" if info.final_loss is not None else "-",
        "rank, size": f"{info.rank}, {size(info.size_bytes)}",
        "used in": _count(record.answers, "answer"),
        "ratings of those": ratings or "none",
        "checks": "; ".join(info.failures) or "passed",
    }
    for label, part, whole in (
        ("earlier lessons held", "earlier_held", "earlier"),
        ("other answers unchanged", "other_answers_unchanged", "other_answers"),
    ):
        if metrics.get(whole):
            rows[label] = f"{metrics[part]:g} of {metrics[whole]:g}"
    return rows


def adapter_details(adapter: Adapter, *, coloured: bool) -> str:
    """Everything about one adapter.

    Raises:
        AdapterInvalidError: its description is missing or broken.
    """
    about = adapter.require_metadata()
    lines: list[tuple[str, object]] = [
        ("adapter", adapter.name),
        ("file", adapter.path),
        ("size", f"{size(adapter.size)}, {about.parameters:,} parameters"),
        ("made", f"{when(about.created_at)}, {about.origin}"),
        ("base model", f"{about.base_model} ({about.base_fingerprint[:16]})"),
        ("LoRA", f"rank {about.lora.rank}, alpha {about.lora.alpha:g}, "
                 f"{', '.join(about.lora.target_modules)}"),
        ("parent", about.parent or "none"),
        ("domain", about.domain or "none"),
    ]  # fmt: skip
    lines += [(name.replace("_", " "), f"{value:g}") for name, value in about.metrics.items()]
    lines += [("failed", failure) for failure in about.failures]
    lines += [("sha256", about.sha256)]
    shown = text.pairs(lines, coloured=coloured)
    if not about.lessons:
        return shown
    lessons = text.table(
        ["learned", "weight", "question", "answer taught"],
        [
            (
                "yes" if lesson.learned else "no",
                f"{lesson.weight:g}",
                one_line(lesson.query, text.cell(20, 2)),
                one_line(lesson.target, text.cell(20, 2)),
            )
            for lesson in about.lessons
        ],
        coloured=coloured,
        right=(1,),
    )
    return f"{shown}\n\n{lessons}"


def routed(route: Route) -> str:
    """Under an answer that another than the active adapter gave."""
    return f"{route.domain}: answered by {route.adapter}"


def domain_set(adapter: Adapter) -> str:
    """What `adapters domain` did or found."""
    about = adapter.require_metadata()
    if about.domain is None:
        return f"{adapter.name} is for no domain."
    said = f"{adapter.name} is for {about.domain}."
    if not about.lessons:
        said += " It has no lessons to compare questions with, so none is routed to it."
    elif about.failures:
        said += " It failed its checks, so no question is routed to it."
    return said


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
            empty += f" {_count(what.waiting, 'rated answer')} without a correction."
        return empty
    width = text.cell(60, 2)
    lines = [
        text.table(
            ["#", "weight", "ways", "question", "answer to learn"],
            [
                (
                    item.feedback_id,
                    f"{item.weight:g}",
                    item.examples,
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
            f"{_count(what.earlier, 'earlier lesson')} and {_count(what.anchors, 'anchor')}, "
            f"{what.replay_share:.0%} of each batch",
        ),
        ("steps", f"{what.steps_at_most} at most; it ends when all lessons are learned"),
    ]
    if what.seconds is not None:
        facts.append(("time", f"about {duration(what.seconds)}, going by the last adapter"))
    if what.training_bytes is not None:
        facts.append(("memory", f"about {size(what.training_bytes)} for the worker"))
    if what.waiting:
        facts.append(("left out", f"{_count(what.waiting, 'rated answer')} without a correction"))
    return "\n".join([*lines, "", text.pairs(facts, coloured=coloured)])


def queued(job: Job) -> str:
    """What `train now` did."""
    return f"Training job {job.id} is {job.status} with {_count(job.examples, 'example')}."


def job_done(job: Job) -> str:
    """How a job ended."""
    if job.status != "done":
        return f"Training job {job.id} {job.status}: {job.error or 'no reason given'}"
    lines = [
        f"Training job {job.id} is done: {_count(job.examples, 'example')}, "
        f"{job.learned or 0} learned"
        + (f", final loss {job.final_loss:.4f}" if job.final_loss is not None else "")
    ]
    if job.adapter:
        lines.append(f"Adapter: {job.adapter}")
    return "\n".join(lines)


def rejected(lines: Iterable[tuple[int, str]]) -> str:
    """The bad lines of an import, with their reasons."""
    return "\n".join(f"line {number}: {reason}" for number, reason in lines)


def when(moment: datetime) -> str:
    """A moment in the user's own time."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")


def _said(row: Feedback) -> str:
    said = row.rating or "no rating"
    return f"{said}, with a correction" if row.correction else said


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
