"""Telemetry as OpenTelemetry's spans and metrics (extra `otel`).

Stages, steps, checkpoints and answers become spans, figures become metrics, and whatever else
happens an event of the span it happened in. Where they go is settled by `Destination`: files in the
data folder, a collector on this machine, or one elsewhere, which has to be allowed.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, Status, StatusCode

from shammah.errors import TrackingError
from shammah.files import private_folder
from shammah.tracking import telemetry
from shammah.version import VERSION

__all__ = ["ChatExport", "Destination", "SpanMap"]

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
"""The variable that names a collector for every program; only read where sending is allowed."""
METRICS_SECONDS = 10
CONNECT_SECONDS = 3.0
CLOSE_SECONDS = 5.0
CHAT = (
    "generation.complete", "feedback.recorded",
    "adapter.published", "adapter.activated", "adapter.rejected",
)  # fmt: skip
"""What the chat's process tells; of training its worker does."""
TIMED = ("generation.complete", "training.checkpoint")
"""Events that are told when something that took `seconds` is over."""
COUNTED = ("tokens", "prompt_tokens", "reused_tokens")


@dataclass(frozen=True, slots=True)
class Destination:
    """Where spans and metrics go.

    Args:
        endpoint: a collector that speaks OTLP over HTTP, without `/v1/traces`; empty is the one of
            `OTEL_EXPORTER_OTLP_ENDPOINT` where `online`, else files.
        online: whether it may be on another machine.
        folder: for files.
    """

    endpoint: str
    online: bool
    folder: Path

    @property
    def address(self) -> str:
        """The collector's address, empty for files."""
        found = self.endpoint or (os.environ.get(ENDPOINT, "") if self.online else "")
        return found.strip().rstrip("/")

    @property
    def shown(self) -> str:
        return self.address or str(self.folder)

    def open(self, about: Mapping[str, str]) -> tuple[TracerProvider, MeterProvider]:
        """What makes spans and metrics and sends them.

        Args:
            about: attributes of everything that is sent.

        Raises:
            TrackingError: the address is none, is elsewhere without leave, or does not answer.
            ImportError: the exporter is not installed.
        """
        spans, figures = self._exporters()
        resource = Resource.create({"service.name": "shammah", "service.version": VERSION, **about})
        tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
        tracers.add_span_processor(BatchSpanProcessor(spans))
        reader = PeriodicExportingMetricReader(figures, METRICS_SECONDS * 1000)
        return tracers, MeterProvider([reader], resource=resource, shutdown_on_exit=False)

    def _exporters(self) -> tuple[SpanExporter, MetricExporter]:
        if not self.address:
            from shammah.tracking.otel_files import FileMetricExporter, FileSpanExporter

            folder = private_folder(self.folder)
            traces = FileSpanExporter(folder / "traces.jsonl")
            return traces, FileMetricExporter(folder / "metrics.jsonl")
        local = self._reach()
        import requests
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        def session() -> requests.Session:
            made = requests.Session()
            made.trust_env = not local  # no proxy stands between this machine and itself
            return made

        return (
            OTLPSpanExporter(f"{self.address}/v1/traces", session=session()),
            OTLPMetricExporter(f"{self.address}/v1/metrics", session=session()),
        )

    def _reach(self) -> bool:
        """Whether the collector is on this machine.

        Raises:
            TrackingError: see `open`.
        """
        try:
            parts = urlsplit(self.address)
            host, port = parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme]
            if not host:
                raise ValueError
        except (ValueError, KeyError) as error:
            raise TrackingError(
                f"{self.address} is no address of a collector.",
                hint="It speaks OTLP over HTTP, such as http://localhost:4318.",
            ) from error
        local = host in ("localhost", "127.0.0.1", "::1")
        if not local and not self.online:
            raise TrackingError(
                f"{host} is another machine, and tracking.online is false.",
                hint="Set tracking.online to true to send there.",
            )
        try:
            socket.create_connection((host, port), CONNECT_SECONDS).close()
        except OSError as error:
            raise TrackingError(f"{self.address} does not answer: {error}.") from error
        return local


class SpanMap:
    """A telemetry handler: events of this process to spans and metrics.

    Args:
        tracers, meters: of `Destination.open`, or a caller's own.
        root: what the span is called that holds all others; empty has none, so that each answer is
            a trace of its own.
        attributes: of that span.
    """

    def __init__(
        self,
        tracers: trace.TracerProvider,
        meters: metrics.MeterProvider,
        *,
        root: str = "",
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        self._tracer = tracers.get_tracer("shammah", VERSION)
        self._meter = meters.get_meter("shammah", VERSION)
        self._lock = threading.Lock()
        self._open: list[tuple[str, Span]] = []
        self._gauges: dict[str, Any] = {}
        self._counters: dict[str, Any] = {}
        self._histograms: dict[str, Any] = {}
        self._stepped = time.time_ns()
        self.root: Span | None = None
        if root:
            self.root = self._tracer.start_span(root, attributes=_attributes(attributes or {}))

    def told(
        self, name: str, measured: Mapping[str, int | float], about: Mapping[str, Any]
    ) -> None:
        """Map one event; this is the handler."""
        kind, _, word = name.partition(".")
        now = time.time_ns()
        with self._lock:
            if kind in ("workflow", "stage"):
                self._bounds(kind, word, now, measured, about)
            elif name == "training.step":
                self._span("step", self._stepped, now, measured, about)
                self._stepped = now
            elif name in TIMED and "seconds" in measured:
                began = now - int(measured["seconds"] * 1e9)
                self._span(name, began, now, measured, about)
            elif name != "training.progress":
                if name == "training.start":
                    self._stepped = now
                self._event(name, now, {**measured, **about})
        if kind not in ("workflow", "stage", "training"):
            self._measure(name, measured, about)

    def gauge(self, name: str, value: int | float, attributes: Mapping[str, Any]) -> None:
        """A figure as it is now."""
        if name not in self._gauges:
            self._gauges[name] = self._meter.create_gauge(f"shammah.{name}")
        self._gauges[name].set(value, _attributes(attributes))

    def event(self, name: str, attributes: Mapping[str, Any]) -> None:
        """Something that happened in the span that is open."""
        with self._lock:
            self._event(name, time.time_ns(), attributes)

    def end(self, *, failed: bool = False) -> None:
        """End what is open."""
        with self._lock:
            for _, span in reversed(self._open):
                span.end()
            self._open.clear()
            if self.root is not None:
                if failed:
                    self.root.set_status(Status(StatusCode.ERROR))
                self.root.end()

    def _bounds(
        self,
        kind: str,
        word: str,
        now: int,
        measured: Mapping[str, int | float],
        about: Mapping[str, Any],
    ) -> None:
        title = str(about.get(kind, kind))
        key = f"{kind} {title}"
        if word == "start":
            span = self._tracer.start_span(
                title, self._within(), start_time=now, attributes=_attributes(about)
            )
            self._open.append((key, span))
            return
        # One whose beginning nobody heard of is made at its end.
        places = [place for place, (other, _) in enumerate(self._open) if other == key]
        if places:
            _, span = self._open.pop(places[-1])
        else:
            began = now - int(measured.get("seconds", 0) * 1e9)
            span = self._tracer.start_span(
                title, self._within(), start_time=began, attributes=_attributes(about)
            )
        if word == "exception":
            span.set_status(Status(StatusCode.ERROR, str(about.get("error", ""))))
        span.end(now)

    def _span(
        self,
        name: str,
        began: int,
        ended: int,
        measured: Mapping[str, int | float],
        about: Mapping[str, Any],
    ) -> None:
        attributes = _attributes({**measured, **about})
        span = self._tracer.start_span(
            name, self._within(), start_time=began, attributes=attributes
        )
        span.end(ended)

    def _event(self, name: str, now: int, attributes: Mapping[str, Any]) -> None:
        holder = self._open[-1][1] if self._open else self.root
        if holder is not None:
            holder.add_event(name, _attributes(attributes), now)
        else:
            self._span(name, now, now, {}, attributes)

    def _within(self) -> Any:
        holder = self._open[-1][1] if self._open else self.root
        return trace.set_span_in_context(holder) if holder is not None else None

    def _measure(
        self, name: str, measured: Mapping[str, int | float], about: Mapping[str, Any]
    ) -> None:
        """Count the event by its kind, and what can be added up or spread."""
        kinds = _attributes({k: about[k] for k in ("rating", "reason") if k in about})
        self._count(name, 1, kinds)
        if name == "generation.complete":
            for figure, value in measured.items():
                if figure in COUNTED:
                    self._count(f"generation.{figure}", value, kinds)
                else:
                    self._spread(f"generation.{figure}", value, kinds)

    def _count(self, name: str, value: int | float, attributes: Mapping[str, Any]) -> None:
        if name not in self._counters:
            self._counters[name] = self._meter.create_counter(f"shammah.{name}")
        self._counters[name].add(value, attributes)

    def _spread(self, name: str, value: float, attributes: Mapping[str, Any]) -> None:
        if name not in self._histograms:
            unit = "s" if name.endswith("seconds") else ""
            self._histograms[name] = self._meter.create_histogram(f"shammah.{name}", unit)
        self._histograms[name].record(value, attributes)


class ChatExport:
    """Sends what a chat's process tells until it is closed: answers, ratings, adapters.

    Raises:
        TrackingError: see `Destination.open`.
    """

    def __init__(self, destination: Destination) -> None:
        self._tracers, self._meters = destination.open({})
        self._name = f"otel {id(self)}"
        telemetry.attach_many(self._name, CHAT, SpanMap(self._tracers, self._meters).told)

    def close(self) -> None:
        """Send what is left, in a few seconds at most."""
        telemetry.detach(self._name)
        thread = threading.Thread(target=self._end, name="otel", daemon=True)
        thread.start()
        thread.join(CLOSE_SECONDS)

    def _end(self) -> None:
        self._tracers.shutdown()
        self._meters.shutdown()


def _attributes(values: Mapping[str, Any]) -> dict[str, Any]:
    """What OpenTelemetry takes: numbers, words and lists of words; None is left out."""
    shown: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, str | bool | int | float):
            shown[name] = value
        elif isinstance(value, list | tuple):
            shown[name] = [str(each) for each in value]
        elif value is not None:
            shown[name] = str(value)
    return shown
