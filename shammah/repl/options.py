"""Options of a command that takes some, in the chat as in the shell: words into values.

Knows how values are written, not what they are for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from shammah.errors import UsageError
from shammah.repl.registry import did_you_mean

if TYPE_CHECKING:
    from shammah.adapters.merging import MergeOptions


def options_of(
    words: Sequence[str], valued: Sequence[str], flags: Sequence[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """The words that are no options, and the options by name without dashes; a flag's value is "".

    Args:
        words: what was typed; `--name value` and `--name=value` are the same.
        valued: the options that take a value, with their dashes.
        flags: those that take none.

    Raises:
        UsageError: an option is unknown, lacks its value, or has one too many.
    """
    plain: list[str] = []
    found: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            plain.append(word)
            continue
        name, equals, value = word.partition("=")
        if name in flags and not equals:
            found[name[2:]] = ""
        elif name in valued and (equals or rest):
            found[name[2:]] = value if equals else rest.pop(0)
        elif name in valued:
            raise UsageError(f"{name} takes a value.")
        else:
            known = [*valued, *flags]
            raise UsageError(
                f"There is no option {word}.",
                hint=f"{did_you_mean(name, known)}There are {', '.join(known)}.",
            )
    return plain, found


def whole_number(name: str, text: str | None, least: int = 0) -> int | None:
    """The value of an option that counts; None where it was not given.

    Raises:
        UsageError: it is no whole number, or below `least`.
    """
    if text is None:
        return None
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise UsageError(f"--{name} takes a whole number from {least} on, not {text!r}.")
    return number


def merge_options(given: Mapping[str, str | None]) -> MergeOptions:
    """The options of `adapters merge` from their texts.

    Raises:
        UsageError: a text is no number.
    """
    from shammah.adapters.merging import MergeOptions

    weights, density = given.get("weights"), given.get("density")
    return MergeOptions(
        weights=None
        if weights is None
        else tuple(_number("weights", part) for part in weights.split(",")),
        method=given.get("method"),
        rank=whole_number("rank", given.get("rank"), 1),
        density=None if density is None else _number("density", density),
        name=given.get("name"),
    )


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"--{name} takes numbers, and {text!r} is none.") from error
