"""Starts the chat: with a prompt on a terminal, line by line elsewhere.

The order matters. The prompt is drawn first; settings, commands, stores and the model are imported
and loaded in threads behind it, so this module imports almost nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from shammah.paths import Paths
from shammah.repl.leaving import leave_at_once
from shammah.repl.lines import read_lines
from shammah.repl.screen import Screen
from shammah.version import VERSION

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer

    from shammah.repl.session import Session
    from shammah.settings import Settings

SLOW_CLOSE_SECONDS = 0.4


def run_chat(
    load: Callable[[], Settings], paths: Paths, *, train: bool = True, adapter: str | None = None
) -> int:
    """Chat until the user leaves; the exit code.

    Args:
        load: reads the settings; called in a thread once the prompt is there.
        paths: where data lives.
        train: run queued training jobs behind the chat.
        adapter: answer with this adapter whatever is active; `none` for the base model.

    Raises:
        ConfigError: the settings are not valid.
    """
    if drawn_prompt_possible():
        return asyncio.run(_on_terminal(load, paths, train, adapter))
    return asyncio.run(_line_by_line(load(), paths, train, adapter))


def drawn_prompt_possible() -> bool:
    """Whether both ends are a terminal that can move its cursor."""
    dumb = os.environ.get("TERM", "dumb") in ("dumb", "unknown", "")
    return sys.stdin.isatty() and sys.stdout.isatty() and not dumb


async def _on_terminal(
    load: Callable[[], Settings], paths: Paths, train: bool, adapter: str | None
) -> int:
    from prompt_toolkit.completion import DynamicCompleter
    from prompt_toolkit.patch_stdout import patch_stdout

    from shammah.repl.prompt import echo, make_prompt

    session: Session | None = None
    completer: Completer | None = None
    early: list[str] = []

    def leave() -> None:
        if prompt.app.is_running and not prompt.app.is_done:
            prompt.app.exit(exception=EOFError)

    def submit(line: str) -> None:
        if session is None:
            early.append(line)
        else:
            session.submit(line)

    screen = Screen(
        interactive=True,
        coloured=not os.environ.get("NO_COLOR"),
        redraw=lambda: prompt.app.invalidate(),
    )
    prompt = make_prompt(
        screen,
        history=paths.history,
        completer=DynamicCompleter(lambda: completer),
        toolbar=lambda: session.toolbar() if session is not None else " starting",
        on_line=submit,
        on_interrupt=lambda empty: session is not None and session.interrupt(empty=empty),
    )
    sys.stdout.write(f"Shammah {VERSION}. /help lists the commands, Ctrl-D leaves.\n")
    sys.stdout.flush()
    drawn = asyncio.Event()
    prompt.app.after_render += lambda app: drawn.set()
    _on_signals(("SIGTERM", "SIGHUP"), leave)
    with patch_stdout(raw=True):
        # What goes wrong in a callback belongs into the log, not across the screen.
        prompting = asyncio.create_task(prompt.prompt_async(set_exception_handler=False))
        try:
            await asyncio.wait(
                [prompting, asyncio.create_task(drawn.wait())],
                return_when=asyncio.FIRST_COMPLETED,
            )
            settings, commands = await asyncio.to_thread(_prepare, load)
            completer = commands(paths)
            session = _session(settings, paths, screen, leave, echo, train, adapter)
            await session.start()
            for line in early:
                session.submit(line)
            # OSError: the terminal itself has gone.
            with contextlib.suppress(EOFError, OSError):
                await prompting
        finally:
            leave()
            await asyncio.wait([prompting])
            closed = session is None or await _close(session.close())
    if not closed:
        leave_at_once(0)
    return 0


def _prepare(load: Callable[[], Settings]) -> tuple[Settings, Callable[[Paths], Completer]]:
    """What the chat needs beyond the bare prompt, imported in a thread."""
    import shammah.repl.session  # noqa: F401
    from shammah.repl.commands import COMMANDS
    from shammah.repl.completion import CommandCompleter

    return load(), lambda paths: CommandCompleter(COMMANDS, paths)


def _session(
    settings: Settings,
    paths: Paths,
    screen: Screen,
    leave: Callable[[], None],
    echo: Callable[[str], str] | None,
    train: bool,
    adapter: str | None,
) -> Session:
    from shammah.repl.session import Session

    return Session(settings, paths, screen, leave=leave, echo=echo, train=train, adapter=adapter)


async def _line_by_line(settings: Settings, paths: Paths, train: bool, adapter: str | None) -> int:
    lines: asyncio.Queue[str | None] = asyncio.Queue()
    screen = Screen(interactive=False, coloured=False)
    session = _session(
        settings, paths, screen, lambda: lines.put_nowait(None), None, train, adapter
    )
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        if session.answering:
            session.interrupt()
        else:
            interrupted = True
            lines.put_nowait(None)

    _on_signals(("SIGINT",), interrupt)
    _on_signals(("SIGTERM", "SIGHUP"), lambda: lines.put_nowait(None))
    read_lines(lines.put_nowait)
    await session.start()
    try:
        while True:
            if sys.stdin.isatty():
                screen.write("> ")
            line = await lines.get()
            if line is None:
                break
            session.submit(line)
            await session.idle()
    finally:
        closed = await _close(session.close())
    code = 130 if interrupted else session.exit_code
    if not closed:
        leave_at_once(code)
    return code


def _on_signals(names: Sequence[str], call: Callable[[], None]) -> None:
    """Call this on the event loop instead of ending the process, where the platform can."""
    loop = asyncio.get_running_loop()
    for name in names:
        with contextlib.suppress(NotImplementedError, AttributeError):
            loop.add_signal_handler(getattr(signal, name), call)


async def _close(closing: Awaitable[bool]) -> bool:
    """Close, and say so where it takes longer than a blink."""
    task = asyncio.ensure_future(closing)
    done, _ = await asyncio.wait([task], timeout=SLOW_CLOSE_SECONDS)
    if not done:
        print("Leaving: what runs behind the chat is being put away ...", file=sys.stderr)
    return await task
