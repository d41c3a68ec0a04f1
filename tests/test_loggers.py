"""What loggers write, read back with each tool's own reader; and what they never do to training."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from shammah.backends.jsonl_metrics import JsonlMetrics
from shammah.errors import MetricsError, TrackingError
from shammah.tracking.loggers.base import Artifact, Outcome, RunIdentity, RunLogger, flat
from shammah.tracking.loggers.multiplexer import Multiplexer
from shammah.tracking.loggers.opening import open_logger, open_loggers
from shammah.tracking.loggers.store import open_store

HPARAMS = {"lora": {"rank": 16, "target_modules": ["q_proj", "v_proj"]}, "model": "embedded"}
LINEAGE = {"parent": "lora_adapter_1", "base_model": "embedded", "sha256": "ab"}


@pytest.fixture
def run(tmp_path: Path) -> RunIdentity:
    folder = tmp_path / "jobs" / "3"
    folder.mkdir(parents=True)
    return RunIdentity(
        "job-3", "key-3", folder, tmp_path, project="tests", title="third", group="nights",
        tags=("rust", "small"),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What clients set for themselves goes again; nothing of the user's takes part."""
    before = dict(os.environ)
    for name in ("WANDB_API_KEY", "NEPTUNE_API_TOKEN", "TRACKIO_SPACE_ID", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    yield
    os.environ.clear()
    os.environ.update(before)


def needs(package: str) -> pytest.MarkDecorator:
    there = importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(not there, reason=f"{package} is not installed")


def write(name: str, run: RunIdentity, outcome: Outcome = "done") -> tuple[str | None, list[str]]:
    """A whole run through the multiplexer, with a file of its own."""
    weights = run.folder / "adapter.safetensors"
    weights.write_bytes(b"weights")
    told: list[str] = []
    loggers = open_loggers([name], run, tell=told.append)
    loggers.log_hparams(HPARAMS)
    for step in (1, 2, 3):
        loggers.log_metrics({"loss": 1 / step, "learned": step}, run.resumed_step + step)
    loggers.log_text("verdict", "It passed.")
    loggers.log_artifact(Artifact(weights, "adapter-key-3", lineage=LINEAGE))
    loggers.sync()
    url = loggers.urls.get(name)
    loggers.close(outcome)
    return url, told


# --- always on


async def test_a_run_is_in_its_folder_and_in_the_store(run: RunIdentity) -> None:
    loggers = open_loggers([], run)
    loggers.log_hparams(HPARAMS)
    loggers.log_metrics({"loss": 0.5}, 1)
    assert (run.folder / "metrics.jsonl").stat().st_size  # at once: it survives a kill
    loggers.log_text("verdict", "It passed.")
    loggers.log_artifact(Artifact(run.folder / "x", "adapter-key-3", lineage=LINEAGE))
    loggers.sync()  # inside a running event loop, as in the worker
    loggers.close("failed")
    assert json.loads((run.folder / "config.json").read_text()) == HPARAMS
    lines = JsonlMetrics(run.folder / "metrics.jsonl").history("loss", run="job-3")
    assert [(point.step, point.value) async for point in lines] == [(1, 0.5)]
    store = open_store(run.data)
    record = store.get("job-3")
    assert record.status == "failed" and record.about["hparams"] == HPARAMS
    assert record.about["tags"] == ["rust", "small"] and record.about["title"] == "third"
    assert record.about["artifacts"]["adapter-key-3"]["parent"] == "lora_adapter_1"
    assert [(s.metric, s.last) for s in store.summaries("job-3")] == [("loss", 0.5)]
    store.close()


def test_nested_settings_are_flattened_for_tools_that_know_no_nesting() -> None:
    assert flat({"a": {"b": {"c": 1}, "d": None}, "e": [1, "x"], "f": True}) == {
        "a.b.c": 1, "e": "1, x", "f": True,
    }  # fmt: skip


# --- never in training's way


class Listening(RunLogger):
    """Notes what it is given; waits, or fails, where it is told to."""

    tool = "listening"

    def __init__(self, fails: bool = False) -> None:
        self.seen: list[tuple[int, Mapping[str, Any]]] = []
        self.fails = fails
        self.gate = threading.Event()
        self.gate.set()
        self.closed: Outcome | None = None

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        self.gate.wait(10)
        if self.fails and step == 2:
            raise OSError("the disk is full\nand more")
        self.seen.append((step, metrics))

    def close(self, outcome: Outcome = "done") -> None:
        self.closed = outcome


def test_a_logger_that_fails_leaves_the_others_and_is_told_of_once() -> None:
    told: list[str] = []
    good, bad, at_once = Listening(), Listening(fails=True), Listening(fails=True)

    def absent() -> RunLogger:
        raise SystemExit(3)

    both = Multiplexer(
        [at_once], {"good": lambda: good, "bad": lambda: bad, "absent": absent}, tell=told.append
    )
    for step in (1, 2, 3):
        both.log_metrics({"x": step}, step)
    both.sync()
    both.close("failed")
    assert [step for step, _ in good.seen] == [1, 2, 3] and good.closed == "failed"
    assert [step for step, _ in bad.seen] == [1] and bad.closed == "failed"
    assert [step for step, _ in at_once.seen] == [1]
    assert sorted(told) == [
        "Nothing more is written to absent: SystemExit: 3",
        "Nothing more is written to bad: OSError: the disk is full",
        "Nothing more is written to listening: OSError: the disk is full",
    ]
    both.log_metrics({"x": 4}, 4)
    both.close()


def test_a_slow_logger_holds_nothing_up_and_what_it_lost_is_counted() -> None:
    told: list[str] = []
    slow, quick = Listening(), Listening()
    slow.gate.clear()
    both = Multiplexer(
        [], {"slow": lambda: slow, "quick": lambda: quick}, tell=told.append, capacity=5
    )
    both.sync(seconds=5)
    spent = 0.0
    for step in range(100):
        began = time.perf_counter()
        both.log_metrics({"x": step}, step)
        spent += time.perf_counter() - began
        while len(quick.seen) <= step:  # it writes what the other is still waiting to
            time.sleep(0.0005)
    assert spent < 1.0
    assert both.dropped["slow"] == 100 - 6 and len(quick.seen) == 100
    slow.gate.set()
    both.close(seconds=5)
    assert len(slow.seen) == 6
    assert [line for line in told if "slow" in line] == [
        "slow was too slow: 94 records are missing there. `shammah runs show` has them all."
    ]


def test_a_logger_that_hangs_is_left_behind() -> None:
    told: list[str] = []
    hanging = Listening()
    hanging.gate.clear()
    both = Multiplexer([], {"hanging": lambda: hanging}, tell=told.append)
    for step in range(3):
        both.log_metrics({"x": step}, step)
    began = time.perf_counter()
    both.close(seconds=0.3)
    assert time.perf_counter() - began < 10
    assert told == [
        "hanging did not finish in time; 2 records and what it was writing may be missing there."
    ]
    hanging.gate.set()


@pytest.mark.parametrize("name", ["wandb", "mlflow", "neptune", "trackio", "tensorboard"])
def test_a_missing_package_is_one_line(
    name: str, run: RunIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [m for m in sys.modules if m.split(".")[0] == name or m.endswith(f".{name}")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    if name == "mlflow":
        monkeypatch.setitem(sys.modules, "mlflow.entities", None)
    _, told = write(name, run)
    (line,) = told
    assert line.startswith(f"Nothing more is written to {name}: ")
    assert line.endswith(f"is not installed. Run `pip install shammah[{name}]`.")
    for module in [m for m in sys.modules if m.endswith(f"loggers.{name}")]:
        monkeypatch.delitem(sys.modules, module)


def test_an_unknown_logger_is_refused(run: RunIdentity) -> None:
    with pytest.raises(TrackingError, match="no logger 'wand'"):
        open_logger("wand", run)


def test_a_store_that_cannot_be_opened_is_one_line(run: RunIdentity) -> None:
    (run.data / "runs.db").mkdir()
    told: list[str] = []
    loggers = open_loggers([], run, tell=told.append)
    loggers.log_metrics({"loss": 1.0}, 1)
    loggers.close()
    (line,) = told
    assert line.startswith("Nothing more is written to runs: ")
    assert (run.folder / "metrics.jsonl").stat().st_size
    with pytest.raises(MetricsError):
        open_store(run.data)


# --- each tool, read back with its own reader


@needs("tensorboard")
def test_tensorboard_reads_what_was_written_and_a_run_goes_on(run: RunIdentity) -> None:
    from dataclasses import replace

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    url, told = write("tensorboard", run, "interrupted")
    assert url is not None and not told
    write("tensorboard", replace(run, resumed_step=2))
    events = EventAccumulator(url)
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "learned"}
    # Step 3 was done again after the checkpoint of step 2.
    scalars = [(event.step, event.value) for event in events.Scalars("loss")]
    assert scalars == [(1, 1.0), (2, 0.5), (3, 1.0), (4, 0.5), (5, pytest.approx(1 / 3))]
    texts = {
        tag: bytes(events.Tensors(tag)[0].tensor_proto.string_val[0]).decode()
        for tag in events.Tags()["tensors"]
    }
    assert texts["verdict/text_summary"] == "It passed."
    assert json.loads(texts["artifacts/adapter-key-3/text_summary"])["parent"] == "lora_adapter_1"
    assert "third (rust, small)" in texts["run/text_summary"]
    plugin = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"lora.rank" in plugin and b"q_proj, v_proj" in plugin


@needs("wandb")
def test_an_offline_run_of_wandb_holds_everything(run: RunIdentity) -> None:
    url, told = write("wandb", run)
    assert url is not None and not told
    (file,) = Path(url).glob("*.wandb")
    history, config, summary, artifacts, runs = [], {}, {}, [], []
    for record in wandb_records(file):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            items = record.history.item
            names = [item.key or ".".join(item.nested_key) for item in items]
            values = [json.loads(item.value_json) for item in items]
            history.append(dict(zip(names, values, strict=True)))
        elif kind == "artifact":
            artifacts.append(record.artifact)
        elif kind == "run":
            runs.append(record.run)
        elif kind == "config":
            config |= {i.key or i.nested_key[0]: i.value_json for i in record.config.update}
        elif kind == "summary":
            items = record.summary.update
            summary |= {i.key or i.nested_key[0]: json.loads(i.value_json) for i in items}
    assert [(line["step"], line["learned"]) for line in history] == [(1, 1), (2, 2), (3, 3)]
    assert (runs[0].run_id, runs[0].display_name, runs[0].project) == ("key-3", "third", "tests")
    assert runs[0].run_group == "nights" and list(runs[0].tags) == ["rust", "small"]
    assert json.loads(config["lora"])["rank"] == 16 and summary["verdict"] == "It passed."
    (artifact,) = artifacts
    assert (artifact.name, artifact.type) == ("adapter-key-3", "adapter")
    assert json.loads(artifact.metadata) == LINEAGE
    assert [entry.path for entry in artifact.manifest.contents] == ["adapter.safetensors"]
    kinds = {record.WhichOneof("record_type") for record in wandb_records(file)}
    assert "environment" not in kinds and "stats" not in kinds
    assert [path.name for path in (Path(url) / "files").iterdir()] in ([], ["config.yaml"])


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of an offline run, in the client's own types; the frame is that of LevelDB's
    log: blocks of 32 KiB, seven bytes before each piece."""
    from wandb.proto import wandb_internal_pb2

    data, place, whole = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (room := 32768 - place % 32768) < 7:
            place += room
        length = int.from_bytes(data[place + 4 : place + 6], "little")
        kind = data[place + 6]
        if not kind:
            break
        whole = (b"" if kind in (1, 2) else whole) + data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record


@needs("mlflow")
@needs("alembic")
def test_mlflow_finds_the_run_with_its_files_and_it_goes_on(run: RunIdentity) -> None:
    from dataclasses import replace

    url, told = write("mlflow", run, "interrupted")
    assert url is not None and not told
    from mlflow.tracking import MlflowClient

    client: Any = MlflowClient(tracking_uri=url)
    experiment = client.get_experiment_by_name("tests").experiment_id
    (first,) = client.search_runs([experiment])
    assert first.info.status == "KILLED"
    write("mlflow", replace(run, resumed_step=3))
    (found,) = client.search_runs([experiment])
    assert (found.info.run_id, found.info.status) == (first.info.run_id, "FINISHED")
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [(entry.step, entry.value) for entry in history] == [
        (1, 1.0), (2, 0.5), (3, 1 / 3), (4, 1.0), (5, 0.5), (6, 1 / 3),
    ]  # fmt: skip
    assert found.data.params["lora.target_modules"] == "q_proj, v_proj"
    assert found.data.tags["mlflow.runName"] == "third" and found.data.tags["group"] == "nights"
    assert found.data.tags["adapter.parent"] == "lora_adapter_1"
    files = {file.path for file in client.list_artifacts(found.info.run_id, "adapter")}
    assert files == {"adapter/adapter.safetensors", "adapter/adapter-key-3.json"}
    assert Path(client.download_artifacts(found.info.run_id, "verdict.txt")).read_text() == (
        "It passed."
    )


@needs("neptune")
def test_an_offline_run_of_neptune_is_in_its_queue(run: RunIdentity) -> None:
    url, told = write("neptune", run)
    assert url is not None and not told
    from neptune.core.components.queue.disk_queue import DiskQueue
    from neptune.internal.operation import Operation

    (folder,) = (Path(url) / "offline").iterdir()
    queue: Any = DiskQueue(
        data_path=folder, to_dict=lambda operation: operation.to_dict(),
        from_dict=Operation.from_dict, lock=threading.RLock(),
    )  # fmt: skip
    operations = []
    while (element := queue.get()) is not None:
        operations.append(element.obj)
    queue.close()
    paths = {"/".join(one.path): one for one in operations}
    losses = [
        (value.step, value.value)
        for one in operations
        if one.path == ["metrics", "loss"]
        for value in one.values
    ]
    assert losses == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert paths["hparams/lora/rank"].value == 16 and paths["texts/verdict"].value == "It passed."
    assert paths["adapter/adapter-key-3/lineage/parent"].value == "lora_adapter_1"
    assert "adapter/adapter-key-3/file" in paths
    assert json.loads((folder / "metadata.json").read_text())["mode"] == "offline"


@needs("trackio")
def test_trackio_reads_what_was_written_and_the_run_goes_on(run: RunIdentity) -> None:
    # Its folder is read once, when it is imported: each test run has a process of its own.
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from dataclasses import replace\n"
        "from pathlib import Path; from test_loggers import write, RunIdentity\n"
        "folder = Path(sys.argv[2]); run = RunIdentity('job-3', 'key-3', folder / 'jobs/3', folder,"
        " project='tests', group='nights', tags=('rust',))\n"
        "url, told = write('trackio', run, 'interrupted'); assert not told, told\n"
        "write('trackio', replace(run, resumed_step=3))\n"
        "from trackio.sqlite_storage import SQLiteStorage; import json\n"
        "logs = SQLiteStorage.get_logs('tests', 'key-3')\n"
        "config = SQLiteStorage.get_run_config('tests', 'key-3')\n"
        "print(json.dumps([url, [(e['step'], e['learned']) for e in logs], config]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(run.data)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    url, logs, config = json.loads(done.stdout.splitlines()[-1])
    assert url == str(run.tool_folder("trackio"))
    assert logs == [[1, 1], [2, 2], [3, 3], [4, 1], [5, 2], [6, 3]]
    assert config["lora"]["rank"] == 16 and config["_Group"] == "nights"


# --- nothing leaves unless it may


@needs("mlflow")
def test_a_server_of_mlflow_is_not_asked_unless_online(run: RunIdentity) -> None:
    from dataclasses import replace

    _, told = write("mlflow", replace(run, mlflow_uri="http://127.0.0.1:9"))
    assert told == [
        "Nothing more is written to mlflow: http://127.0.0.1:9 is a server, and tracking.online is "
        "false. Set tracking.online to true to send runs there."
    ]


@needs("mlflow")
def test_a_server_of_mlflow_that_is_not_there_is_one_line(run: RunIdentity) -> None:
    from dataclasses import replace

    began = time.perf_counter()
    _, told = write("mlflow", replace(run, mlflow_uri="http://127.0.0.1:9", online=True))
    assert time.perf_counter() - began < 40
    (line,) = told
    assert "Nothing more is written to mlflow: " in line and "\n" not in line


@pytest.mark.parametrize(
    ("name", "key"),
    [
        pytest.param("wandb", "WANDB_API_KEY", marks=needs("wandb")),
        pytest.param("neptune", "NEPTUNE_API_TOKEN", marks=needs("neptune")),
    ],
)
def test_online_without_a_key_is_one_line(
    name: str, key: str, run: RunIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    monkeypatch.setenv("HOME", str(run.data))
    monkeypatch.setenv("NETRC", str(run.data / "none"))
    _, told = write(name, replace(run, online=True))
    (line,) = told
    assert key in line and "tracking.online" in line
