"""What is said about feedback, adapters and jobs: the same words in the chat and in the shell.

Turns values into text. Knows nothing of prompts or of where the text goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from shammah.adapters.merge_methods import EXACT
from shammah.repl import text
from shammah.repl.text import duration, one_line, size, unicode_output

if TYPE_CHECKING:
    from shammah.adapters.domains import Route
    from shammah.adapters.library import Adapter
    from shammah.adapters.metadata import AdapterMetadata, MergeRecord
    from shammah.adapters.pruning import Removal
    from shammah.assistant import AdapterInfo
    from shammah.assistant.views import AdapterComparison, AdapterRecord, AnswerComparison
    from shammah.errors import ShammahError
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
            "Waiting: the answer is empty, so there is nothing to keep from. "
            f"{fix} gives the right one."
        )
    elif feedback.target is None:
        lines.append(_without_target(feedback, fix))
    elif feedback.preferred_over is not None:
        lines.append("It will be preferred over the answer that you had tried again.")
    lines.append(buffer(done.buffer))
    if done.dropped:
        numbers = ", ".join(f"#{other.id}" for other in done.dropped)
        lines.append(
            f"The buffer holds {done.buffer.capacity} at most: {numbers} left training (the "
            "lightest and oldest go first). Still in the store."
        )
    lines.extend(f"Warning: {warning}" for warning in done.warnings)
    return text.harmless("\n".join(lines))


def revised(done: Recorded) -> str:
    """What `feedback revise` found."""
    row = done.feedback
    return text.harmless(
        f"By your note the model would answer:\n\n{row.revision}\n\n"
        f"This is what training teaches. /feedback refuse {row.id} if it is wrong, "
        f"/feedback accept {row.id} if it is right, /feedback edit {row.id} to write it yourself."
    )


def decided(done: Recorded) -> str:
    """What `feedback accept` or `refuse` did."""
    row = done.feedback
    if row.revision_accepted:
        what = f"The revision of feedback #{row.id} is accepted: it is what is taught."
    else:
        what = f"The revision of feedback #{row.id} is refused: it is not taught."
    return f"{what}\n{buffer(done.buffer)}"


def _without_target(feedback: Feedback, fix: str) -> str:
    """What training makes of a bad answer that nobody gave the right one for."""
    if feedback.revisable and feedback.revision_accepted is None:
        return (
            "Training lets the model revise the answer by your note, and teaches that. "
            f"{fix} gives the right one instead; /feedback revise {feedback.id} shows the revision."
        )
    return f"Training moves the model away from this answer. {fix} says which is right."


def buffer(state: BufferState) -> str:
    """`Training buffer: 8 examples (42.0 weighted)`."""
    line = f"Training buffer: {_count(state.count, 'example')} ({state.weight:.1f} weighted)"
    return line + (f", {state.waiting} empty, waiting for a correction" if state.waiting else "")


def feedback_table(rows: Sequence[Feedback], *, coloured: bool) -> str:
    """One line for each, newest first."""
    width = text.cell(40, 2)
    return text.table(
        ["#", "rating", "weight", "status", "question", "correction, revision or note"],
        [
            (
                row.id,
                row.rating or "-",
                f"{row.weight:g}",
                status(row),
                one_line(row.query, width),
                one_line(row.correction or row.revision or row.note or "", width),
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
    if row.revision is not None:
        lines.append(("revision", row.revision))
        said = {None: "not judged yet", True: "accepted", False: "refused"}[row.revision_accepted]
        lines.append(("", f"the model's own, {said}"))
    if row.preferred_over is not None:
        lines.append(("preferred over", row.preferred_over))
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
                f"{'?' if row.learned is None else row.learned}/{row.lessons}",
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
            parts += [f"  {one_line(item.query)} → {one_line(item.aim)}" for item in lessons]
    return "\n".join(parts)


def answer_comparison(
    found: AdapterComparison, answers: AnswerComparison, *, coloured: bool
) -> str:
    """The answers to their lessons in which two adapters differ."""
    if not answers.lessons:
        return "\nNeither was taught a lesson to compare answers to."
    asked = f"{_count(answers.asked, 'lesson')} asked"
    if answers.asked < answers.lessons:
        asked += f" ({answers.lessons} in all)"
    if not answers.differing:
        return f"\nNone answered differently of {asked}."
    width = 2 * text.cell(8, 3)
    names = (found.difference.first or "base model", found.difference.second)
    shown = text.table(
        ["lesson", *names],
        [
            (
                one_line(pair.question, width),
                _answer(pair.first, pair.taught, width),
                _answer(pair.second, pair.taught, width),
            )
            for pair in answers.differing
        ],
        coloured=coloured,
    )
    return f"\nAnswered differently, {len(answers.differing)} of {asked}:\n{shown}"


def no_answers(error: ShammahError) -> str:
    """Why a comparison is without answers."""
    return f"Their answers cannot be compared: {error}"


def _answer(answer: str, taught: str, width: int) -> str:
    mark = " (as taught)" if answer.split() == taught.split() else ""
    return one_line(answer, width) + mark


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
        "lessons learned": f"{info.learned} of {info.lessons}"
        if info.learned is not None
        else f"those of its parents: {info.lessons}",
        "loss": f"{info.final_loss:.3f}" if info.final_loss is not None else "-",
        "rank, size": f"{info.rank}, {size(info.size_bytes)}",
        "used in": _count(record.answers, "answer"),
        "ratings of those": ratings or "none",
        "checks": "; ".join(info.failures)
        or ("passed" if info.origin == "trained" else f"none ({info.origin})"),
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
        *_origin(about),
        *_rounds(about),
        ("domain", about.domain or "none"),
    ]  # fmt: skip
    lines += [(name.replace("_", " "), f"{value:g}") for name, value in about.metrics.items()]
    lines += [("failed", failure) for failure in about.failures]
    lines += [("sha256", about.sha256)]
    shown = text.pairs(lines, coloured=coloured)
    if not about.lessons:
        return shown
    lessons = text.table(
        [
            "learned" if about.merge is None else "by a parent",
            "weight",
            "question",
            "answer taught",
        ],
        [
            (
                "yes" if lesson.learned else "no",
                f"{lesson.weight:g}",
                one_line(lesson.query, text.cell(20, 2)),
                one_line(lesson.aim, text.cell(20, 2)),
            )
            for lesson in about.lessons
        ],
        coloured=coloured,
        right=(1,),
    )
    return f"{shown}\n\n{lessons}"


def without_round(adapter: Adapter, *, active: bool) -> str:
    """What `adapters without` did."""
    how = "It answers from now on." if active else f"/adapters load {adapter.name} uses it."
    return (
        f"{adapter.name} is the same without that round. {how}\n"
        "Its lessons still stand, and the next job may teach them again: /feedback delete N takes "
        "one back."
    )


def _rounds(about: AdapterMetadata) -> list[tuple[str, object]]:
    return [
        (f"round {number}", f"rank {part.rank}, {_count(len(part.lessons), 'lesson')}")
        for number, part in enumerate(about.rounds, start=1)
    ]


def _origin(about: AdapterMetadata) -> list[tuple[str, object]]:
    if about.merge is None:
        return [("parent", about.parent or "none")]
    merge = about.merge
    density = f", density {merge.density:g}" if merge.density is not None else ""
    return [
        ("merged from", merged_sum(merge)),
        ("method", f"{merge.method}{density}"),
        ("off the weighted sum", f"{merge.relative_error:.2%}"),
    ]


def merged_sum(merge: MergeRecord) -> str:
    """`0.7 x first + 0.3 x second`."""
    return " + ".join(f"{parent.weight:.4g} x {parent.name}" for parent in merge.parents)


def merged(adapter: Adapter) -> str:
    """What `merge` made."""
    merge = adapter.require_metadata().merge
    assert merge is not None
    return f"{adapter.name} is {merged_sum(merge)} ({merge.method}, rank {merge.rank})."


def pruned(removed: Sequence[Removal], left: int, *, dry_run: bool) -> str:
    """What `adapters prune` did, or would do."""
    if not removed:
        return (
            f"Nothing to remove, {_count(left, 'adapter')} kept: they are few enough, in use, or "
            "what the active one was made from."
        )
    lines = [f"{removal.name}: {removal.reason}" for removal in removed]
    done = "would be removed" if dry_run else "removed"
    lines.append(f"{_count(len(removed), 'adapter')} {done}, {left} kept.")
    return "\n".join(lines)


def inexact(adapter: Adapter) -> str | None:
    """A warning, where a merged adapter is not the weighted sum of those it was made of."""
    merge = adapter.require_metadata().merge
    if merge is None or merge.relative_error < EXACT:
        return None
    better = "cat is exact" if merge.method == "svd" else "cat is exact, svd the nearest of a rank"
    return (
        f"Inexact: what it changes is {merge.relative_error:.1%} off the weighted sum of what the "
        f"others change ({better}). /adapters compare shows its answers."
    )


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
