"""`/retry`, `/system`, `/history`, `/save`, `/clear`, `/stats`, `/help` and `/quit`."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Any

from shammah.errors import UsageError
from shammah.repl import text
from shammah.repl.registry import Chat, number_of
from shammah.repl.text import when

SHOWN = 10


async def retry(chat: Chat, argument: str) -> None:
    await chat.answer(chat.assistant.retry())


async def system(chat: Chat, argument: str) -> None:
    if not argument:
        now = [m.text for m in chat.assistant.conversation if m.role == "system"]
        chat.say(f"System message: {text.harmless(now[0])}" if now else "No system message is set.")
        return
    if argument == "none":
        chat.assistant.set_system("")
        chat.say("The system message is gone.")
        return
    chat.assistant.set_system(argument)
    chat.say("The system message is set; it holds for this conversation.")


async def history(chat: Chat, argument: str) -> None:
    count = number_of(argument, "/history") if argument else SHOWN
    store = (await chat.assistant.workspace()).exchanges
    exchanges = await asyncio.to_thread(store.list, count)
    if not exchanges:
        chat.say("Nothing has been asked yet.")
        return
    width = text.cell(30, 2)
    lines = [
        (
            when(exchange.created_at),
            text.one_line(exchange.query, width),
            text.one_line(exchange.response, width) + (" (stopped)" if exchange.cut else ""),
        )
        for exchange in reversed(exchanges)
    ]
    chat.say(text.table(["when", "question", "answer"], lines, coloured=chat.screen.coloured))


async def save(chat: Chat, argument: str) -> None:
    if not any(message.role == "assistant" for message in chat.assistant.conversation):
        raise UsageError("There is nothing to save yet.", hint="Ask something first.")
    name = argument or f"conversation_{datetime.now():%Y%m%d_%H%M%S}.md"
    path = await asyncio.to_thread(_new_file, name)
    chat.say(f"Saved to {await chat.assistant.save(path)}")


async def clear(chat: Chat, argument: str) -> None:
    chat.assistant.clear()
    chat.say("A new conversation begins. What was said before stays in /history.")


async def stats(chat: Chat, argument: str) -> None:
    workspace = await chat.assistant.workspace()
    numbers = await asyncio.to_thread(workspace.stats)
    lines = list(flat(numbers))
    if speed := chat.assistant.status.tokens_per_second:
        lines.append(("last answer", f"{speed:.1f} tokens/s"))
    chat.say(text.pairs(lines, coloured=chat.screen.coloured))


async def leave(chat: Chat, argument: str) -> None:
    chat.leave()


def _new_file(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        raise UsageError(f"{path} is a folder.", hint="Give the name of a file in it.")
    if path.exists():
        raise UsageError(f"{path} is there already.", hint="Give another name.")
    return path


def flat(numbers: dict[str, Any]) -> list[tuple[str, object]]:
    """Counts as names and values; counts of counts on one line."""
    lines: list[tuple[str, object]] = []
    for name, value in numbers.items():
        if isinstance(value, dict):
            value = ", ".join(f"{count} {what}" for what, count in value.items()) or "none"
        elif name.endswith("_bytes"):
            name, value = name.removesuffix("_bytes") + " size", text.size(value)
        lines.append((name, value))
    return lines
