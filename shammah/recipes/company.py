"""The processes of one run: the first one leads, and the others do what it does.

`accelerate launch` and `torchrun` start them, each with the same command. They have to agree on
what the run is called, whether it may begin, and which stages are finished, before any of them
starts: one that waits for another that is elsewhere waits for ever. The others keep their own
journal in a folder that goes away; what lasts is written by the one that leads.
"""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shammah.errors import ShammahError
from shammah.recipes.manifest import Manifest
from shammah.recipes.place import RunPlace
from shammah.recipes.workflows.context import Context, Interrupted
from shammah.recipes.workflows.journal import JOURNAL

if TYPE_CHECKING:
    from shammah.paths import Paths
    from shammah.training.processes import Processes


class LedError(ShammahError):
    """What the process that leads has raised, and tells of."""


@contextmanager
def gathered(begin: Callable[[], RunPlace], paths: Paths) -> Iterator[tuple[RunPlace, Path]]:
    """Where a run lies, and where this process keeps its journal.

    Args:
        begin: finds or makes the run's folder; called in the process that leads alone.

    Raises:
        ShammahError: what `begin` raises; in the others it is the cause of a `LedError`.
    """
    from shammah.training.processes import launched

    if not launched():
        place = begin()
        yield place, place.folder
        return
    from shammah.training.processes import Processes

    processes = Processes()
    place, journal = _led(begin, processes) if processes.leads else _following(paths, processes)
    if processes.leads:
        yield place, place.folder
        return
    with tempfile.TemporaryDirectory() as folder:
        if journal:
            (Path(folder) / JOURNAL).write_bytes(journal)
        yield place, Path(folder)


async def led(context: Context, work: Callable[[], Awaitable[None]]) -> None:
    """Do something in the process that leads alone; the others wait for its end.

    Raises:
        Exception: what `work` raises; in the others a `LedError`.
    """
    from shammah.training.processes import Processes, launched

    if not launched():
        await work()
        return
    processes = Processes()
    if processes.leads:
        try:
            await work()
        except BaseException as error:
            processes.gathered((isinstance(error, Interrupted), str(error)))
            raise
        processes.gathered(None)
        return
    told: list[Any] = processes.gathered(None)
    if told[0] is not None:
        interrupted, message = told[0]
        if interrupted:
            context.interrupt()
        raise LedError(message)


def _led(begin: Callable[[], RunPlace], processes: Processes) -> tuple[RunPlace, bytes]:
    try:
        place = begin()
        file = place.folder / JOURNAL
        journal = file.read_bytes() if file.exists() else b""
    except ShammahError as error:
        processes.gathered((None, b"", error))
        raise
    processes.gathered((place.folder, journal, None))
    return place, journal


def _following(paths: Paths, processes: Processes) -> tuple[RunPlace, bytes]:
    told: list[Any] = processes.gathered(None)
    folder, journal, error = told[0]
    if error is not None:
        raise LedError(error.message, hint=error.hint) from error
    return RunPlace(paths, folder, Manifest(None), leads=False), journal
