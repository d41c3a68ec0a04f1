"""A table of the run in the terminal, with a line of blocks for the way each metric went.

Where the output is no terminal, a line every few seconds instead. Goes to stderr.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

from shammah.ports.metrics_store import Number
from shammah.tracking.loggers.base import Outcome, RunLogger
from shammah.tracking.plot import number_text, spark

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

KEPT = 400
"""Values of each metric that the line is drawn from."""
WIDTH = 24
LINE_SECONDS = 5.0


class LiveLogger(RunLogger):
    """Shows a run while it is trained.

    Args:
        title: what stands above the table.
        console: where it goes.
        blocks: whether block characters can be shown.
    """

    tool = "rich"

    def __init__(self, title: str, console: Console, *, blocks: bool) -> None:
        from rich.live import Live

        self._title = title
        self._console = console
        self._blocks = blocks
        self._step = 0
        self._values: dict[str, deque[float]] = {}
        self._said = 0.0
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(self._table(), console=console, refresh_per_second=4, transient=False)
            self._live.start()

    def log_metrics(self, metrics: Mapping[str, Number], step: int) -> None:
        self._step = step
        for name, value in metrics.items():
            self._values.setdefault(name, deque(maxlen=KEPT)).append(float(value))
        if self._live is not None:
            self._live.update(self._table())
        elif time.monotonic() - self._said >= LINE_SECONDS:
            self._line()

    def close(self, outcome: Outcome = "done") -> None:
        if self._live is not None:
            self._live.update(self._table())
            self._live.stop()
            self._live = None
        elif self._values:
            self._line()

    def _line(self) -> None:
        self._said = time.monotonic()
        values = "  ".join(f"{name} {number_text(v[-1])}" for name, v in self._values.items())
        self._console.print(
            f"step {self._step}  {values}", markup=False, highlight=False, soft_wrap=True
        )

    def _table(self) -> Table:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        made = Table(
            title=f"{self._title}, step {self._step}",
            box=box.SIMPLE if self._blocks else box.ASCII,
            title_justify="left",
        )
        for name in ("metric", "now", "least", "greatest"):
            made.add_column(name, justify="left" if name == "metric" else "right", no_wrap=True)
        wide = self._console.width >= 72
        if wide:
            made.add_column("way", no_wrap=True)
        for name, values in self._values.items():
            cells = [name, *(number_text(v) for v in (values[-1], min(values), max(values)))]
            if wide:
                cells.append(spark(list(values), WIDTH, blocks=self._blocks))
            made.add_row(*map(Text, cells))
        return made
