"""What reaches OpenTelemetry: the SDK's own exporters in memory, files, and a collector."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from shammah.assistant import Assistant
from shammah.errors import TrackingError
from shammah.paths import Paths
from shammah.settings import Settings
from shammah.tracking import telemetry
from shammah.tracking.loggers.base import Artifact, Outcome, RunIdentity
from shammah.tracking.loggers.opening import open_loggers
from shammah.tracking.otel import CHAT, Destination, SpanMap


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def run(tmp_path: Path) -> RunIdentity:
    folder = tmp_path / "jobs" / "3"
    folder.mkdir(parents=True)
    return RunIdentity("job-3", "key-3", folder, tmp_path, project="tests", tags=("rust",))


class Collector:
    """A server that speaks OTLP over HTTP, and remembers what it was sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.metrics: list[Any] = []
        self.resources: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.take(self.path, body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, path: str, body: bytes) -> None:
        if path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                about = resource.resource.attributes
                self.resources.append({each.key: each.value.string_value for each in about})
                self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        else:
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                self.metrics += [one for scope in resource.scope_metrics for one in scope.metrics]


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.server.shutdown()
    made.server.server_close()


def write(run: RunIdentity, outcome: Outcome = "done") -> tuple[dict[str, str], list[str]]:
    """A run as a worker has it."""
    told: list[str] = []
    loggers = open_loggers(["otel"], run, tell=told.append)
    loggers.log_hparams({"lora": {"rank": 16}})
    loggers.sync()
    urls = loggers.urls
    with telemetry.span("stage", "train"):
        for step in (1, 2):
            telemetry.emit("training.step", {"step": step, "loss": 1 / step})
            loggers.log_metrics({"loss": 1 / step, "eval/loss": 0.5}, step)
        telemetry.emit("training.checkpoint", {"step": 2, "seconds": 0.25})
        telemetry.emit("training.epoch", {"epoch": 1, "step": 2})
    with pytest.raises(KeyError), telemetry.span("stage", "after"):
        raise KeyError
    loggers.log_artifact(Artifact(run.folder / "x", "adapter", lineage={"parent": "one"}))
    loggers.close(outcome)
    return urls, told


def test_spans_nest_and_figures_are_metrics() -> None:
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    meters = MeterProvider([reader])
    handler = SpanMap(tracers, meters, root="job", attributes={"run": "job-3", "group": None})
    with telemetry.attached("otel", telemetry.NAMES, handler.told):
        # One that began before anybody listened.
        telemetry.emit("stage.stop", {"seconds": 2.0}, {"stage": "before"})
        with telemetry.span("stage", "train"):
            telemetry.emit("training.step", {"step": 1, "loss": 0.5})
            telemetry.emit("training.epoch", {"epoch": 1})
        telemetry.emit(
            "generation.complete",
            {"tokens": 7, "seconds": 0.5},
            {"adapter": None, "reason": "stop"},
        )
        for rating in ("good", "critical", "good"):
            telemetry.emit("feedback.recorded", {"feedback": 1}, {"rating": rating})
    handler.end()
    found = {span.name: span for span in spans.get_finished_spans()}
    assert list(found) == ["before", "step", "train", "generation.complete", "job"]
    root, train, step = found["job"], found["train"], found["step"]
    assert root.parent is None and dict(root.attributes or {}) == {"run": "job-3"}
    assert train.parent == root.context and step.parent == train.context
    assert dict(step.attributes or {}) == {"step": 1, "loss": 0.5}
    assert [event.name for event in train.events] == ["training.epoch"]
    assert [event.name for event in root.events] == ["feedback.recorded"] * 3
    before = found["before"]
    assert before.start_time and before.end_time
    assert before.end_time - before.start_time == pytest.approx(2e9)
    data = reader.get_metrics_data()
    assert data is not None
    metrics = {
        metric.name: metric.data.data_points
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
    }
    ratings = {
        str((point.attributes or {})["rating"]): point.value  # type: ignore[union-attr]
        for point in metrics["shammah.feedback.recorded"]
    }
    assert ratings == {"good": 2, "critical": 1}
    (tokens,) = metrics["shammah.generation.tokens"]
    assert tokens.value == 7  # type: ignore[union-attr]
    (seconds,) = metrics["shammah.generation.seconds"]
    assert seconds.sum == 0.5  # type: ignore[union-attr]


def test_a_run_reaches_a_collector(run: RunIdentity, collector: Collector) -> None:
    from dataclasses import replace

    urls, told = write(replace(run, otel_endpoint=collector.url + "/"), "failed")
    assert not told and urls["otel"] == collector.url
    spans = {span.name: span for span in collector.spans}
    assert set(spans) == {"job-3", "train", "step", "training.checkpoint", "after"}
    assert spans["train"].parent_span_id == spans["job-3"].span_id
    assert spans["step"].parent_span_id == spans["train"].span_id
    assert spans["after"].status.code == spans["job-3"].status.code == 2
    attributes = {each.key: each.value for each in spans["job-3"].attributes}
    assert attributes["lora.rank"].int_value == 16 and attributes["project"].string_value == "tests"
    assert [event.name for event in spans["job-3"].events] == ["artifact"]
    assert collector.resources[0]["service.name"] == "shammah"
    assert collector.resources[0]["service.instance.id"] == "key-3"
    gauges = {metric.name: metric.gauge.data_points for metric in collector.metrics}
    assert {"shammah.loss", "shammah.eval/loss", "shammah.step"} <= set(gauges)
    assert gauges["shammah.loss"][-1].as_double == 0.5


def test_without_a_collector_it_is_files_that_collectors_read(run: RunIdentity) -> None:
    from google.protobuf.json_format import ParseDict

    urls, told = write(run)
    folder = run.data / "tracking" / "otel"
    assert not told and urls["otel"] == str(folder)
    lines = [json.loads(line) for line in (folder / "traces.jsonl").read_text().splitlines()]
    spans = [
        span
        for line in lines
        for resource in line["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
    assert {span["name"] for span in spans} >= {"job-3", "train", "step"}
    assert all(len(s["traceId"]) == 32 and int(s["traceId"], 16) for s in spans)
    assert all(len(s["spanId"]) == 16 for s in spans)
    (root,) = [span for span in spans if "parentSpanId" not in span]
    assert root["name"] == "job-3"
    figures = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in figures:
        ParseDict(line, ExportMetricsServiceRequest())
    assert "shammah.loss" in json.dumps(figures)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


@pytest.mark.parametrize(
    ("endpoint", "online", "words"),
    [
        (
            "http://collector.example:4318",
            False,
            "is another machine, and tracking.online is false",
        ),
        ("http://127.0.0.1:9", False, "does not answer"),
        ("localhost:4317", False, "is no address of a collector"),
    ],
)
def test_a_collector_that_cannot_be_used_is_one_line(
    run: RunIdentity, endpoint: str, online: bool, words: str
) -> None:
    from dataclasses import replace

    _, told = write(replace(run, otel_endpoint=endpoint, online=online))
    (line,) = told
    assert line.startswith("Nothing more is written to otel: ") and words in line
    assert telemetry.detach("otel") is False


def test_a_missing_package_is_one_line(run: RunIdentity, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("shammah.tracking.otel", "shammah.tracking.loggers.otel"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    _, told = write(run)
    (line,) = told
    assert line.endswith("is not installed. Run `pip install shammah[otel]`.")


def test_the_variable_counts_only_where_sending_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://elsewhere:4318")
    assert Destination("", False, tmp_path).address == ""
    assert Destination("", True, tmp_path).address == "http://elsewhere:4318"
    assert Destination("http://localhost:4318", True, tmp_path).address == "http://localhost:4318"


async def test_a_chat_sends_answers_in_figures_where_it_is_told_to(
    tmp_path: Path, collector: Collector
) -> None:
    tracking = {"loggers": ["otel"], "otel_endpoint": collector.url}
    settings = Settings.from_dict({"tracking": tracking, "feedback": {"auto_train": False}})
    before = {name: telemetry._handlers.get(name) for name in CHAT}
    chat = Assistant(settings, Paths(tmp_path, tmp_path).ensure(), train=False)
    await chat.start()
    await chat.ready()
    async with asyncio.timeout(60):
        while chat._export is None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    handle = chat.ask("Which quetzal wrote this?")
    async for _ in handle:
        pass
    await chat.close()
    names = [span.name for span in collector.spans]
    assert names == ["generation.complete"]
    assert "shammah.generation.tokens" in {metric.name for metric in collector.metrics}
    assert "quetzal" not in str(collector.spans) + str(collector.metrics)
    assert {name: telemetry._handlers.get(name) for name in CHAT} == before


async def test_a_chat_that_cannot_send_says_so_and_goes_on(tmp_path: Path) -> None:
    told: list[str] = []
    tracking = {"loggers": ["otel"], "otel_endpoint": "http://127.0.0.1:9"}
    settings = Settings.from_dict({"tracking": tracking})
    chat = Assistant(
        settings, Paths(tmp_path, tmp_path).ensure(), train=False,
        on_notice=lambda notice: told.append(notice.text),
    )  # fmt: skip
    await chat.start(load_model=False)
    assert chat._exporting is not None
    await chat._exporting
    await chat.close()
    assert len(told) == 1 and "http://127.0.0.1:9 does not answer" in told[0]
    with pytest.raises(TrackingError):
        Destination("ftp://x", False, tmp_path).open({})
