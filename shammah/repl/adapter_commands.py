"""`/adapters`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from shammah.errors import AdapterError, UsageError
from shammah.repl import wording
from shammah.repl.options import merge_options, options_of, whole_number
from shammah.repl.registry import Chat, choose, words_of

ANSWERS = 10
"""Differing answers that `compare` shows unless told otherwise."""


async def adapters(chat: Chat, argument: str) -> None:
    word, rest = choose("/adapters", argument, tuple(SUBCOMMANDS), "list")
    await SUBCOMMANDS[word](chat, words_of(rest))


async def _list(chat: Chat, words: Sequence[str]) -> None:
    workspace = await chat.assistant.workspace()
    rows = await asyncio.to_thread(workspace.adapters)
    if not rows:
        chat.say("No adapters yet: the first one comes with the first training job.")
        return
    chat.say(wording.adapters_table(rows, coloured=chat.screen.coloured))


async def _load(chat: Chat, words: Sequence[str]) -> None:
    (name,) = _exactly(words, "load NAME")
    chat.say(f"{await chat.assistant.adapter_load(name)} answers from now on.")


async def _unload(chat: Chat, words: Sequence[str]) -> None:
    _exactly(words, "unload")
    await chat.assistant.adapter_load(None)
    chat.say("The base model answers from now on, without an adapter.")


async def _rollback(chat: Chat, words: Sequence[str]) -> None:
    _exactly(words, "rollback")
    name = await chat.assistant.adapter_rollback()
    chat.say(f"{name or 'The base model'} answers again.")


async def _show(chat: Chat, words: Sequence[str]) -> None:
    name = words[0] if words else chat.assistant.status.adapter
    if name is None:
        raise UsageError("No adapter is active.", hint="Write /adapters show NAME.")
    workspace = await chat.assistant.workspace()
    adapter = await asyncio.to_thread(workspace.library.get, name)
    chat.say(wording.adapter_details(adapter, coloured=chat.screen.coloured))


async def _compare(chat: Chat, words: Sequence[str]) -> None:
    names, options = options_of(words, ("--answers",))
    if not 1 <= len(names) <= 2:
        raise UsageError("Write /adapters compare NAME [OTHER] [--answers N]")
    limit = whole_number("answers", options.get("answers", str(ANSWERS)))
    name, other = (*names, None)[:2]
    workspace = await chat.assistant.workspace()
    found = await asyncio.to_thread(workspace.compare, str(name), other)
    chat.say(wording.adapter_comparison(found, coloured=chat.screen.coloured))
    if limit:
        first = found.first.info.name if found.first else None
        try:
            answers = await chat.assistant.adapter_answers(first, found.second.info.name, limit)
        except AdapterError as error:
            chat.say(f"\n{wording.no_answers(error)}")
            return
        chat.say(wording.answer_comparison(found, answers, coloured=chat.screen.coloured))


async def _merge(chat: Chat, words: Sequence[str]) -> None:
    valued = ("--weights", "--method", "--rank", "--density", "--name")
    names, options = options_of(words, valued, ("--activate",))
    if len(names) < 2:
        raise UsageError(
            "Write /adapters merge NAME NAME [...] [--weights 0.7,0.3] [--method cat|svd|...] "
            "[--rank N] [--density D] [--name NAME] [--activate]"
        )
    activate = options.pop("activate", None) is not None
    wanted = merge_options(options)
    adapter = await chat.assistant.adapter_merge(names, wanted, activate=activate)
    chat.say(wording.merged(adapter))
    warning = wording.inexact(adapter)
    if warning:
        chat.say(chat.styled(warning, "yellow"))
    if activate:
        chat.say(f"{adapter.name} answers from now on.")
    else:
        chat.say(f"/adapters load {adapter.name} makes it answer.")


async def _rebuild(chat: Chat, words: Sequence[str]) -> None:
    _exactly(words, "rebuild")
    chat.say(wording.queued(await chat.assistant.rebuild()))


async def _without(chat: Chat, words: Sequence[str]) -> None:
    activate = "--activate" in words
    name, number = _exactly(
        [word for word in words if word != "--activate"], "without NAME ROUND [--activate]"
    )
    adapter = await chat.assistant.adapter_without(
        name, whole_number("ROUND", number) or 0, activate=activate
    )
    chat.say(wording.without_round(adapter, active=activate))


async def _rename(chat: Chat, words: Sequence[str]) -> None:
    old, new = _exactly(words, "rename OLD NEW")
    adapter = await chat.assistant.adapter_rename(old, new)
    chat.say(f"{old} is now {adapter.name}.")


async def _domain(chat: Chat, words: Sequence[str]) -> None:
    if not 1 <= len(words) <= 2:
        raise UsageError("Write /adapters domain NAME [DOMAIN|--clear]")
    library = (await chat.assistant.workspace()).library
    if len(words) == 1:
        adapter = await asyncio.to_thread(library.get, words[0])
    else:
        domain = None if words[1] == "--clear" else words[1]
        adapter = await asyncio.to_thread(library.set_domain, words[0], domain)
    chat.say(wording.domain_set(adapter))


async def _delete(chat: Chat, words: Sequence[str]) -> None:
    (name,) = _exactly(words, "delete NAME")
    workspace = await chat.assistant.workspace()
    await asyncio.to_thread(workspace.library.delete, name)
    chat.say(f"{name} is deleted.")


async def _prune(chat: Chat, words: Sequence[str]) -> None:
    plain, options = options_of(words, ("--keep",), ("--dry-run",))
    if plain:
        raise UsageError("Write /adapters prune [--keep N] [--dry-run]")
    keep, dry_run = whole_number("keep", options.get("keep"), 1), "dry-run" in options
    workspace = await chat.assistant.workspace()
    removed = await asyncio.to_thread(workspace.prune, keep, dry_run=dry_run)
    left = len(await asyncio.to_thread(workspace.library.list)) - len(removed) * dry_run
    chat.say(wording.pruned(removed, left, dry_run=dry_run))


async def _export(chat: Chat, words: Sequence[str]) -> None:
    with_lessons = "--with-lessons" in words
    name, folder = _exactly(
        [word for word in words if word != "--with-lessons"],
        "export NAME FOLDER [--with-lessons]",
    )
    workspace = await chat.assistant.workspace()

    def work() -> Path:
        from shammah.adapters.peft_format import export_peft

        adapter = workspace.library.get(name)
        return export_peft(adapter, Path(folder).expanduser(), with_lessons=with_lessons)

    chat.say(f"Exported to {await asyncio.to_thread(work)}")


async def _import(chat: Chat, words: Sequence[str]) -> None:
    (folder,) = _exactly(words, "import FOLDER")
    adapter = await chat.assistant.adapter_import(await asyncio.to_thread(Path(folder).expanduser))
    chat.say(f"Imported as {adapter.name}; /adapters load {adapter.name} makes it answer.")


SUBCOMMANDS: dict[str, Callable[[Chat, Sequence[str]], Awaitable[None]]] = {
    "list": _list,
    "load": _load,
    "unload": _unload,
    "show": _show,
    "compare": _compare,
    "merge": _merge,
    "rebuild": _rebuild,
    "without": _without,
    "rename": _rename,
    "domain": _domain,
    "delete": _delete,
    "prune": _prune,
    "rollback": _rollback,
    "export": _export,
    "import": _import,
}


def _exactly(words: Sequence[str], usage: str) -> Sequence[str]:
    """The words, if there are as many as the usage line names.

    Raises:
        UsageError: there are more or fewer.
    """
    wanted = sum(part.isupper() and part[0] not in "[-" for part in usage.split())
    if len(words) != wanted:
        raise UsageError(f"Write /adapters {usage}")
    return words
