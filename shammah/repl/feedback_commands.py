"""`/critical`, `/medium`, `/good`, `/correct` and `/feedback`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shammah.errors import FeedbackError, UsageError
from shammah.repl import wording
from shammah.repl.registry import Chat, Handler, choose, number_of

if TYPE_CHECKING:
    from shammah.feedback.records import Feedback, Rating
    from shammah.feedback.store import FeedbackStore

SUBCOMMANDS = ("list", "show", "undo", "edit", "delete", "revise", "accept", "refuse")
PARTS = ("note", "correction", "rating")


def rate(rating: Rating) -> Handler:
    """The command that gives this rating."""

    async def run(chat: Chat, argument: str) -> None:
        done = await chat.assistant.rate(rating, note=argument or None)
        chat.say(wording.recorded(done, fix="/correct"))

    return run


async def correct(chat: Chat, argument: str) -> None:
    exchange = chat.assistant.last_exchange
    if exchange is None:
        raise FeedbackError("There is no answer to correct yet.", hint="Ask something first.")
    correction = argument
    if not correction:
        store = await _store(chat)
        earlier = await asyncio.to_thread(store.of_exchange, exchange.id)
        start = (earlier.correction if earlier else None) or exchange.response
        correction = await _edited(chat, start) or ""
        if not correction:
            return
        # A new answer may have come while the editor was open: the correction is for the old one.
        done = await asyncio.to_thread(store.rate, exchange.id, None, None, correction)
        await chat.assistant.feedback_changed()
    else:
        done = await chat.assistant.rate(None, correction=correction)
    chat.say(wording.recorded(done, fix="/correct"))


async def feedback(chat: Chat, argument: str) -> None:
    word, rest = choose("/feedback", argument, SUBCOMMANDS, "list")
    store = await _store(chat)
    if word == "list":
        await _list(chat, store, rest)
    elif word == "show":
        row = await asyncio.to_thread(store.get, number_of(rest, "/feedback show"))
        chat.say(wording.feedback_details(row, coloured=chat.screen.coloured))
    elif word == "undo":
        rows = await asyncio.to_thread(store.undo_all)
        if not rows:
            raise FeedbackError("There is no feedback left to take back.")
        await _changed(chat, store, wording.taken_back(rows))
        await _say_if_held(chat, store, [row for row in rows if row.status == "deleted"])
    elif word == "delete":
        row = await asyncio.to_thread(store.delete, number_of(rest, "/feedback delete"))
        await _changed(
            chat, store, f"Feedback #{row.id} is deleted; /feedback undo brings it back."
        )
        await _say_if_held(chat, store, [row])
    elif word == "edit":
        await _edit(chat, store, rest)
    elif word == "revise":
        from shammah.assistant.revising import revise

        done = await revise(chat.assistant, number_of(rest, "/feedback revise"))
        chat.say(wording.revised(done))
    else:
        number = number_of(rest, f"/feedback {word}")
        done = await asyncio.to_thread(store.decide, number, word == "accept")
        await chat.assistant.feedback_changed()
        chat.say(wording.decided(done))
        if word == "refuse":
            await _say_if_held(chat, store, [done.feedback])


async def _say_if_held(chat: Chat, store: FeedbackStore, rows: Sequence[Feedback]) -> None:
    if await asyncio.to_thread(store.in_weights, rows):
        chat.say(wording.STILL_HELD)


async def _list(chat: Chat, store: FeedbackStore, argument: str) -> None:
    from shammah.feedback.records import STATUSES

    if argument and argument not in STATUSES:
        raise UsageError(
            f"{argument!r} is no status.", hint=f"There are {', '.join(sorted(STATUSES))}."
        )
    status: Any = argument or None
    rows = await asyncio.to_thread(store.list, status, 50)
    if not rows:
        chat.say("No feedback yet: /good, /medium, /critical or /correct after an answer.")
        return
    chat.say(wording.feedback_table(rows, coloured=chat.screen.coloured))
    chat.say(wording.buffer(await asyncio.to_thread(store.state)))


async def _edit(chat: Chat, store: FeedbackStore, argument: str) -> None:
    number, _, change = argument.partition(" ")
    row = await asyncio.to_thread(store.get, number_of(number, "/feedback edit"))
    change = change.strip()
    if not change:
        correction = await _edited(chat, row.correction or row.response or "")
        if not correction:
            return
        parts: dict[str, Any] = {"correction": correction}
    else:
        parts = change_of(change)
    done = await asyncio.to_thread(lambda: store.edit(row.id, **parts))
    await chat.assistant.feedback_changed()
    chat.say(wording.recorded(done, fix=f"/feedback edit {row.id}"))


def change_of(change: str) -> dict[str, str]:
    """`note=...`, `correction=...` or `rating=...` as what to change.

    Raises:
        UsageError: it begins with none of these.
    """
    name, equals, value = change.partition("=")
    if not equals or name.strip() not in PARTS:
        raise UsageError(
            f"Cannot read {change!r}.",
            hint="Write note=..., correction=... or rating=..., or nothing to open the editor.",
        )
    return {name.strip(): value.strip()}


async def _edited(chat: Chat, start: str) -> str | None:
    """What the user made of a text; None, with a word about it, where nothing was changed."""
    result = await chat.edit(start)
    if result is None or not result.strip() or result.strip() == start.strip():
        chat.say("Nothing was changed, so nothing is stored.")
        return None
    return result.strip()


async def _changed(chat: Chat, store: FeedbackStore, what: str) -> None:
    await chat.assistant.feedback_changed()
    chat.say(what)
    chat.say(wording.buffer(await asyncio.to_thread(store.state)))


async def _store(chat: Chat) -> FeedbackStore:
    return (await chat.assistant.workspace()).feedback
