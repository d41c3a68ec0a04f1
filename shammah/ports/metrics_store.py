"""Numbers by name and step, while something runs and afterwards.

Knows runs, steps and numbers; not what they measure.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Protocol

from shammah.errors import MetricsError

Number = int | float
RESERVED = ("run", "step", "time")
"""What a record says beside its metrics; no metric has such a name."""


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """One value of one metric. `time` is in seconds since 1970 (UTC)."""

    run: str
    step: int
    time: float
    value: Number


class MetricsStore(Protocol):
    """Something that keeps metrics of runs.

    Values are ints and floats. NaN and the infinities are values like others: what came out of a
    step that went wrong is kept as it came out.
    """

    @property
    def name(self) -> str:
        """Where the store is, in a line."""
        ...

    def record(
        self, metrics: Mapping[str, Number], *, step: int, run: str = "", time: float | None = None
    ) -> None:
        """Keep what was measured at a step. Does not wait: it outlives this process at once, and a
        power failure after `flush`.

        Args:
            run: which run it belongs to.
            time: when it was measured; None is now.

        Raises:
            MetricsError: a name is reserved or a value is no number (nothing was kept), or it
                cannot be written.
        """
        ...

    async def flush(self) -> None:
        """Return when all that was recorded so far outlives a power failure.

        Raises:
            MetricsError: it cannot be written.
        """
        ...

    def history(self, metric: str, *, run: str | None = None) -> AsyncIterator[MetricPoint]:
        """The values of a metric in the order they were recorded; of all runs without `run`.

        A step comes again where a run went on from a checkpoint; the last one counts.

        Raises:
            MetricsError: while it is read.
        """
        ...

    async def runs(self) -> tuple[str, ...]:
        """The runs that something was recorded of, in the order they began.

        Raises:
            MetricsError: they cannot be read.
        """
        ...


def check_metrics(
    metrics: Mapping[str, object], step: object, *, backend: str
) -> dict[str, Number]:
    """The metrics as Python's own numbers; numpy's are numbers too.

    Raises:
        MetricsError: the step is negative, a name is empty or reserved, or a value is no number.
    """
    if isinstance(step, bool) or not isinstance(step, Integral) or step < 0:
        raise MetricsError(f"{step!r} is no step.", backend=backend, hint="Steps are 0, 1, 2, ...")
    checked: dict[str, Number] = {}
    for name, value in metrics.items():
        if not name or name in RESERVED:
            raise MetricsError(
                f"a metric cannot be called {name!r}.",
                backend=backend,
                hint=f"{', '.join(RESERVED)} are said of every record.",
            )
        if isinstance(value, bool) or not isinstance(value, Real):
            raise MetricsError(
                f"{name} is {value!r}, which is no number.",
                backend=backend,
                hint="Of a tensor record its `.item()`.",
            )
        checked[name] = int(value) if isinstance(value, Integral) else float(value)
    return checked
