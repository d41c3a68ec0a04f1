"""`/eval`."""

from __future__ import annotations

from shammah.repl import wording
from shammah.repl.registry import Chat, number_of

ASKED = 20
"""Lessons that are asked unless told otherwise."""


async def check(chat: Chat, argument: str) -> None:
    limit = number_of(argument, "/eval") if argument else ASKED
    found = await chat.assistant.check_lessons(limit)
    chat.say(wording.lesson_check(found, coloured=chat.screen.coloured))
