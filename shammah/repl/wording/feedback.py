"""What is said about feedback: the same words in the chat and in the shell.

Turns values into text. Knows nothing of prompts or of where the text goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from shammah.repl import text
from shammah.repl.text import counted, one_line, unicode_output, when

if TYPE_CHECKING:
    from shammah.feedback.records import BufferState, Feedback, Recorded

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
    line = f"Training buffer: {counted(state.count, 'example')} ({state.weight:.1f} weighted)"
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
    lines.extend((message.role, message.text) for message in row.messages)
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


def rejected(lines: Iterable[tuple[int, str]]) -> str:
    """The bad lines of an import, with their reasons."""
    return "\n".join(f"line {number}: {reason}" for number, reason in lines)


def _said(row: Feedback) -> str:
    said = row.rating or "no rating"
    return f"{said}, with a correction" if row.correction else said
