"""`shammah feedback`: what was said about answers, in and out. Needs no model."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shammah.cli.context import open_workspace
from shammah.cli.output import coloured, emit, say, tell
from shammah.errors import FeedbackError, UsageError
from shammah.files import storage_error
from shammah.repl import wording

if TYPE_CHECKING:
    from shammah.assistant.workspace import Workspace
    from shammah.feedback.records import Feedback


def list_all(options: Namespace) -> int:
    with open_workspace(options) as workspace:
        rows = workspace.feedback.list(
            getattr(options, "status", None), getattr(options, "limit", None)
        )
        state = workspace.feedback.state()
    if options.json:
        emit([feedback_record(row) for row in rows])
    elif rows:
        say(wording.feedback_table(rows, coloured=coloured()))
        tell(wording.buffer(state))
    else:
        tell("There is no such feedback.")
    return 0


def show(options: Namespace) -> int:
    with open_workspace(options) as workspace:
        row = workspace.feedback.get(options.number)
    if options.json:
        emit(feedback_record(row))
    else:
        say(wording.feedback_details(row, coloured=coloured()))
    return 0


def edit(options: Namespace) -> int:
    parts: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("note", "correction", "rating")
        if getattr(options, name) is not None
    }
    if not parts:
        raise UsageError("Nothing to change.", hint="Give --note, --correction or --rating.")
    with open_workspace(options) as workspace:
        done = workspace.feedback.edit(options.number, **parts)
        _queue_if_due(workspace)
    if options.json:
        emit(feedback_record(done.feedback))
    else:
        say(wording.recorded(done, fix=f"shammah feedback edit {options.number} --correction"))
    return 0


def accept(options: Namespace) -> int:
    return _decide(options, accepted=True)


def refuse(options: Namespace) -> int:
    return _decide(options, accepted=False)


def _decide(options: Namespace, *, accepted: bool) -> int:
    with open_workspace(options) as workspace:
        done = workspace.feedback.decide(options.number, accepted)
        held = not accepted and workspace.feedback.in_weights([done.feedback])
        _queue_if_due(workspace)
    if options.json:
        emit(feedback_record(done.feedback))
    else:
        say(wording.decided(done))
    if held:
        tell(wording.STILL_HELD)
    return 0


def delete(options: Namespace) -> int:
    with open_workspace(options) as workspace:
        row = workspace.feedback.delete(options.number)
        held = workspace.feedback.in_weights([row])
    if options.json:
        emit(feedback_record(row))
    else:
        say(f"Feedback #{row.id} is deleted; shammah feedback undo brings it back.")
    if held:
        tell(wording.STILL_HELD)
    return 0


def undo(options: Namespace) -> int:
    with open_workspace(options) as workspace:
        rows = workspace.feedback.undo_all()
        held = workspace.feedback.in_weights(row for row in rows if row.status == "deleted")
    if not rows:
        raise FeedbackError("There is no feedback left to take back.")
    if options.json:
        emit([feedback_record(row) for row in rows])
    else:
        say(wording.taken_back(rows))
    if held:
        tell(wording.STILL_HELD)
    return 0


def take(options: Namespace) -> int:
    """Import. Ends with 2 where a line was rejected, so that a script notices."""
    from shammah.feedback.transfer import import_jsonl

    source = sys.stdin if options.file == "-" else Path(options.file).expanduser()
    with open_workspace(options) as workspace:
        report = import_jsonl(
            workspace.feedback, source, options.strict, model=workspace.settings.model.name
        )
        state = workspace.feedback.state()
        warnings = {warning for done in report.recorded for warning in done.warnings}
        dropped = [row.id for done in report.recorded for row in done.dropped]
        if report.taken:
            _queue_if_due(workspace)
    if report.rejected:
        tell(wording.rejected(report.rejected))
    for warning in sorted(warnings):
        tell(f"Warning: {warning}")
    if options.json:
        emit(
            {
                "taken": report.taken,
                "rejected": [
                    {"line": number, "reason": reason} for number, reason in report.rejected
                ],
                "dropped": dropped,
                "buffer": {"count": state.count, "weight": state.weight},
            }
        )
    else:
        say(f"{report.taken} taken, {len(report.rejected)} rejected.")
        if dropped:
            tell(f"{len(dropped)} left training: the buffer holds {state.capacity} at most.")
        tell(wording.buffer(state))
    return 2 if report.rejected else 0


def export(options: Namespace) -> int:
    from shammah.feedback.transfer import export_jsonl

    with open_workspace(options) as workspace:
        if options.file == "-":
            count = export_jsonl(workspace.feedback, sys.stdout, options.status)
        else:
            path = Path(options.file).expanduser()
            try:
                with path.open("w", encoding="utf-8") as stream:
                    path.chmod(0o600)
                    count = export_jsonl(workspace.feedback, stream, options.status)
            except OSError as error:
                raise storage_error(error, path) from error
    tell(f"{count} exported.")
    return 0


def feedback_record(row: Feedback) -> dict[str, Any]:
    """Feedback as a JSON object."""
    return {
        "id": row.id,
        "rating": row.rating,
        "weight": row.weight,
        "status": row.status,
        "learned": row.learned,
        "query": row.query,
        "response": row.response,
        "note": row.note,
        "correction": row.correction,
        "revision": row.revision,
        "revision_accepted": row.revision_accepted,
        "preferred_over": row.preferred_over,
        "messages": [message.to_dict() for message in row.messages],
        "model": row.model,
        "adapter": row.adapter,
        "exchange": row.exchange_id,
        "job": row.job_id,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
    }


def _queue_if_due(workspace: Workspace) -> None:
    job = workspace.queue_if_due()
    if job is not None:
        tell(f"{wording.queued(job)} The next chat runs it, or `shammah train now --wait`.")
