"""How far an evaluation is, on stderr: a line that changes on a terminal, else one now and then."""

from __future__ import annotations

import math
import sys
import time

from shammah.cli.output import tell
from shammah.evaluation.runner import Progress
from shammah.repl.text import counted, duration

REDRAW_SECONDS = 0.2
LINE_SECONDS = 30.0


class ProgressLine:
    """Shows the progress of one run.

    Args:
        label: what is evaluated.
        total: how many examples at most; None where that is not known.
    """

    def __init__(self, label: str, total: int | None) -> None:
        self._label = label
        self._total = total
        self._live = sys.stderr.isatty()
        self._every = REDRAW_SECONDS if self._live else LINE_SECONDS
        self._due = time.monotonic() + self._every
        self._drawn = False

    def show(self, progress: Progress) -> None:
        """Say how far it is, if it is time to."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + self._every
        text = self._text(progress)
        if self._live:
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
            self._drawn = True
        else:
            tell(text)

    def clear(self) -> None:
        """Take the line away."""
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._drawn = False

    def _text(self, progress: Progress) -> str:
        rate = progress.per_second
        of = f" of {self._total:,}" if self._total is not None else ""
        parts = [f"{self._label}: {progress.done:,}{of}", f"{rate:.1f} a second"]
        parts += [
            f"{name} {mean:.3f}"
            for name, mean in progress.results.means().items()
            if not math.isnan(mean)
        ][:3]
        if progress.results.failed:
            parts.append(counted(progress.results.failed, "error"))
        if self._total is not None and rate:
            parts.append(f"{duration(max(0, self._total - progress.done) / rate)} left")
        return " · ".join(parts)
