"""`shammah render`: the tokens that a conversation becomes, and which of them are learned."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shammah.cli.context import log_changes, paths_of, settings_of, start_log
from shammah.cli.output import coloured, emit, say, tell
from shammah.errors import InputError, ShammahError, UsageError
from shammah.messages import Conversation, Tool, from_dicts, tools_from_dicts
from shammah.repl.text import harmless, styled

if TYPE_CHECKING:
    from shammah.renderers.base import RenderedExample, Renderer


@dataclass(frozen=True, slots=True)
class Given:
    """A conversation of the file, and where in it it stands."""

    place: str
    messages: Conversation
    tools: tuple[Tool, ...]


def run(options: Namespace) -> int:
    """Render each conversation of the file."""
    from shammah.models.find import find_model
    from shammah.models.load import load_tokenizer
    from shammah.renderers.base import TrainOnWhat
    from shammah.renderers.registry import AUTO, renderer_for

    try:
        train_on = TrainOnWhat(options.train_on)
    except ValueError as error:
        known = ", ".join(what.value for what in TrainOnWhat)
        raise UsageError(
            f"--train-on does not know {options.train_on!r}.", hint=f"There are {known}."
        ) from error
    given = list(_read(options.file))
    paths = paths_of(options)
    settings = settings_of(
        paths,
        {
            "model.name": options.tokenizer,
            "model.renderer": options.renderer,
            **log_changes(options),
        },
    )
    start_log(paths, settings)
    # A tokenizer of another model is not spoken to in the way that the settings say of theirs.
    name = options.renderer or (AUTO if options.tokenizer else settings.model.renderer)
    if name == AUTO:
        name = find_model(settings.model.name).renderer or AUTO
    tokenizer, stop_tokens = load_tokenizer(settings.model.name)
    renderer = renderer_for(tokenizer, stop_tokens, name)
    for note in renderer.notes:
        tell(note)
    for number, item in enumerate(given):
        example = _rendered(renderer, item, train_on, generate=options.generate)
        if options.json:
            emit({"tokens": example.tokens, "weights": example.weights})
            continue
        if number:
            say("")
        _show(tokenizer, renderer, example, item.place if len(given) > 1 else "")
    return 0


def _rendered(renderer: Renderer, item: Given, train_on: Any, *, generate: bool) -> RenderedExample:
    from shammah.renderers.base import RenderedExample

    try:
        if generate:
            tokens = renderer.generation_prompt(item.messages, item.tools)
            return RenderedExample(tokens, [0.0] * len(tokens))
        return renderer.supervised(item.messages, train_on, item.tools)
    except InputError as error:
        raise InputError(f"{item.place}: {error.message}", hint=error.hint) from error


def _show(tokenizer: Any, renderer: Renderer, example: RenderedExample, place: str) -> None:
    """Text with the learned tokens marked: in colour, else between » and «."""
    colours = coloured()
    learned = sum(weight > 0 for weight in example.weights)
    head = f"{renderer.name}: {len(example.tokens)} tokens, {learned} learned"
    say(styled(f"{place}  {head}" if place else head, "dim", coloured=colours))
    pairs = zip(example.tokens, example.weights, strict=True)
    shown = []
    for marked, run in groupby(pairs, key=lambda pair: pair[1] > 0):
        text = harmless(tokenizer.decode([token for token, _ in run], skip_special_tokens=False))
        if not marked:
            shown.append(text)
        elif colours:
            shown.append(styled(text, "green", coloured=True))
        else:
            shown.append(f"»{text}«")
    say("".join(shown))


def _read(name: str) -> Iterator[Given]:
    """The conversations of a file: one JSON object, a list of them, or one on each line."""
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{name} cannot be read: {error}") from error
    where = "the input" if name == "-" else name
    for place, value in _values(text, where):
        if not isinstance(value, dict) or not isinstance(value.get("messages"), list):
            raise InputError(
                f"{place} is no object with messages",
                hint='Write {"messages": [{"role": "user", "content": "..."}, ...]}.',
            )
        tools = value.get("tools") or []
        if not isinstance(tools, list):
            raise InputError(f"{place} has `tools` that are no list")
        try:
            yield Given(place, from_dicts(value["messages"]), tools_from_dicts(tools))
        except ShammahError as error:
            raise InputError(f"{place}: {error.message}", hint=error.hint) from error


def _values(text: str, where: str) -> list[tuple[str, Any]]:
    try:
        whole = json.loads(text)
    except ValueError as error:
        lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        found = []
        for number, line in lines:
            try:
                found.append((f"{where}, line {number}", json.loads(line)))
            except ValueError as wrong:
                # A single object over several lines is wrong where the whole is.
                cause = error if number == lines[0][0] else wrong
                raise InputError(f"{where}, line {number}: not JSON: {cause}") from cause
        if not found:
            raise InputError(f"{where} is empty.") from error
        return found
    if isinstance(whole, list):
        return [(f"{where}, entry {number}", value) for number, value in enumerate(whole, 1)]
    return [(where, whole)]
