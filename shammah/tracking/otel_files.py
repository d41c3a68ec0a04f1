"""OpenTelemetry's traces and metrics as files: OTLP in JSON, one batch a line, as its collector's
`otlpjsonfile` receiver reads. For where nothing is to leave the machine.

The encoding: https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding
"""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

IDENTITIES = ("traceId", "spanId", "parentSpanId")


class FileSpanExporter(SpanExporter):
    """Appends spans to a file."""

    def __init__(self, path: Path) -> None:
        self._lines = _Lines(path)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        written = self._lines.append(encode_spans(spans))
        return SpanExportResult.SUCCESS if written else SpanExportResult.FAILURE


class FileMetricExporter(MetricExporter):
    """Appends metrics to a file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._lines = _Lines(path)

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        written = self._lines.append(encode_metrics(metrics_data))
        return MetricExportResult.SUCCESS if written else MetricExportResult.FAILURE

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        pass


class _Lines:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def append(self, message: Message) -> bool:
        record = _hexadecimal(MessageToDict(message, use_integers_for_enums=True))
        data = (json.dumps(record, ensure_ascii=False) + "\n").encode()
        try:
            with self._lock:
                file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
                try:
                    os.write(file, data)
                finally:
                    os.close(file)
        except OSError:
            return False
        return True


def _hexadecimal(value: Any) -> Any:
    """The same with identities as OTLP's JSON has them, not as protobuf's (base64)."""
    if isinstance(value, dict):
        return {
            key: base64.b64decode(inner).hex() if key in IDENTITIES else _hexadecimal(inner)
            for key, inner in value.items()
        }
    return [_hexadecimal(inner) for inner in value] if isinstance(value, list) else value
