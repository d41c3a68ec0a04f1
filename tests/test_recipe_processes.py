"""A recipe that several processes run together: one run, one adapter, the figures of one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tiny_models
from command import shammah_json
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[1]
ROWS = [f'{{"prompt": "what is {n}?", "completion": "it is {n * n}."}}' for n in range(12)]


@pytest.fixture
def asked(tmp_path: Path) -> list[str]:
    model = tiny_models.build("qwen2", tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("\n".join(ROWS))
    return [
        "train", "sft", "--model", str(model), "--data", str(tmp_path / "rows.jsonl"),
        "--dtype", "fp32", "--device", "cpu", "--lora.rank", "4", "--batch-size", "3",
        "--epochs", "3", "--held-out", "2", "--json",
    ]  # fmt: skip


def begun(home: Path, launcher: list[str], arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "shammah.cli", *arguments],
        env={**os.environ, "SHAMMAH_HOME": str(home), "PYTHONPATH": str(ROOT),
             "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-4000:]
    (line,) = [line for line in out.splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.loads(line)
    return found


def two() -> list[str]:
    return [
        "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
    ]  # fmt: skip


@pytest.mark.timeout(300)
def test_two_processes_make_one_adapter(tmp_path: Path, asked: list[str]) -> None:
    alone = shammah_json(tmp_path / "alone", *asked[:-1])
    home = tmp_path / "two"
    process = begun(home, two(), [*asked, "--run-id", "pair", "--checkpoint-every", "1"])
    checkpoints = home / "runs" / "pair" / "checkpoints"
    while process.poll() is None and not list(checkpoints.glob("step_*")):
        time.sleep(0.02)
    # The launcher dies with its processes, wherever they are.
    for child in children(process.pid):
        os.kill(child, signal.SIGKILL)
    process.kill()
    process.communicate()
    together = result(begun(home, two(), ["train", "resume", "pair", "--json"]))
    assert together["metrics"] == pytest.approx(alone["metrics"], rel=2e-4)
    assert together["trained"]["steps"] == alone["trained"]["steps"] == 12
    files = list((home / "adapters").glob("*.safetensors"))
    assert [file.stem for file in files] == [together["adapter"]]
    wanted = load_file(Path(alone["artifacts"]["adapter"]))
    for name, tensor in load_file(files[0]).items():
        assert tensor == pytest.approx(wanted[name], rel=1e-2, abs=1e-4), name


@pytest.mark.timeout(120)
def test_what_is_wrong_is_said_once(tmp_path: Path, asked: list[str]) -> None:
    (tmp_path / "home" / "runs" / "pair").mkdir(parents=True)
    process = begun(tmp_path / "home", two(), [*asked, "--run-id", "pair"])
    _, err = process.communicate(timeout=100)
    assert process.returncode != 0
    assert err.count("There is a run pair already.") == 1


class Teacher(BaseHTTPRequestHandler):
    """Answers every question with its number, and counts."""

    asked: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body["messages"][-1]["content"])
        message = {"role": "assistant", "content": "it is so."}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        text = json.dumps({"id": "1", "object": "chat.completion", "model": "t",
                           "choices": [choice]}).encode()  # fmt: skip
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *about: object) -> None:
        """Nothing."""


@pytest.mark.timeout(300)
def test_a_teacher_is_asked_once(tmp_path: Path, asked: list[str]) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Teacher)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/v1"
        teacher = ["--teacher", address, "--teacher-model", "t", "--max-tokens", "8"]
        arguments = ["train", "distill", *asked[2:], *teacher]
        made = result(begun(tmp_path / "home", two(), arguments))
    finally:
        server.shutdown()
    assert sorted(Teacher.asked) == sorted(json.loads(row)["prompt"] for row in ROWS)
    assert made["metrics"]["after/loss"] < made["metrics"]["before/loss"]


def children(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]
