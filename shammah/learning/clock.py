"""Seconds of a process's own life: those in which it was stopped by a signal are left out.

A process does not notice that it is stopped; a thread that should wake ten times a second does,
afterwards.
"""

from __future__ import annotations

import threading
import time

TICK_SECONDS = 0.1
GAP_SECONDS = 1.0
"""A longer pause between two ticks is taken for standing still, not for a busy machine."""


class RunningClock:
    """Call it for the seconds that have been lived since it was made."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = time.perf_counter()
        self._lived = 0.0
        threading.Thread(target=self._tick, name="clock", daemon=True).start()

    def __call__(self) -> float:
        with self._lock:
            now = time.perf_counter()
            elapsed = now - self._last
            self._lived += elapsed if elapsed < GAP_SECONDS else TICK_SECONDS
            self._last = now
            return self._lived

    def _tick(self) -> None:
        while True:
            time.sleep(TICK_SECONDS)
            self()
