"""`/model` and `/config`."""

from __future__ import annotations

import json
import re
from typing import Any

from shammah.errors import UsageError
from shammah.repl import text
from shammah.repl.registry import Chat, choose
from shammah.repl.toolbar import short_name


async def model(chat: Chat, argument: str) -> None:
    word, rest = choose("/model", argument, ("info", "load"), "info")
    if word == "info":
        rows = list((await chat.assistant.model_info()).rows())
        adapter = chat.assistant.status.adapter
        rows.append(("adapter", short_name(adapter) if adapter else "none"))
        chat.say(text.pairs(rows, coloured=chat.screen.coloured))
        return
    if not rest:
        raise UsageError(
            "/model load takes a model.",
            hint="`embedded`, a registered name, a folder, or a name on the Hub.",
        )
    chat.say(f"Loading {text.harmless(rest)} ...")
    await chat.assistant.load_model(rest)
    chat.say(f"{text.harmless(rest)} answers from now on (in this chat; /config set model.name "
             "makes it stay).")  # fmt: skip


async def config(chat: Chat, argument: str) -> None:
    word, rest = choose("/config", argument, ("show", "get", "set"), "show")
    settings = chat.assistant.settings
    if word == "show":
        lines = [
            (key, value_text(value))
            for key, value in settings.flat().items()
            if not rest or key.startswith(rest)
        ]
        if not lines:
            raise UsageError(f"No setting begins with {rest!r}.")
        chat.say(text.pairs(lines, coloured=chat.screen.coloured))
        chat.say(f"File: {chat.paths.config_file}")
    elif word == "get":
        if not rest:
            raise UsageError("/config get takes a setting.", hint="Such as lora.rank.")
        chat.say(f"{rest} = {value_text(settings.get(rest))}")
    else:
        # `lora.rank 8` and `lora.rank = 8` both come naturally.
        key, value = [*re.split(r"\s*=\s*|\s+", rest, maxsplit=1), ""][:2]
        if not key or not value:
            raise UsageError(
                "/config set takes a setting and a value.", hint="Such as /config set lora.rank 8."
            )
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        stored, remark = await chat.assistant.set_setting(key, value)
        chat.say(f"{key} = {value_text(stored)}. {remark}")


def value_text(value: Any) -> str:
    """A value as it stands in TOML; `none` for an absent one."""
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
