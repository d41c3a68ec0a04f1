"""What the chat sends to OpenTelemetry, where `tracking.loggers` names it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shammah.errors import TrackingError
from shammah.paths import Paths
from shammah.settings import TrackingSettings

if TYPE_CHECKING:
    from shammah.tracking.otel import ChatExport

OTEL = "otel"


def open_export(tracking: TrackingSettings, paths: Paths) -> ChatExport | None:
    """Begin to send answers, ratings and changes of adapters, in figures and names; None where
    that is not wanted. Slow: it imports the client.

    Raises:
        TrackingError: the extra is missing, or the collector cannot be used.
    """
    if OTEL not in tracking.loggers:
        return None
    try:
        from shammah.tracking.otel import ChatExport, Destination

        folder = paths.data / "tracking" / OTEL
        return ChatExport(Destination(tracking.otel_endpoint, tracking.online, folder))
    except ImportError as error:
        raise TrackingError(
            f"{error.name or OTEL} is not installed, so that nothing is sent to OpenTelemetry.",
            hint="Run `pip install shammah[otel]`.",
        ) from error
