"""Two processes that train one adapter give what one process gives."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import several_processes
import tiny_models

from shammah.models.load import load_base_model
from shammah.ports.training_client import leads
from shammah.settings import LoraSettings, ModelSettings, TrainingSettings
from shammah.training.local_client import LocalTrainingClient
from shammah.training.parallel import client_of, reward_client_of
from shammah.training.reward_client import RewardTrainingClient


def launched(*command: object) -> subprocess.CompletedProcess[str]:
    """A launcher that has come to its end."""
    root = Path(__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def found(folder: Path, *command: object) -> list[dict[str, Any]]:
    """What two processes found, by a launcher."""
    folder.mkdir(exist_ok=True)
    done = launched(*command)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"process_{number}.json").read_text()) for number in (0, 1)]


def accelerate(*how: str) -> list[object]:
    return [
        "accelerate.commands.launch", *how, "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", free_port(),
    ]  # fmt: skip


@pytest.mark.timeout(300)
def test_two_processes_give_the_losses_of_one(tmp_path: Path) -> None:
    model = tiny_models.build("qwen2", tmp_path / "model")
    alone = several_processes.made_of(model)
    wanted = several_processes.run(alone, tmp_path / "alone")
    two = tmp_path / "two"
    # Its name notwithstanding, it starts two where there is no GPU at all.
    left, right = found(two, *accelerate("--multi_gpu"), several_processes.__file__, model, two)
    assert left["count"] == right["count"] == 2
    assert len(wanted.losses) == 12
    assert left["whole"]["losses"] == pytest.approx(wanted.losses, rel=2e-5)
    assert left["whole"]["figures"] == pytest.approx(wanted.figures, rel=2e-5)
    # And both have the same, to the bit.
    assert left == right
    assert left["failure"][0] == "EmptyLessonError"
    # Stopped because one of them wished so, and gone on with: as undisturbed.
    assert left["first"]["ended"] == "stopped" and len(left["first"]["losses"]) == 5
    assert left["first"]["losses"] + left["rest"]["losses"] == left["whole"]["losses"]
    assert left["rest"]["weights"] == left["whole"]["weights"]
    assert [path.name for path in sorted((tmp_path / "two" / "parts").glob("step_*"))] == [
        "step_000012"
    ]


def test_a_process_alone_gets_a_client_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    model = tiny_models.build("qwen2", tmp_path)
    base = load_base_model(ModelSettings(name=str(model), device="cpu"))
    client = client_of(base, LoraSettings(rank=2), TrainingSettings())
    assert type(client) is LocalTrainingClient and leads(client)
    client.close()
    scoring = reward_client_of(base, LoraSettings(rank=2), TrainingSettings())
    assert type(scoring) is RewardTrainingClient and leads(scoring)
    scoring.close()


def test_processes_that_were_asked_for_and_not_started_are_missed(tmp_path: Path) -> None:
    script = tmp_path / "alone.py"
    script.write_text(
        "from shammah.errors import TrainingError\n"
        "from shammah.training.processes import Processes\n"
        "try:\n    Processes()\n"
        "except TrainingError as error:\n    raise SystemExit(error.message)\n"
    )
    done = launched(*accelerate("--cpu"), script)
    assert done.returncode and "has started one" in done.stderr
