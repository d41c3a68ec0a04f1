"""Hooks see the gradients of a step as they are after accumulation and before clipping, and tell of
what is wrong when it begins."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from command import shammah, shammah_json
from test_training_client import example

from shammah.errors import ConfigError, DivergenceError, TrainingError
from shammah.models.load import load_base_model
from shammah.ports.training_client import AdamParams
from shammah.settings import LoraSettings, ModelSettings, Settings, TrainingSettings
from shammah.tracking import telemetry
from shammah.training.hooks import (
    HOOKS,
    Custom,
    Distribution,
    Flow,
    Gradients,
    Health,
    Hook,
    Norm,
    Report,
    layer_of,
    look,
    make_hooks,
    register,
)
from shammah.training.local_client import LocalTrainingClient

Told = list[tuple[str, dict[str, Any], dict[str, Any]]]


@pytest.fixture
def told() -> Iterator[Told]:
    found: Told = []

    def note(name: str, measured: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        found.append((name, dict(measured), dict(about)))

    with telemetry.attached("test", ["training.gradients", "training.issue"], note):
        yield found


def client_of(folder: Path, hooks: list[Hook]) -> LocalTrainingClient:
    path = tiny_models.build("qwen2", folder)
    base = load_base_model(ModelSettings(name=str(path), device="cpu", dtype="fp32"))
    return LocalTrainingClient(
        base, LoraSettings(rank=4, layers=1.0), TrainingSettings(), hooks=hooks
    )


def gradients(step: int = 1, weight: float = 1.0, **tensors: torch.Tensor) -> Gradients:
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    return Gradients(step, tuple(named), tuple(named.values()), weight, {})


async def test_they_see_what_was_accumulated_before_it_is_clipped(
    tmp_path: Path, told: Told
) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    def copy(found: Gradients) -> dict[str, float]:
        seen.append({name: gradient.clone() for name, gradient in found})
        return {"mine": 7.0}

    hooks: list[Hook] = [Norm(), Distribution(), Flow(), Custom("copy", copy)]
    client = client_of(tmp_path, hooks)
    clipped = AdamParams(learning_rate=1e-2, max_grad_norm=1e-3)
    for step in range(3):
        await client.forward_backward([example(step)])
        await client.forward_backward([example(step + 5, weight=3.0)])
        sums = {
            name: parameter.grad.clone()
            for name, parameter in client.lora.named_parameters().items()
            if parameter.grad is not None
        }
        stepped = await client.optim_step(clipped)
        own = seen[-1]
        for name, gradient in sums.items():
            torch.testing.assert_close(own[name], gradient / 4.0)
            assert own[name].dtype == torch.float32
        figures = {about["hook"]: measured for _, measured, about in told[-4:]}
        assert figures["norm"]["norm"] == pytest.approx(stepped.grad_norm, rel=1e-5)
        assert figures["norm"]["step"] == stepped.step == step + 1
        assert figures["copy"] == {"step": step + 1, "mine": 7.0}
        every = np.concatenate([gradient.numpy().reshape(-1) for gradient in own.values()])
        spread = figures["distribution"]
        assert spread["mean"] == pytest.approx(every.mean(dtype=np.float64), rel=1e-3, abs=1e-9)
        assert spread["std"] == pytest.approx(every.std(dtype=np.float64), rel=1e-4)
        assert (spread["min"], spread["max"]) == pytest.approx((every.min(), every.max()))
        assert spread["sparsity"] == pytest.approx((every == 0).mean())
        tensors = hooks[1].tensors  # type: ignore[attr-defined]
        for name, gradient in own.items():
            assert tensors[name].std == pytest.approx(float(gradient.std(correction=0)), rel=1e-3)
        flow = figures["flow"]
        assert [key for key in flow if key != "step"] == ["flow/layers.0", "flow/layers.1"]
        layer = [g.norm() for name, g in own.items() if ".layers.1." in name]
        assert flow["flow/layers.1"] == pytest.approx(float(torch.stack(layer).norm()), rel=1e-5)


async def test_what_has_not_begun_does_not_vanish(tmp_path: Path, told: Told) -> None:
    path = tiny_models.build("qwen2", tmp_path)
    base = load_base_model(ModelSettings(name=str(path), device="cpu", dtype="fp32"))
    client = LocalTrainingClient(
        base, LoraSettings(rank=4, layers=1.0), TrainingSettings(hooks=["health"])
    )
    for step in range(2):
        await client.forward_backward([example(step)])
        await client.optim_step(AdamParams(learning_rate=1e-2))
    assert [name for name, *_ in told] == ["training.gradients"] * 2
    assert all(measured["vanishing"] == 0 for _, measured, _ in told)
    # Now B is there; a gradient of A that is zero is one that vanishes.
    await client.forward_backward([example(3)])
    name, parameter = next(iter(client.lora.named_parameters().items()))
    assert parameter.grad is not None
    parameter.grad.zero_()
    await client.optim_step(AdamParams(learning_rate=1e-2))
    (issue,) = [about["text"] for event, _, about in told if event == "training.issue"]
    assert "Step 3: the gradient vanishes in 1 of" in issue and name in issue


async def test_what_is_not_finite_is_told_before_the_step_fails(tmp_path: Path, told: Told) -> None:
    client = client_of(tmp_path, [Health()])
    await client.forward_backward([example(1)])
    parameter = list(client.lora.named_parameters().values())[-1]
    assert parameter.grad is not None
    parameter.grad[0, 0] = float("nan")
    with pytest.raises(DivergenceError):
        await client.optim_step(AdamParams(learning_rate=1e-2))
    assert "is not finite in 1 of" in told[-1][2]["text"]


def test_health_tells_when_it_begins_and_with_thresholds(told: Told) -> None:
    (hook,) = make_hooks(["health:vanishing=1e-3,exploding=10"])
    big, small = torch.full((2, 2), 20.0), torch.full((3,), 1e-4)
    for step in (1, 2):
        look([hook], gradients(step, layers__0__x=big, layers__1__x=small))
    issues = [about["text"] for event, _, about in told if event == "training.issue"]
    assert len(issues) == 2 and "explodes" in issues[0] and "vanishes" in issues[1]
    look([hook], gradients(3, layers__0__x=big / 100, layers__1__x=small))
    look([hook], gradients(4, layers__0__x=big, layers__1__x=small))
    assert sum(event == "training.issue" for event, *_ in told) == 3
    assert told[-2][1] == {"step": 4, "vanishing": 1, "exploding": 1, "nonfinite": 0}
    # The weight of the window divides: 40 / 100 is well.
    told.clear()
    look([Health(exploding=10)], gradients(1, weight=100.0, layers__0__x=big))
    assert not [event for event, *_ in told if event == "training.issue"]
    # Squares that are too large for float32 are not infinities.
    huge = torch.full((4, 4), 1e30)
    look([Health()], gradients(1, layers__0__x=huge))
    assert "explodes" in told[-1][2]["text"]


def test_names_and_thresholds_are_checked() -> None:
    assert [hook.name for hook in make_hooks(["norm", "flow"])] == ["norm", "flow"]
    for wrong in ("nrom", "norm:x=1", "health:dying=1", "health:vanishing", "health:exploding=x"):
        with pytest.raises(TrainingError):
            make_hooks([wrong])
    with pytest.raises(TrainingError, match=r"vanish below 2\.0 and explode above 1\.0"):
        Health(vanishing=2.0, exploding=1.0)
    with pytest.raises(ConfigError, match=r"training\.hooks.*helth"):
        Settings.from_dict({"training": {"hooks": ["norm", "helth"]}})
    chosen = Settings.from_dict({"training": {"hooks": ["health:vanishing=1e-9", "flow"]}})
    assert chosen.training.hooks == ["health:vanishing=1e-9", "flow"]

    def broken(found: Gradients) -> None:
        raise KeyError("mine")

    with pytest.raises(TrainingError, match="The gradient hook mine failed: KeyError"):
        Custom("mine", broken).look(gradients(layers__0__x=torch.ones(1)))


def test_a_function_or_a_class_gets_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shammah.training.hooks.HOOKS", dict(HOOKS))

    def count(found: Gradients) -> dict[str, float]:
        return {"count": float(len(found.names))}

    class Counting:
        name = "counting"

        def look(self, found: Gradients) -> Report:
            return Report(count(found))

    register("count", count)
    register("counting", Counting)
    register("made", lambda: Custom("made", count))
    made = make_hooks(["count", "counting", "made"])
    assert [hook.name for hook in made] == ["count", "counting", "made"]
    for hook in made:
        assert hook.look(gradients(a__x=torch.ones(1))).figures == {"count": 1.0}
    with pytest.raises(TrainingError, match="There is a gradient hook count already"):
        register("count", count)
    with pytest.raises(TrainingError, match="no function of the gradients alone"):
        register("two", lambda first, second: None)  # type: ignore[arg-type, misc]
    with pytest.raises(TrainingError, match="no function and no class"):
        register("five", 5)  # type: ignore[arg-type]


def test_layers() -> None:
    for name, layer in (
        ("base_model.model.model.layers.11.mlp.up_proj.lora_A.weight", "layers.11"),
        ("base_model.model.transformer.h.3.attn.c_attn.lora_B.weight", "h.3"),
        ("base_model.model.embed.lora_A.weight", "base_model.model.embed"),
    ):
        assert layer_of(name) == layer
    assert re.match(r"layers", layer_of("layers.0.x"))


def test_a_job_prints_issues_and_draws_the_flow(tmp_path: Path) -> None:
    """Through the worker: what a hook says there is said here, and its figures are in the store."""
    line = '{"query": "What is my dog called?", "correction": "Your dog is called Biscuit."}\n'
    given = shammah(tmp_path, "feedback", "import", "-", given=line)
    assert given.returncode == 0, given.stderr
    for key, value in (("training.epochs", "2"), ("training.max_steps", "2")):
        shammah(tmp_path, "config", "set", key, value)
    wrong = shammah(tmp_path, "train", "now", "--hooks", "norm,helth")
    assert wrong.returncode != 0 and "'helth' is no hook" in wrong.stderr
    without = shammah(tmp_path, "train", "now", "--report")
    assert without.returncode == 2 and "--wait" in without.stderr
    done = shammah(
        tmp_path, "train", "now", "--wait", "--report",
        "--hooks", "norm,health:vanishing=0,exploding=1e-6",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"Step 1: the gradient explodes in \d+ of \d+ tensors", done.stderr)
    rows = [row.split() for row in done.stdout.splitlines() if row.startswith("layers.")]
    assert [row[0] for row in rows] == ["layers.4", "layers.5"]
    (run,) = shammah_json(tmp_path, "runs", "list")
    shown = shammah_json(tmp_path, "runs", "show", run["run"])
    names = {metric["metric"] for metric in shown["metrics"]}
    assert {"gradients/norm", "gradients/exploding", "gradients/flow/layers.4"} <= names
