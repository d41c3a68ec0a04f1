"""Numbers and times as a report says them."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from shammah.tracking.plot import number_text


def count(number: int, noun: str) -> str:
    """`1 lesson`, `2 lessons`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def figure_text(value: float) -> str:
    """A number with four digits or so, and commas between thousands."""
    if 1000 <= abs(value) < 1e9:
        return f"{value:,.0f}"
    return number_text(value)


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def moment(seconds: float) -> str:
    """Seconds since 1970 as date and time of this machine's zone."""
    return f"{datetime.fromtimestamp(seconds, UTC).astimezone():%Y-%m-%d %H:%M}"


def share(value: float) -> str:
    """A part of one in percent."""
    return "–" if math.isnan(value) else f"{100 * value:.1f}%"
