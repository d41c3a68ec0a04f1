"""Two processes that train one adapter give what one process gives."""

from __future__ import annotations

import asyncio
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
import torch
from safetensors.torch import load_file

from shammah.models.load import load_base_model
from shammah.ports.training_client import leads
from shammah.settings import LoraSettings, ModelSettings, TrainingSettings
from shammah.training.local_client import LocalTrainingClient
from shammah.training.parallel import client_of, reward_client_of
from shammah.training.reward_client import RewardTrainingClient


def launched(*command: object) -> subprocess.CompletedProcess[str]:
    """A launcher that has come to its end."""
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
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


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("qwen2", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process finds."""
    folder = tmp_path_factory.mktemp("alone")
    client = several_processes.made_of(model)
    result = several_processes.run(client, folder)
    asyncio.run(client.save_weights(folder / "adapter.safetensors"))
    pairs = several_processes.by_pairs(several_processes.made_of(model))
    return {
        "losses": list(result.losses),
        "figures": dict(result.figures),
        "weights": load_file(folder / "adapter.safetensors"),
        "drawn": several_processes.drawn(client),
        "own": several_processes.by_own_loss(several_processes.made_of(model)),
        "pairs": {"losses": list(pairs.losses), "figures": dict(pairs.figures)},
        "scores": several_processes.by_scores(model),
        "failures": several_processes.failures(several_processes.made_of(model)),
    }


LAUNCHERS = {
    "whole": lambda: [
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        free_port(),
    ],
    "divided": lambda: accelerate("--use_fsdp"),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", LAUNCHERS)
def test_two_processes_give_what_one_gives(
    kind: str, model: Path, alone: dict[str, Any], tmp_path: Path
) -> None:
    left, right = found(tmp_path, *LAUNCHERS[kind](), several_processes.__file__, model, tmp_path)
    assert left["count"] == 2 and left["divided"] == (kind == "divided")
    assert len(alone["losses"]) == 12
    assert left["whole"]["losses"] == pytest.approx(alone["losses"], rel=2e-5)
    assert left["whole"]["figures"] == pytest.approx(alone["figures"], rel=2e-5)
    weights = load_file(tmp_path / "adapter_0.safetensors")
    assert weights.keys() == alone["weights"].keys()
    for name, wanted in alone["weights"].items():
        torch.testing.assert_close(weights[name], wanted, rtol=2e-4, atol=2e-5)
    for name in ("losses", "figures"):
        assert left["pairs"][name] == pytest.approx(alone["pairs"][name], rel=2e-5, abs=1e-6)
    for name in ("own", "scores"):
        assert left[name] == pytest.approx(alone[name], rel=2e-5, abs=1e-6)
    # What one said is what all go on with, whatever they would have said.
    assert left["drawn"]["seeded"] == alone["drawn"]["seeded"]
    for name in ("trained", "base"):
        assert left["drawn"][name] == pytest.approx(alone["drawn"][name], rel=2e-4)
    # And both have the same, to the bit.
    assert left == right
    silent, lacking, *after = left["failures"]
    assert silent[0] == "EmptyLessonError" and "'reference'" in lacking[1]
    assert after == pytest.approx(alone["failures"][2:], rel=2e-5)
    # Stopped because one of them wished so, and gone on with: as undisturbed.
    assert left["first"]["ended"] == "stopped" and len(left["first"]["losses"]) == 5
    assert left["first"]["losses"] + left["rest"]["losses"] == left["whole"]["losses"]
    assert left["rest"]["weights"] == left["whole"]["weights"]
    assert [path.name for path in sorted((tmp_path / "parts").glob("step_*"))] == ["step_000012"]
    assert ("0 MB are free" in left["cramped"]) == (kind == "divided")
    # After training, and after tokens were drawn.
    for here, all_of_it in (left["whole"]["held"], left["held"]):
        share = here / all_of_it
        assert 0.5 <= share < 0.52 if kind == "divided" else share >= 1


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
