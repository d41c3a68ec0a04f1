"""Undoes what ran, the last first, and says what failed. Knows nothing of how it came to that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from shammah.errors import ShammahError, StorageError, WorkflowError
from shammah.recipes.workflows.branch import Branch, Key
from shammah.recipes.workflows.context import Context, Stop
from shammah.recipes.workflows.journal import Journal
from shammah.recipes.workflows.stage import Stage

__all__ = ["Ran", "StageFailed", "failure", "not_undone", "roll_back", "said"]

log = logging.getLogger("shammah")


class StageFailed(Exception):
    """Something of the workflow raised; `path` says what, `__cause__` what it raised."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


@dataclass(frozen=True)
class Ran:
    """A stage that ran, and what it needs to be undone."""

    path: str
    stage: Stage
    number: float
    """In the order in which they were finished; those that were not come last."""
    branch: Branch
    texts: Mapping[Key, str] | None
    """What there was when it was finished; None where it was not: the branch is as it left it."""
    item: Any

    def context(self) -> Context:
        """The context as it was."""
        if self.texts is None:
            context = self.branch.context
            context.item, context.stop = self.item, Stop()
        else:
            context = self.branch.at(self.texts, self.item, Stop())
        context.stage = self.path
        return context


async def roll_back(ran: list[Ran], journal: Journal) -> None:
    """Undo what ran and is not undone yet; `journal.undone` says what came of it."""
    for each in sorted(ran, key=lambda one: one.number, reverse=True):
        if each.path in journal.undone:
            continue
        problem = None
        try:
            await each.stage.rollback(each.context())
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                # Not undone: whoever resumes goes on with it.
                raise
            log.error("the rollback of %s failed: %s", each.path, error, exc_info=error)
            problem = said(error)
        try:
            journal.undo(each.path, problem)
        except StorageError as error:
            # The journal says that all is to be undone: a resume tries this one again.
            log.error("the rollback of %s was not written down: %s", each.path, error)
            journal.undone[each.path] = problem
    with suppress(StorageError):
        journal.roll_back()


def failure(failed: StageFailed, journal: Journal) -> WorkflowError:
    """What the user is told, once all is undone."""
    cause = failed.__cause__
    hint = cause.hint if isinstance(cause, ShammahError) else None
    failures = tuple((path, text) for path, text in journal.undone.items() if text is not None)
    message = f"The stage `{failed.path}` failed: {said(cause)}"
    if failures:
        several = "; ".join(f"`{path}`: {text}" for path, text in failures)
        message += f"\nNot everything could be undone. {several}"
    found = WorkflowError(
        message,
        stage=failed.path,
        rolled_back=tuple(journal.undone),
        rollback_failures=failures,
        hint=hint,
    )
    if isinstance(cause, ShammahError):
        found.exit_code = cause.exit_code
    return found


def not_undone(failed: StageFailed, problem: StorageError) -> WorkflowError:
    """What the user is told where the journal cannot be written, so that nothing is undone."""
    return WorkflowError(
        f"The stage `{failed.path}` failed: {said(failed.__cause__)}\n"
        f"What ran before it is left as it is: {problem.message}",
        stage=failed.path,
        hint=f"{problem.hint or 'See to it'} Resuming goes on from there.",
    )


def said(error: BaseException | None) -> str:
    """An error in a line: its message, with its kind where a user could not know it."""
    if isinstance(error, ShammahError):
        return error.message
    text = str(error).strip()
    kind = type(error).__name__
    return f"{kind}: {text}" if text else f"{kind}."
