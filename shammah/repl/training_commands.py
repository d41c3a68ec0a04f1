"""`/train`."""

from __future__ import annotations

import asyncio

from shammah.errors import TrainingError, UsageError
from shammah.repl import text, wording
from shammah.repl.registry import Chat, choose, words_of
from shammah.settings import domain_name

SUBCOMMANDS = ("status", "now", "plan", "plot", "cancel", "queue", "resume")


async def train(chat: Chat, argument: str) -> None:
    word, rest = choose("/train", argument, SUBCOMMANDS, "status")
    workspace = await chat.assistant.workspace()
    if word == "status":
        status = chat.assistant.status.training
        if status is None or not status.active:
            chat.say("No training job is running.")
        else:
            chat.say(text.pairs(wording.training(status), coloured=chat.screen.coloured))
        chat.say(wording.buffer(await asyncio.to_thread(workspace.feedback.state)))
    elif word == "queue":
        jobs = await asyncio.to_thread(workspace.queue.list)
        if jobs:
            chat.say(wording.jobs_table(jobs, coloured=chat.screen.coloured))
        else:
            chat.say("No training job has been queued yet.")
    elif word == "plan":
        planned = await asyncio.to_thread(workspace.plan)
        chat.say(wording.plan(planned, coloured=chat.screen.coloured))
    elif word == "plot":
        chat.screen.print(await asyncio.to_thread(_plot, chat, rest))
    elif word == "now":
        chat.say(wording.queued(await chat.assistant.train_now(_domain(rest))))
    elif word == "resume":
        held = await asyncio.to_thread(workspace.queue.resumable)
        if held is None:
            raise TrainingError("No training job was interrupted.")
        job = await (await chat.assistant.trainer()).resume(held.id)
        chat.say(f"Training job {job.id} goes on.")
    else:
        trainer = await chat.assistant.trainer()
        ran_here = trainer.busy
        job = await trainer.cancel()
        if not ran_here:  # The trainer says so itself of a job it ran.
            chat.say(f"Training job {job.id} is {job.status}.")


def _plot(chat: Chat, rest: str) -> str:
    """Loss and learning rate of a run, or the metrics that are named after it.

    Raises:
        MetricsError: there is no such run.
        UsageError: it has no such metric.
    """
    from shammah.repl.wording.runs import DRAWN, curves_drawn
    from shammah.tracking.finding import find_run, named_curves
    from shammah.tracking.loggers.store import open_store

    words = words_of(rest)
    width = text.columns()
    store = open_store(chat.paths.data)
    try:
        run = find_run(store, words[0] if words else None).name
        curves = named_curves(store, run, words[1:] or DRAWN, width * 2)
    finally:
        store.close()
    return curves_drawn(run, curves, width=width, coloured=chat.screen.coloured)


def _domain(rest: str) -> str | None:
    """What `--domain NAME` says.

    Raises:
        UsageError: there is something else, or no name for a domain.
    """
    words = words_of(rest)
    if not words:
        return None
    if len(words) != 2 or words[0] != "--domain":
        raise UsageError("Write /train now [--domain NAME]")
    try:
        return domain_name(words[1])
    except ValueError as error:
        raise UsageError(str(error)) from error
