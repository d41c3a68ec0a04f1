"""Lets the user change a text: in the editor they have set, or in one of our own.

Knows nothing of what the text is.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

from shammah.errors import UsageError
from shammah.repl.screen import Screen


async def edit(screen: Screen, start: str) -> str | None:
    """The text as the user left it; None where they gave up.

    Raises:
        UsageError: there is no terminal to edit on, or the editor cannot be run.
    """
    if not screen.interactive:
        raise UsageError(
            "There is no terminal to edit on.", hint="Write the text after the command."
        )
    async with screen.lent():
        program = os.environ.get("VISUAL") or os.environ.get("EDITOR")
        if program and program.strip():
            return await asyncio.to_thread(edit_with, program, start)
        return await _edit_here(start)


def edit_with(program: str, start: str) -> str | None:
    """Run an editor on a temporary file that only the user can read.

    Raises:
        UsageError: it cannot be started.
    """
    handle, name = tempfile.mkstemp(prefix="shammah-", suffix=".md")
    path = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(start)
        try:
            code = subprocess.run([*shlex.split(program), name], check=False).returncode
        except (OSError, ValueError) as error:
            raise UsageError(
                f"The editor {program!r} cannot be started: {error}.",
                hint="Set VISUAL or EDITOR to one that is there, or write the text after the "
                "command.",
            ) from error
        return path.read_text("utf-8", "replace") if code == 0 else None
    finally:
        path.unlink(missing_ok=True)


async def _edit_here(start: str) -> str | None:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("escape", "enter")
    @keys.add("c-s")
    def _save(event: KeyPressEvent) -> None:
        event.app.exit(result=event.app.current_buffer.text)

    @keys.add("c-c")
    @keys.add("<sigint>")
    def _give_up(event: KeyPressEvent) -> None:
        event.app.exit(result=None)

    session: PromptSession[str | None] = PromptSession(
        message="",
        multiline=True,
        key_bindings=keys,
        bottom_toolbar=" Ctrl-S or Alt-Enter saves, Ctrl-C leaves it as it was",
        erase_when_done=True,
    )
    try:
        # The chat's own prompt keeps the interrupt signal; this one is below it.
        return await session.prompt_async(
            default=start, handle_sigint=False, set_exception_handler=False
        )
    except EOFError:
        return None
