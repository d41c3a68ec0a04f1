"""The formatters by name, and the one that fits a row's columns."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from shammah.datasets.formatters import (
    chat,
    feedback,
    fever,
    gsm8k,
    preference,
    prompt,
    prompt_completion,
    scifact,
)
from shammah.datasets.formatters.base import Formatter
from shammah.datasets.formatters.own import own_formatter
from shammah.errors import UsageError
from shammah.ports.dataset_store import Row


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of rows: what formats them, and what their columns look like."""

    make: Callable[..., Formatter]
    matches: Callable[[Row], bool]
    columns: str


FORMATS: dict[str, Format] = {
    "scifact": Format(scifact.SciFact, scifact.matches, "claim, evidence, cited_doc_ids"),
    "fever": Format(fever.Fever, fever.matches, "claim, label, evidence"),
    "gsm8k": Format(gsm8k.Gsm8k, gsm8k.matches, "question, answer"),
    "prompt_completion": Format(
        prompt_completion.PromptCompletion, prompt_completion.matches, "prompt, completion"
    ),
    "prompt": Format(prompt.Prompt, prompt.matches, "prompt"),
    "feedback": Format(feedback.Feedback, feedback.matches, "query, response, rating, correction"),
    # Feedback on a later turn has the conversation before it.
    "chat": Format(
        chat.Chat, lambda row: chat.matches(row) and not feedback.matches(row), "messages"
    ),
    "preference": Format(preference.Preference, preference.matches, "chosen, rejected"),
}


def formatter(name: str, options: Mapping[str, str] | None = None) -> Formatter:
    """The formatter of a name, or the user's own from `module:function` or `file.py:function`.

    Raises:
        UsageError: there is no such formatter, function or option.
    """
    options = options or {}
    if ":" in name:
        return own_formatter(name, options)
    format = FORMATS.get(name.replace("-", "_").replace("/", "_"))
    if format is None:
        near = difflib.get_close_matches(name, FORMATS, n=1, cutoff=0.5)
        raise UsageError(
            f"There is no format {name!r}.",
            hint=(f"Did you mean {near[0]}? " if near else "")
            + f"Formats: {', '.join(FORMATS)}, or module:function.",
        )
    known = options_of(format)
    for option in options:
        if option not in known:
            raise UsageError(
                f"The format {name} has no option {option!r}.",
                hint=f"It has {', '.join(known) or 'none'}.",
            )
    return format.make(**options)


def options_of(format: Format) -> tuple[str, ...]:
    """The names of a formatter's options."""
    made: Any = format.make
    if not dataclasses.is_dataclass(made):
        return ()
    return tuple(field.name for field in dataclasses.fields(made) if field.init)


def detect(row: Row) -> str:
    """The name of the one format that a row's columns fit.

    Raises:
        UsageError: they fit none, or several.
    """
    found = [name for name, format in FORMATS.items() if format.matches(row)]
    if len(found) == 1:
        return found[0]
    columns = ", ".join(row) or "none"
    if found:
        raise UsageError(
            f"The columns ({columns}) fit several formats: {', '.join(found)}.",
            hint="Say which: format=, --format.",
        )
    known = "; ".join(f"{name} ({format.columns})" for name, format in FORMATS.items())
    raise UsageError(
        f"The columns ({columns}) fit no known format.",
        hint=f"Formats: {known}; or your own: --format module:function.",
    )
