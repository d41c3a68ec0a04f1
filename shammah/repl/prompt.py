"""The input line: keys, history, completion and suggestions, on prompt_toolkit.

One application runs as long as the chat: a submitted line is handed on and the prompt is free
again, so that typing ahead never meets a terminal that echoes by itself. Knows nothing of what a
line means.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, Completer, get_common_complete_suffix
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import ANSI, AnyFormattedText
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.styles import Style

from shammah.repl.history import PrivateHistory
from shammah.repl.screen import Screen
from shammah.repl.text import harmless, true_colour

MARK = "> "
CONTINUATION = "  "

STYLE = Style.from_dict(
    {
        "prompt": "bold",
        "prompt-continuation": "",
        "bottom-toolbar": "noreverse",
        "bottom-toolbar.text": "fg:ansigray",
        "auto-suggestion": "fg:ansibrightblack",
    }
)


def make_prompt(
    screen: Screen,
    *,
    history: Path,
    completer: Completer,
    toolbar: Callable[[], str],
    on_line: Callable[[str], None],
    on_interrupt: Callable[[bool], bool],
) -> PromptSession[str]:
    """The chat's prompt; run it with `prompt_async()`, which ends with EOFError on Ctrl-D.

    Args:
        on_line: called with each submitted line (not with empty ones).
        on_interrupt: called on Ctrl-C; true where the input was empty. Says whether there was
            something to stop; where not, the input is cleared.
    """
    session: PromptSession[str] = PromptSession(
        message=lambda: prompt_message(screen),
        multiline=True,
        prompt_continuation=CONTINUATION,
        history=PrivateHistory(history),
        auto_suggest=AutoSuggestFromHistory(),
        completer=completer,
        # The menu is only for commands: it would take eight lines from every other input.
        complete_while_typing=Condition(lambda: _is_command_word(session.default_buffer)),
        reserve_space_for_menu=6,
        bottom_toolbar=toolbar,
        key_bindings=chat_keys(completer, on_interrupt),
        style=STYLE,
        color_depth=ColorDepth.DEPTH_24_BIT if true_colour() else None,
        erase_when_done=True,
    )
    session.app.min_redraw_interval = 0.02

    def accept(buffer: Buffer) -> bool:
        if buffer.text.strip():
            on_line(buffer.text)
        return False

    session.default_buffer.accept_handler = accept
    return session


def prompt_message(screen: Screen) -> AnyFormattedText:
    """The live text of an answer on its way, and the mark before the input."""
    text = screen.prompt_text(MARK)
    if text == MARK:
        return [("class:prompt", MARK)]
    return ANSI(text)


def echo(line: str) -> str:
    """A submitted line as it stands in the scrollback."""
    return MARK + harmless(line).replace("\n", "\n" + CONTINUATION)


def chat_keys(completer: Completer, on_interrupt: Callable[[bool], bool]) -> KeyBindings:
    """Enter submits, Alt-Enter starts a new line, Tab completes, Ctrl-C stops or clears, Ctrl-D
    leaves."""
    keys = KeyBindings()

    @keys.add("enter", filter=~Condition(_searching))
    def _submit(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("tab", filter=~Condition(_searching))
    def _complete(event: KeyPressEvent) -> None:
        complete(event.current_buffer, completer)

    @keys.add("c-c")
    @keys.add("<sigint>")
    def _interrupt(event: KeyPressEvent) -> None:
        buffer = event.app.current_buffer
        if not on_interrupt(not buffer.text):
            buffer.reset()

    @keys.add("c-d", filter=Condition(_empty))
    def _leave(event: KeyPressEvent) -> None:
        event.app.exit(exception=EOFError)

    return keys


def complete(buffer: Buffer, completer: Completer) -> None:
    """Tab, as shells have it: finish the only word there is, else what all words begin with, else
    go through the menu.

    prompt_toolkit's own Tab does nothing while the menu is still being looked for.
    """
    if buffer.complete_state is not None and buffer.complete_state.current_completion is not None:
        buffer.complete_next()
        return
    event = CompleteEvent(completion_requested=True)
    offered = list(completer.get_completions(buffer.document, event))
    if len(offered) == 1:
        buffer.apply_completion(offered[0])
        if not offered[0].text.endswith(("/", "=")) and not buffer.text.endswith(" "):
            buffer.insert_text(" ")
    elif common := get_common_complete_suffix(buffer.document, offered):
        buffer.insert_text(common)
    elif offered:
        if buffer.complete_state is not None:
            buffer.complete_next()
        else:
            buffer.start_completion(select_first=True)


def _searching() -> bool:
    from prompt_toolkit.application import get_app

    return get_app().layout.is_searching


def _empty() -> bool:
    from prompt_toolkit.application import get_app

    return not get_app().current_buffer.text


def _is_command_word(buffer: Buffer) -> bool:
    return buffer.text.startswith("/") and "\n" not in buffer.text
