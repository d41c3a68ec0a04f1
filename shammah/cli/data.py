"""`shammah data`: what is in a data set, as the model will be given it. Needs no model."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shammah.cli.context import log_changes, paths_of, settings_of, start_log
from shammah.cli.output import coloured, emit, say, tell
from shammah.datasets import ChatExample, Examples, LazyDataset, open_dataset
from shammah.errors import UsageError
from shammah.messages import Conversation, to_dicts
from shammah.ports.dataset_store import BadRows, OnBad, Row
from shammah.repl.text import counted, harmless, pairs, styled, table

REDRAW_SECONDS = 0.2
STYLES = {"system": "magenta", "user": "cyan", "assistant": "green", "rejected": "red"}


def show(options: Namespace) -> int:
    progress = _Progress()
    dataset = _open(options, "skip" if options.skip_bad else "raise").filter(progress.tick)
    if options.shuffle is not None:
        dataset = dataset.shuffle(options.shuffle)
    dataset = dataset.skip(options.skip).take(options.take)
    examples = _examples(options, dataset)
    items: Examples | LazyDataset = dataset if examples is None else examples
    shown = 0
    for item in items:
        progress.clear()
        shown += 1
        if options.json:
            emit(_record(item))
        else:
            say(("\n" if shown > 1 else "") + _text(item))
    progress.clear()
    if not shown:
        tell("There is no such row.")
    _tell_bad(items.bad_rows)
    return 0


def check(options: Namespace) -> int:
    """Ends with 2 where a row is bad, so that a script notices."""
    progress = _Progress()
    dataset = _open(options, "skip").filter(progress.tick)
    examples = _examples(options, dataset)
    items: Examples | LazyDataset = dataset if examples is None else examples
    good = 0
    lengths: dict[str, _Lengths] = {}
    labels: Counter[str] = Counter()
    for item in items:
        good += 1
        for name, length in _lengths(item).items():
            lengths.setdefault(name, _Lengths()).add(length)
        if isinstance(item, ChatExample) and isinstance(item.metadata.get("label"), str):
            labels[item.metadata["label"]] += 1
    progress.clear()
    bad = items.bad_rows
    if options.json:
        emit(
            {
                "source": options.source,
                "format": None if examples is None else examples.format,
                "rows": good + bad.count,
                "bad": bad.count,
                "bad_rows": bad.first,
                "characters": {name: each.summary() for name, each in lengths.items()},
                "labels": labels,
            }
        )
    else:
        _say_check(None if examples is None else examples.format, good, lengths, labels)
        _tell_bad(bad)
    return 2 if bad.count else 0


@dataclass(slots=True)
class _Lengths:
    """How often each length came: exact figures whatever the number of rows."""

    times: Counter[int] = field(default_factory=Counter)

    def add(self, length: int) -> None:
        self.times[length] += 1

    def summary(self) -> dict[str, float]:
        lengths = sorted(self.times)
        count = self.times.total()
        mean = sum(length * times for length, times in self.times.items()) / count
        return {
            "least": lengths[0],
            "median": self._quantile(lengths, 0.5 * count),
            "mean": round(mean, 1),
            "p95": self._quantile(lengths, 0.95 * count),
            "most": lengths[-1],
            "total": round(mean * count),
        }

    def _quantile(self, lengths: Sequence[int], wanted: float) -> int:
        """The shortest length that so many rows do not exceed."""
        seen = 0
        for length in lengths:
            seen += self.times[length]
            if seen >= wanted:
                return length
        return lengths[-1]


class _Progress:
    """How many rows were read, on one line of stderr where that is a terminal."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._rows = 0
        self._due = time.monotonic() + REDRAW_SECONDS
        self._drawn = False

    def tick(self, row: Row) -> bool:
        """Count a row; true, so that it can stand as a filter that keeps all."""
        self._rows += 1
        if self._live and not self._rows & 63 and time.monotonic() > self._due:
            sys.stderr.write(f"\r\x1b[K{self._rows:,} rows read")
            sys.stderr.flush()
            self._drawn, self._due = True, time.monotonic() + REDRAW_SECONDS
        return True

    def clear(self) -> None:
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._drawn = False


def _open(options: Namespace, on_bad: OnBad) -> LazyDataset:
    paths = paths_of(options)
    start_log(paths, settings_of(paths, log_changes(options)))
    return open_dataset(options.source, split=options.split, on_bad=on_bad)


def _examples(options: Namespace, dataset: LazyDataset) -> Examples | None:
    """The examples; None where no format is named and the columns do not tell one."""
    chosen = dict(_option(text) for text in options.option)
    try:
        return dataset.examples(options.format, **chosen)
    except UsageError as error:
        if options.format is not None or chosen:
            raise
        tell(f"{error.message} The rows are taken as they are.\n{error.hint}\n")
        return None


def _option(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"--option takes KEY=VALUE, not {text!r}.")
    return key, value


def _record(item: ChatExample | Row) -> dict[str, Any]:
    if isinstance(item, Row):
        return {"place": item.place, "row": _plain(item)}
    return {
        "place": item.place,
        "messages": to_dicts(item.messages),
        "rejected": None if item.rejected is None else to_dicts(item.rejected),
        "metadata": _plain(item.metadata),
    }


def _plain(values: Mapping[str, Any]) -> Any:
    """The values as JSON has them: dates, bytes and the like of other formats as text."""
    return json.loads(json.dumps(values, ensure_ascii=False, default=str))


def _text(item: ChatExample | Row) -> str:
    colours = coloured()
    lines = [styled(harmless(item.place), "bold", coloured=colours)]
    if isinstance(item, Row):
        return "\n".join([*lines, pairs(_cells(item), coloured=colours)])
    lines += _said(item.messages, colours)
    if item.rejected is not None:
        lines += _said(item.rejected[-1:], colours, "rejected")
    if item.metadata:
        lines.append(pairs(_cells(item.metadata), coloured=colours))
    return "\n".join(lines)


def _said(messages: Conversation, colours: bool, role: str | None = None) -> Iterator[str]:
    for message in messages:
        name = role or message.role
        yield styled(f"[{name}]", STYLES.get(name, "yellow"), coloured=colours)
        yield harmless(message.text)


def _cells(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (harmless(name), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in _plain(values).items()
    ]


def _lengths(item: ChatExample | Row) -> dict[str, int]:
    """Characters of each part."""
    if isinstance(item, Row):
        return {"row": len(json.dumps(item, ensure_ascii=False, default=str))}
    parts = {"prompt": sum(len(message.text) for message in item.prompt)}
    if item.answer is not None:
        parts["answer"] = len(item.answer.text)
    if item.rejected_answer is not None:
        parts["rejected"] = len(item.rejected_answer.text)
    return parts


def _say_check(
    format: str | None, good: int, lengths: Mapping[str, _Lengths], labels: Mapping[str, int]
) -> None:
    facts: list[tuple[str, object]] = [("format", format or "none"), ("good rows", f"{good:,}")]
    facts += [(f"label {name}", f"{count:,}") for name, count in sorted(labels.items())]
    say(pairs(facts, coloured=coloured()))
    if not lengths:
        return
    rows = {name: each.summary() for name, each in lengths.items()}
    heads = ["characters", *next(iter(rows.values()))]
    lines = [[name, *(f"{value:,}" for value in row.values())] for name, row in rows.items()]
    say("\n" + table(heads, lines, coloured=coloured(), right=range(1, len(heads))))


def _tell_bad(bad: BadRows) -> None:
    if not bad.count:
        return
    tell(f"{counted(bad.count, 'bad row')}:")
    for row in bad.first:
        tell(f"  {row.place}: {row.reason}")
    if bad.count > len(bad.first):
        tell(f"  and {bad.count - len(bad.first):,} more")
