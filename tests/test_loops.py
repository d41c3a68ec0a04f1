"""The loop under all methods, and supervised fine-tuning on it."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from shammah.datasets.opening import open_dataset
from shammah.errors import DivergenceError, StorageError, TrainingError, UsageError
from shammah.messages import assistant, user
from shammah.models.load import BaseModel, load_base_model
from shammah.ports.datum import Datum
from shammah.ports.training_client import TrainingClient
from shammah.renderers.base import RenderedExample
from shammah.renderers.registry import renderer_for
from shammah.settings import LoraSettings, ModelSettings, TrainingSettings
from shammah.tracking import telemetry
from shammah.training.best import best_in
from shammah.training.checkpoint import latest_checkpoint, read_loop
from shammah.training.datums import from_tokens
from shammah.training.local_client import LocalTrainingClient
from shammah.training.loops.engine import Callbacks, LoopResult, StepFigures, run_loop
from shammah.training.loops.settings import LoopSettings
from shammah.training.loops.supervised import Supervised, datums_of, nll
from shammah.training.schedule import learning_rate
from shammah.training.structures import structured

MIXED = "0.55 cross_entropy, 0.1 topological, 0.15 chirality, 0.2 citation_validity"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    path = tiny_models.build("qwen2", tmp_path_factory.mktemp("model"))
    return load_base_model(ModelSettings(name=str(path), device="cpu", dtype="fp32"))


@pytest.fixture
def client(model: BaseModel) -> Any:
    made = client_of(model)
    yield made
    made.close()


def client_of(model: BaseModel) -> LocalTrainingClient:
    # Dropout, so that random states count.
    lora = LoraSettings(rank=4, dropout=0.1, target_modules="all-linear")
    return LocalTrainingClient(model, lora, TrainingSettings(seed=3))


def example(seed: int, length: int = 20) -> Datum:
    tokens = np.random.default_rng(seed).integers(0, 250, length).tolist()
    return from_tokens(tokens, [0.0] * 8 + [1.0] * (length - 8), float(length - 8))


def material(first: int = 0) -> list[Datum]:
    return [example(seed, 14 + 3 * (seed % 4)) for seed in range(first, first + 10)]


def method(**given: Any) -> Supervised:
    return Supervised(
        material(), **{"held_out": material()[:4], "batch_size": 3, "seed": 5, **given}
    )


SETTINGS = LoopSettings(learning_rate=1e-2, epochs=3, warmup_steps=2, schedule="cosine")


def state(client: LocalTrainingClient) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in client.lora.named_parameters().items()}


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name.split("_")[1]) for path in folder.glob("step_*"))


def asked_after(steps: int) -> Callable[[], bool]:
    """Stops a run after so many steps."""
    asked = iter(range(steps + 1))
    return lambda: next(asked) == steps


def same(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, right[name]) for name, tensor in left.items())


# --- schedules


@pytest.mark.parametrize(
    ("schedule", "formula"),
    [
        ("constant", lambda x: 1.0),
        ("linear", lambda x: 1 - x),
        ("cosine", lambda x: (1 + math.cos(math.pi * x)) / 2),
        ("polynomial", lambda x: (1 - x) ** 3),
        ("exponential", lambda x: math.exp(x * math.log(0.05))),
    ],
)
def test_schedules(schedule: Any, formula: Callable[[float], float]) -> None:
    settings = LoopSettings(learning_rate=0.2, schedule=schedule, warmup_steps=4)
    rates = [learning_rate(n, 24, settings, power=3.0, final_share=0.05) for n in range(25)]
    assert rates[:4] == pytest.approx([0.05, 0.1, 0.15, 0.2])
    assert rates[4:] == pytest.approx([0.2 * formula(n / 20) for n in range(21)], abs=1e-12)


async def test_the_loop_steps_by_its_schedule(client: LocalTrainingClient) -> None:
    for schedule, last in (("polynomial", 0.25**1.5), ("exponential", 0.1**0.75)):
        rates: list[float] = []
        settings = LoopSettings(
            learning_rate=1e-3, schedule=schedule, power=1.5, final_share=0.1  # type: ignore[arg-type]
        )  # fmt: skip
        told = Callbacks(on_step_end=[lambda step, to=rates: to.append(step["learning_rate"])])
        await run_loop(client, method(held_out=()), settings, callbacks=told)
        assert (len(rates), rates[0]) == (4, 1e-3)
        assert rates[-1] == pytest.approx(1e-3 * last)


# --- steps


async def test_a_window_is_one_mean_however_it_is_divided(client: LocalTrainingClient) -> None:
    begin = await client.copy_state()
    settings = SETTINGS.model_copy(update={"epochs": 1})
    found = []
    for at_once in (0, 30):
        await client.restore_state(begin)
        result = await run_loop(client, method(tokens_at_once=at_once, held_out=()), settings)
        found.append(result.losses)
    # Dropout draws otherwise, so the first step alone, before which B is zero, is the same.
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    await client.restore_state(begin)
    one = method()
    figures = await one.step(client, 0)
    window = [material()[index] for index in one._window(0)]
    output = await client.forward(window)
    tokens = sum(
        nll(each, logprobs)[0] for each, logprobs in zip(window, output.logprobs, strict=True)
    )
    assert figures.loss == pytest.approx(output.loss / tokens, rel=1e-5)
    assert figures.tokens == output.tokens


async def test_each_epoch_has_every_example_once_in_an_order_of_its_own() -> None:
    one, again = method(), method()
    epochs = [
        [index for step in range(4) for index in one._window(4 * epoch + step)]
        for epoch in range(3)
    ]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert again._window(9) == one._window(9) and method(seed=6)._window(9) != one._window(9)
    pairs = Supervised(material(), loss="reward_bradley_terry", batch_size=2)
    window = pairs._window(0)
    assert [index + 1 for index in window[::2]] == window[1::2]
    assert all(index % 2 == 0 for index in window[::2])


async def test_what_an_evaluation_says(client: LocalTrainingClient) -> None:
    held = [from_tokens(list(range(30, 42)), [0.0] * 4 + [1.0] * 8), example(77)]
    one = Supervised(held, held_out=held)
    await run_loop(client, one, LoopSettings(learning_rate=2e-2, schedule="constant", epochs=3))
    figures = await one.evaluate(client)
    output = await client.forward(held)
    by_hand = np.concatenate(
        [
            -lp[d.loss_fn_inputs["weights"].data > 0]
            for d, lp in zip(held, output.logprobs, strict=True)
        ]
    )
    assert figures["nll_per_token"] == pytest.approx(by_hand.mean(), rel=1e-6)
    assert figures["exact"] == np.mean(output.greedy)


def test_what_cannot_be_learned() -> None:
    with pytest.raises(TrainingError, match="0 examples"):
        Supervised([])
    with pytest.raises(TrainingError, match="takes 2 datums"):
        Supervised(material()[:3], loss="reward_bradley_terry")
    with pytest.raises(TrainingError, match="Did you mean"):
        Supervised(material(), loss="cross_entrpy")
    with pytest.raises(TrainingError, match="needs 'slots'"):
        Supervised(material(), loss=MIXED)


# --- going on


@pytest.mark.parametrize("every", [0, 2])
async def test_a_run_that_goes_on_is_the_same_to_the_bit(
    model: BaseModel, tmp_path: Path, every: int
) -> None:
    settings = SETTINGS.model_copy(update={"checkpoint_every": every, "evaluate_every": 3})
    client = client_of(model)
    whole = await run_loop(client, method(), settings, folder=tmp_path / "whole")
    wanted, final = whole.losses, state(client)
    client.close()
    assert len(wanted) == 12 and whole.ended == "done" and whole.figures != whole.before
    for stop in (1, 5, 11):
        folder = tmp_path / f"stopped-{stop}"
        client = client_of(model)
        first = await run_loop(
            client, method(), settings, folder=folder, should_stop=asked_after(stop)
        )
        assert first.stopped and first.steps == stop
        client.close()
        torch.rand(7)
        client = client_of(model)
        rest = await run_loop(client, method(), settings, folder=folder)
        assert first.losses + rest.losses == wanted
        assert same(state(client), final) and rest.figures == whole.figures
        assert (rest.before, rest.tokens) == (whole.before, whole.tokens)
        client.close()


async def test_a_crash_leaves_the_checkpoint_before(model: BaseModel, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"checkpoint_every": 2})
    client = client_of(model)
    wanted = (await run_loop(client, method(), settings, folder=tmp_path / "whole")).losses
    client.close()

    def crash(step: dict[str, Any]) -> None:
        if step["step"] == 5:
            raise KeyboardInterrupt

    client = client_of(model)
    with pytest.raises(KeyboardInterrupt):
        await run_loop(
            client, method(), settings, folder=tmp_path / "run",
            callbacks=Callbacks(on_step_end=[crash]),
        )  # fmt: skip
    client.close()
    # And one that was half written.
    (tmp_path / "run" / "step_000006").mkdir()
    found = latest_checkpoint(tmp_path / "run")
    assert found is not None and found.name == "step_000004"
    client = client_of(model)
    rest = await run_loop(client, method(), settings, folder=tmp_path / "run")
    assert rest.losses == wanted[4:]
    client.close()


async def test_a_checkpoint_of_something_else_is_refused(
    client: LocalTrainingClient, tmp_path: Path
) -> None:
    settings = LoopSettings(learning_rate=1e-3, max_steps=1)
    await run_loop(client, method(), settings, folder=tmp_path)
    for other, changed in (
        (Supervised(material(1), batch_size=3, seed=5), settings),
        (method(seed=6), settings),
        (method(batch_size=2), settings),
        (method(), settings.model_copy(update={"learning_rate": 2e-3})),
        (method(), settings.model_copy(update={"max_steps": 2})),
    ):
        with pytest.raises(TrainingError, match="another method, material or settings"):
            await run_loop(client, other, changed, folder=tmp_path)
    result = await run_loop(client, method(), settings, folder=tmp_path)
    assert (result.steps, result.losses) == (1, ())


async def test_a_run_of_a_constant_rate_can_be_made_longer(
    client: LocalTrainingClient, tmp_path: Path
) -> None:
    settings = LoopSettings(learning_rate=1e-3, schedule="constant", max_steps=2)
    await run_loop(client, method(), settings, folder=tmp_path)
    longer = settings.model_copy(update={"max_steps": 0, "epochs": 2})
    assert len((await run_loop(client, method(), longer, folder=tmp_path)).losses) == 6


# --- checkpoints


async def test_the_last_checkpoints_are_kept(client: LocalTrainingClient, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"checkpoint_every": 2, "keep_last": 3})
    at: dict[int, dict[str, torch.Tensor]] = {}
    told = Callbacks(on_step_end=[lambda step: at.__setitem__(step["step"], state(client))])
    await run_loop(client, method(), settings, folder=tmp_path, callbacks=told)
    assert checkpoints(tmp_path) == [8, 10, 12]
    # What was written beside training is the state of its step.
    for step in (8, 10, 12):
        checkpoint = tmp_path / f"step_{step:06d}"
        assert read_loop(checkpoint)["step"] == step
        await client.load_state(checkpoint)
        assert same(state(client), at[step])


async def test_files_are_written_while_training_goes_on(
    client: LocalTrainingClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow disk does not hold the steps up until the next checkpoint is due, and only one is
    written at a time."""
    from shammah.training import local_client

    steps: list[int] = []
    writing: list[tuple[str, int]] = []
    go_on = threading.Event()
    original = local_client.LocalState.write

    def slow(self: Any, folder: Path) -> None:
        assert threading.current_thread() is not threading.main_thread()
        writing.append(("begins", len(steps)))
        if len(writing) == 1:
            assert go_on.wait(20)
        original(self, folder)
        writing.append(("ends", len(steps)))

    monkeypatch.setattr(local_client.LocalState, "write", slow)

    def note(step: dict[str, Any]) -> None:
        steps.append(step["step"])
        if step["step"] == 6:
            go_on.set()

    saved: list[dict[str, Any]] = []
    result = await run_loop(
        client, method(), SETTINGS.model_copy(update={"checkpoint_every": 4}), folder=tmp_path,
        callbacks=Callbacks(on_step_end=[note], on_checkpoint=[saved.append]),
    )  # fmt: skip
    assert result.steps == 12
    assert writing[0] == ("begins", 4) and writing[1][0] == "ends" and writing[1][1] >= 6
    assert [kind for kind, _ in writing] == ["begins", "ends"] * 3
    assert [each["step"] for each in saved] == [4, 8, 12]
    assert saved[-1]["folder"] == str(latest_checkpoint(tmp_path))


async def test_a_checkpoint_that_cannot_be_written_is_told(
    client: LocalTrainingClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shammah.training import local_client

    original = local_client.LocalState.write
    writes = 0

    def full(self: Any, folder: Path) -> None:
        nonlocal writes
        writes += 1
        original(self, folder)
        if writes == 2:
            raise StorageError("The disk is full.")

    monkeypatch.setattr(local_client.LocalState, "write", full)
    settings = SETTINGS.model_copy(update={"checkpoint_every": 2})
    with pytest.raises(StorageError, match="full"):
        await run_loop(client, method(), settings, folder=tmp_path)
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.name == "step_000002"


class Elsewhere:
    """A client that cannot copy its state, as one behind a network."""

    def __init__(self, inner: LocalTrainingClient) -> None:
        for name in (
            "info", "forward_backward", "forward", "optim_step", "save_state", "load_state",
            "save_weights", "forward_backward_custom", "sampler", "close",
        ):  # fmt: skip
            setattr(self, name, getattr(inner, name))


async def test_a_client_that_cannot_copy_its_state(
    client: LocalTrainingClient, tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"checkpoint_every": 5, "keep_last": 2})
    there: Any = Elsewhere(client)
    result = await run_loop(there, Exploding(at=7), settings, folder=tmp_path / "a")
    assert result.ended == "done"
    assert checkpoints(tmp_path / "a") == [10, 12]
    settings = settings.model_copy(update={"explosion": 1e-9, "epochs": 40})
    with pytest.raises(DivergenceError, match="as it was after step 20"):
        await run_loop(there, method(), settings, folder=tmp_path / "b")


# --- the end of it


class Scored(Supervised):
    """Says figures of its own in evaluations."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__(material(), batch_size=3, seed=5)
        self.scores = list(scores)

    async def evaluate(self, client: TrainingClient) -> Mapping[str, float]:
        return {"score": self.scores.pop(0)}


async def test_it_ends_where_nothing_gets_better_and_with_the_best(
    client: LocalTrainingClient, tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(
        update={
            "evaluate_every": 1, "patience": 3, "best_metric": "score", "best_lower": False,
            "min_delta": 0.05, "restore_best": True, "checkpoint_every": 4,
        }
    )  # fmt: skip
    at: dict[int, dict[str, torch.Tensor]] = {}
    told = Callbacks(on_step_end=[lambda step: at.__setitem__(step["step"], state(client))])
    # Step 3 is better than 2, by too little for patience.
    scores = [0.1, 0.2, 0.5, 0.52, float("nan"), 0.4, 0.9]
    result = await run_loop(client, Scored(scores), settings, folder=tmp_path, callbacks=told)
    assert (result.ended, result.steps, result.best_step) == ("nothing gets better", 5, 3)
    assert result.figures == {"score": 0.52} and result.before == {"score": 0.1}
    assert same(state(client), at[3]) and not same(at[3], at[5])
    record = best_in(tmp_path / "best")
    assert record is not None and (record.step, record.value) == (3, 0.52)
    names = sorted(path.name for path in (tmp_path / "best").iterdir())
    assert names == ["best.json", "best_000003", "best_000003.safetensors"]
    # It is over: going on with it evaluates nothing, and ends the same.
    again = await run_loop(client, Scored([]), settings, folder=tmp_path)
    assert (again.ended, again.losses, again.best_step) == ("nothing gets better", (), 3)
    assert same(state(client), at[3])


async def test_what_is_asked_for_has_to_be_there(
    client: LocalTrainingClient, tmp_path: Path
) -> None:
    for wrong, folder in (
        ({"checkpoint_every": 1}, None),
        ({"patience": 1}, tmp_path / "a"),
        ({"best_metric": "accuracy"}, tmp_path / "b"),
    ):
        with pytest.raises(UsageError):
            await run_loop(client, method(), LoopSettings(**wrong), folder=folder)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="Nothing is evaluated"):
        await run_loop(client, method(held_out=()), LoopSettings(best_metric="nll_per_token"))


# --- divergence


class Exploding(Supervised):
    """Multiplies its loss, or makes it no number, at a step."""

    def __init__(self, at: int, factor: float = 1.0) -> None:
        super().__init__(material(), batch_size=3, seed=5)
        self.at, self.factor = at, factor

    async def step(self, client: TrainingClient, number: int) -> StepFigures:
        found = await super().step(client, number)
        if number != self.at:
            return found
        return StepFigures(found.loss * self.factor, found.tokens, found.measures)


@pytest.mark.parametrize(("factor", "at"), [(float("nan"), 5), (50.0, 25)])
async def test_a_loss_that_explodes_leaves_the_last_good_state(
    client: LocalTrainingClient, tmp_path: Path, factor: float, at: int
) -> None:
    """The loss of step `at` was made by the step before it: the state before that was good."""
    settings = SETTINGS.model_copy(
        update={"epochs": 8, "explosion": 10.0, "checkpoint_every": 5, "keep_last": 9}
    )
    states: dict[int, dict[str, torch.Tensor]] = {}
    told = Callbacks(on_step_end=[lambda step: states.__setitem__(step["step"], state(client))])
    with pytest.raises(DivergenceError, match=f"at step {at + 1}: .* after step {at - 1}"):
        await run_loop(client, Exploding(at, factor), settings, folder=tmp_path, callbacks=told)
    assert same(state(client), states[at - 1]) and not same(state(client), states[at])
    assert (await client.info()).step == at - 1
    found = latest_checkpoint(tmp_path)
    assert found is not None and read_loop(found)["step"] == at - 1
    # The one after the bad step is gone, those before it are there.
    assert checkpoints(tmp_path) == [*range(5, at, 5), at - 1]
    # And it can go on from there.
    result = await run_loop(client, Exploding(99), settings, folder=tmp_path)
    assert result.steps == 32 and len(result.losses) == 32 - at + 1


async def test_weights_that_are_no_numbers_are_caught(client: LocalTrainingClient) -> None:
    good: dict[str, torch.Tensor] = {}

    def spoil(step: dict[str, Any]) -> None:
        if step["step"] == 2:
            good.update(state(client))
        if step["step"] == 3:
            with torch.no_grad():
                next(iter(client.lora.named_parameters().values())).fill_(float("nan"))

    with pytest.raises(DivergenceError, match="after step 2"):
        await run_loop(client, method(), SETTINGS, callbacks=Callbacks(on_step_end=[spoil]))
    assert same(state(client), good)


# --- who is told


async def test_callbacks_and_telemetry(client: LocalTrainingClient, tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    finished: list[str] = []

    def plain(name: str) -> Callable[[dict[str, Any]], None]:
        return lambda about: told.append((name, about["step"]))

    async def later(about: dict[str, Any]) -> None:
        await asyncio.sleep(0.001)
        finished.append(str(about["step"]))

    events: list[str] = []
    settings = SETTINGS.model_copy(
        update={"epochs": 2, "evaluate_every": 3, "checkpoint_every": 4, "max_steps": 7}
    )
    callbacks = Callbacks(
        on_step_end=[plain("step"), later],
        on_epoch_end=[plain("epoch")],
        on_checkpoint=[plain("checkpoint"), later],
        on_eval=[plain("eval")],
    )
    names = ["training.start", "training.step", "training.eval", "training.complete"]
    with telemetry.attached("loops", names, lambda name, *rest: events.append(name)):
        result = await run_loop(client, method(), settings, folder=tmp_path, callbacks=callbacks)
    by_name = {name: [step for other, step in told if other == name] for name, _ in told}
    assert by_name == {
        "step": [1, 2, 3, 4, 5, 6, 7],
        "eval": [0, 3, 6, 7],
        "epoch": [4],
        "checkpoint": [4, 7],
    }
    assert len(finished) == 9
    assert events.count("training.step") == 7 and events.count("training.eval") == 4
    assert (events[0], events[-1]) == ("training.start", "training.complete")
    assert isinstance(result, LoopResult) and result.epochs == 2


# --- real rows


async def test_scifact_with_a_mixture_and_hooks(
    embedded_model: BaseModel, shared_data: Callable[[str], Path], tmp_path: Path
) -> None:
    """Verdicts as graphs of claims with citations: every part of the loss falls, on held-out rows
    too, and hooks see each step."""
    renderer = renderer_for(embedded_model.tokenizer, embedded_model.stop_tokens)
    corpus = {}
    for line in (shared_data("scifact/corpus.jsonl")).read_text().splitlines():
        row = json.loads(line)
        corpus[str(row["doc_id"])] = row["title"]
    made: list[Datum] = []
    for row in open_dataset(shared_data("scifact/claims_train.jsonl")).take(60).examples("scifact"):
        label = row.metadata["label"]
        shown = list(row.metadata["shown"])
        if label == "NOT_ENOUGH_INFO" or not shown:
            continue
        word = "supports" if label == "SUPPORT" else "refutes"
        question = row.messages[-2].content.splitlines()[0][:120]
        answer = f"CLAIM[c1]: It holds.\nCLAIM[c2]: See [{shown[0]}].\nRELATION: c2 {word} c1"

        def render(text: str, question: str = question) -> RenderedExample:
            return renderer.supervised((user(question), assistant(text)))

        made.append(structured(answer, render, shown=[*shown, "7", "12"], weight=1.0))
    plain, left_out = datums_of(
        open_dataset(shared_data("scifact/claims_dev.jsonl")).take(6).examples("scifact"), renderer
    )
    assert len(plain) + left_out == 6 and plain
    assert len(made) >= 20
    client = LocalTrainingClient(
        embedded_model, LoraSettings(rank=4), TrainingSettings(hooks=["norm", "flow", "health"])
    )
    looked: list[str] = []
    try:
        one = Supervised(made[6:22], held_out=made[:6], loss=MIXED, batch_size=4, seed=1)
        settings = LoopSettings(learning_rate=5e-3, epochs=4, schedule="cosine", warmup_steps=2)
        with telemetry.attached(
            "scifact", ["training.gradients"], lambda _, __, about: looked.append(about["hook"])
        ):
            result = await run_loop(client, one, settings)
    finally:
        client.close()
    assert result.steps == 16 and looked == ["norm", "flow", "health"] * 16
    assert result.figures["loss"] < 0.7 * result.before["loss"]
    for part in ("nll_per_token", "cross_entropy", "topological", "citation_validity"):
        assert result.figures[part] < result.before[part], part
    assert np.mean(result.losses[-4:]) < 0.7 * result.losses[0]
