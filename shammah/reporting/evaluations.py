"""What evaluation folders hold, as parts of a report. Reads files; asks no model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from shammah.errors import InputError, ShammahError, StorageError
from shammah.evaluation.comparison import compare, flips
from shammah.evaluation.report import Spread, repeated, report
from shammah.evaluation.run_folder import (
    SETTINGS,
    RunSettings,
    report_of,
    results_of,
    rows_of,
    settings_of,
)
from shammah.reporting.contents import Evaluated

AGAINST = "against"
"""The folder, inside a run's, of the run that it is compared with."""
REPEATS = "repeat_*"
SHOWN = 6
"""Evaluations of one adapter that are shown, the newest ones."""
FLIPS = 5
"""Examples that are shown of each scorer, lost ones and gained ones."""
BASE = "base"


def is_evaluation(folder: Path) -> bool:
    """Whether a folder holds an evaluation, or repeats of one."""
    return (folder / SETTINGS).is_file() or bool(_repeats(folder))


def evaluated(folder: Path) -> tuple[list[Evaluated], dict[str, Spread]]:
    """The evaluation in a folder, or the repeats of one with their figures taken together.

    Raises:
        InputError: there is none, or it is broken.
    """
    folders = _repeats(folder) or [folder]
    found = [_evaluation(each) for each in folders]
    return found, repeated([each.figures for each in found]) if len(found) > 1 else {}


def evaluations_of(folder: Path, sha256: str) -> list[Evaluated]:
    """The newest evaluations of an adapter among the folders in one, newest first. A broken one is
    told in a line of its own."""
    found: list[Evaluated] = []
    for each in _newest_first(folder):
        try:
            if adapter_of(settings_of(each)).get("sha256") == sha256:
                found.append(_evaluation(each))
        except ShammahError:
            continue
        if len(found) == SHOWN:
            break
    return found


def adapter_of(settings: RunSettings) -> Mapping[str, Any]:
    """The adapter that was asked: its name and checksum; nothing for the base model."""
    return settings.adapter or {}


def settings_in(folder: Path) -> RunSettings:
    """What the evaluation in a folder is; of repeats the first.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    return settings_of((_repeats(folder) or [folder])[0])


def _evaluation(folder: Path) -> Evaluated:
    settings = settings_of(folder)
    known = report_of(folder)
    # Without a report it is still being done, or was killed: its rows are worth something.
    figures = report(results_of(folder)) if known is None else known
    made = Evaluated(
        who=str(adapter_of(settings).get("name", BASE)),
        data=str(settings.data.get("source", "")).rpartition("/")[2],
        folder=folder.name,
        facts=tuple(_facts(settings)),
        figures=figures,
        note="" if known else "It is not done: these are the figures of the rows so far.",
    )
    other = folder / AGAINST
    return _compared(made, folder, other) if is_evaluation(other) else made


def _compared(made: Evaluated, folder: Path, other: Path) -> Evaluated:
    from dataclasses import replace

    before, after = results_of(other), results_of(folder)
    pass_at = made.figures.pass_at
    try:
        found = compare(before, after, pass_at=pass_at)
        flipped = flips(
            before, after, rows_of(other), rows_of(folder), pass_at=pass_at, limit=FLIPS
        )
    except ShammahError as error:
        return replace(made, note=f"{made.note} No comparison: {error.message}".strip())
    name = str(adapter_of(settings_of(other)).get("name", BASE))
    return replace(made, against=name, comparison=found, flips=tuple(flipped))


def _facts(settings: RunSettings) -> Iterator[tuple[str, str]]:
    said: Callable[[Any], str] = str
    yield "model", said(settings.model.get("name", ""))
    for name in ("format", "split", "limit", "shuffle"):
        if settings.data.get(name) is not None:
            yield name, said(settings.data[name])
    yield "scorers", ", ".join(map(said, settings.scorers))
    for name, value in settings.sampling.items():
        if value not in (None, "") and not (isinstance(value, float) and math.isnan(value)):
            yield name.replace("_", " "), said(value)


def _repeats(folder: Path) -> list[Path]:
    if (folder / SETTINGS).is_file():
        return []
    try:
        found = [each for each in folder.glob(REPEATS) if (each / SETTINGS).is_file()]
    except OSError as error:
        raise StorageError(f"{folder} cannot be read: {error.strerror}.") from error
    return sorted(found, key=lambda each: (len(each.name), each.name))


def _newest_first(folder: Path) -> list[Path]:
    try:
        return sorted((each for each in folder.iterdir() if each.is_dir()), reverse=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}.") from error
