"""What a slash command is, what it is given, and how a line becomes a call.

The commands themselves are listed in `commands`; `/help`, completion, the documentation and the
tests read the same list.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shammah.errors import UsageError
from shammah.paths import Paths
from shammah.repl.screen import Screen
from shammah.repl.text import styled, wrapped

if TYPE_CHECKING:
    from shammah.assistant import Assistant
    from shammah.assistant.answers import AnswerHandle

FILES = "\0files"
"""A completion that stands for the names of files."""


@dataclass(frozen=True, slots=True)
class Chat:
    """What a command can reach."""

    assistant: Assistant
    screen: Screen
    paths: Paths
    answer: Callable[[AnswerHandle], Awaitable[None]]
    """Show an answer as it streams."""
    edit: Callable[[str], Awaitable[str | None]]
    """Let the user change a text; None where they gave up."""
    leave: Callable[[], None]
    """End the chat."""

    def say(self, text: str) -> None:
        """Show lines to the user."""
        self.screen.print(wrapped(text) if self.screen.interactive else text)

    def styled(self, text: str, style: str) -> str:
        return styled(text, style, coloured=self.screen.coloured)


Handler = Callable[[Chat, str], Awaitable[None]]
Complete = Callable[[Sequence[str], Paths], Iterable[str]]


def nothing(words: Sequence[str], paths: Paths) -> Iterable[str]:
    """For commands whose arguments cannot be guessed."""
    return ()


@dataclass(frozen=True, slots=True)
class Command:
    """One slash command.

    `arguments` and `summary` make its line in `/help`; `detail` is shown by `/help NAME`. `run` is
    given the rest of the line. `complete` is given the words before the one being typed. A
    command that is `in_turn` waits for the answers asked for before it; the others run at once,
    also while an answer streams.
    """

    name: str
    arguments: str
    summary: str
    detail: str
    run: Handler
    complete: Complete = nothing
    in_turn: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def usage(self) -> str:
        return f"{self.name} {self.arguments}".rstrip()


def find(commands: Mapping[str, Command], name: str) -> Command:
    """The command of that name or alias.

    Raises:
        UsageError: there is none; the nearest is suggested.
    """
    for command in commands.values():
        if name == command.name or name in command.aliases:
            return command
    known = [*commands, *(alias for c in commands.values() for alias in c.aliases)]
    raise UsageError(
        f"There is no command {name}.",
        hint=f"{did_you_mean(name, known)}To send a line that begins with a slash, put a blank "
        "before it.",
    )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`Did you mean X? `, or nothing where nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"Did you mean {near[0]}? " if near else ""


def words_of(argument: str) -> list[str]:
    """An argument as words; quotes hold words together.

    Raises:
        UsageError: a quote is not closed.
    """
    try:
        return shlex.split(argument)
    except ValueError as error:
        raise UsageError(f"Cannot read {argument!r}: {error}.") from error


def choose(command: str, argument: str, known: Sequence[str], default: str) -> tuple[str, str]:
    """The subcommand an argument begins with, and the rest of it.

    Raises:
        UsageError: it begins with none of them; the nearest is suggested.
    """
    word, _, rest = argument.partition(" ")
    if not word:
        return default, ""
    if word in known:
        return word, rest.strip()
    raise UsageError(
        f"{command} has no {word!r}.",
        hint=f"{did_you_mean(word, known)}It takes {', '.join(known)}.",
    )


def number_of(text: str, what: str) -> int:
    """A positive whole number.

    Raises:
        UsageError: it is none.
    """
    try:
        number = int(text.lstrip("#"))
    except ValueError:
        number = 0
    if number < 1:
        raise UsageError(
            f"{what} takes a number, not {text!r}." if text else f"{what} what number?"
        )
    return number
