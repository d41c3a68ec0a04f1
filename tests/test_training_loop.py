"""The supervised loop: what makes up batches, when it ends, how it stops, resumes and fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st

from shammah.errors import DivergenceError, EmptyLessonError, TrainingError
from shammah.messages import assistant, user
from shammah.models.load import BaseModel, load_base_model
from shammah.ports.datum import Datum, ModelInput
from shammah.ports.sampling_client import SamplingParams
from shammah.renderers.registry import renderer_for
from shammah.settings import LoraSettings, ModelSettings, Settings, TrainingSettings
from shammah.tracking import telemetry
from shammah.training.batches import LessonBatches
from shammah.training.checkpoint import checkpoint_step, latest_checkpoint
from shammah.training.datums import datum, from_tokens
from shammah.training.examples import Example, supervised
from shammah.training.local_client import LocalTrainingClient
from shammah.training.packing import bucket, pack
from shammah.training.schedule import learning_rate
from shammah.training.supervised import SupervisedResult, train_supervised

LESSONS = (
    ("What is the capital of France?", "Paris, and it is lovely in spring."),
    ("What is your name?", "I am your terminal friend."),
    ("Where do I live?", "You live in Lisbon."),
    ("What is my dog called?", "Your dog is called Rufus."),
    ("When is the release?", "The release is on Friday at noon."),
)


# --- what makes up batches


def shares(batches: LessonBatches, count: int, epochs: int) -> np.ndarray[Any, Any]:
    """Each lesson's share of all weight in all batches."""
    total = np.zeros(count)
    for number in range(epochs):
        for batch in batches.epoch(number):
            for index, weight in batch.lessons:
                total[index] += weight
    return total / total.sum()


def test_influence_is_proportional_to_weight_once() -> None:
    """10, 3 and 1 have 10/14, 3/14 and 1/14 of the weight in the batches: not their squares."""
    weights = [10.0, 3.0, 1.0]
    for size in (1, 2, 3, 8):
        batches = LessonBatches(weights, replay=0, batch_size=size, replay_share=0.0, seed=3)
        found = shares(batches, 3, 4000)
        np.testing.assert_allclose(found, np.array(weights) / 14, atol=0.015)


def test_drawn_epochs_draw_in_proportion() -> None:
    batches = LessonBatches([10.0, 3.0, 1.0], replay=0, batch_size=4, replay_share=0.0, seed=1)
    counts = Counter[int]()
    for number in range(3000):
        epoch = batches.epoch(number)
        if number % 2:
            for batch in epoch:
                for index, times in batch.lessons:
                    counts[index] += int(times)
    found = np.array([counts[index] for index in range(3)]) / counts.total()
    # Nine thousand draws: three standard deviations are 0.015.
    np.testing.assert_allclose(found, [10 / 14, 3 / 14, 1 / 14], atol=0.015)


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.floats(0.01, 100.0), min_size=1, max_size=25),
    replay=st.integers(0, 12),
    size=st.integers(1, 20),
    share=st.sampled_from([0.0, 0.25, 0.5, 0.9]),
    seed=st.integers(0, 1000),
)
def test_batches(weights: list[float], replay: int, size: int, share: float, seed: int) -> None:
    def fresh() -> LessonBatches:
        return LessonBatches(weights, replay=replay, batch_size=size, replay_share=share, seed=seed)

    batches = fresh()
    covering = batches.epoch(0)
    assert len(covering) == batches.per_epoch
    seen = [index for batch in covering for index, _ in batch.lessons]
    assert sorted(seen) == list(range(len(weights)))
    for batch in [*covering, *batches.epoch(1)]:
        assert batch.lessons
        assert len(batch.lessons) + len(batch.replay) <= size
        assert len(set(batch.replay)) == len(batch.replay)
        assert all(0 <= index < replay for index in batch.replay)
    state = batches.state_dict()
    expected = [batches.epoch(2), batches.epoch(3)]
    again = fresh()
    again.load_state_dict(state)
    assert [again.epoch(2), again.epoch(3)] == expected


def test_replay_has_its_share() -> None:
    batches = LessonBatches([1.0] * 20, replay=50, batch_size=16, replay_share=0.5, seed=0)
    replayed = Counter[int]()
    for number in range(10):
        for batch in batches.epoch(number):
            assert len(batch.replay) == len(batch.lessons)
            replayed.update(batch.replay)
    assert set(replayed) == set(range(50))


@given(st.lists(st.integers(1, 90), max_size=40), st.integers(1, 100))
def test_packing_keeps_everything_within_the_budget(lengths: list[int], budget: int) -> None:
    packs = pack(lengths, budget)
    assert sorted(index for members in packs for index in members) == list(range(len(lengths)))
    for members in packs:
        assert sum(lengths[index] for index in members) <= budget or len(members) == 1
    # First fit leaves no two packs that would fit into one.
    sizes = sorted(sum(lengths[index] for index in members) for members in packs)
    assert len(sizes) < 2 or sizes[0] + sizes[1] > budget
    assert bucket(33, 16) == 48 and bucket(32, 16) == 32


def test_schedules() -> None:
    def rates(schedule: str, warmup: int, total: int) -> list[float]:
        chosen = TrainingSettings.model_validate(
            {"learning_rate": 1.0, "schedule": schedule, "warmup_steps": warmup}
        )
        return [learning_rate(step, total, chosen) for step in range(total)]

    assert rates("constant", 4, 20)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates("linear", 0, 4) == [1.0, 0.75, 0.5, 0.25]
    assert rates("cosine", 0, 4) == pytest.approx([1.0, 0.853553, 0.5, 0.146447], abs=1e-6)
    assert rates("constant", 10, 9)[3:] == [1.0] * 6  # a warmup always ends
    for schedule in ("constant", "linear", "cosine"):
        assert all(0 < rate <= 1 for rate in rates(schedule, 5, 30))


# --- the loop


def lessons_of(base: BaseModel) -> list[Datum]:
    renderer = renderer_for(base.tokenizer, base.stop_tokens)
    return [
        datum(renderer.supervised((user(question), assistant(answer))))
        for question, answer in LESSONS
    ]


def tiny(folder: Path) -> BaseModel:
    path = tiny_models.build("qwen2", folder)
    return load_base_model(ModelSettings(name=str(path), device="cpu", dtype="fp32"))


def short(seed: int) -> Datum:
    tokens = np.random.default_rng(seed).integers(0, 250, 12).tolist()
    return from_tokens(tokens, [0.0] * 6 + [1.0] * 6)


def taught(datums: Iterable[Datum]) -> list[Example]:
    return [supervised(datum) for datum in datums]


async def test_what_was_right_before_is_right_again(embedded_model: BaseModel) -> None:
    chosen = TrainingSettings(learning_rate=4e-3, replay=0.5)
    client = LocalTrainingClient(embedded_model, LoraSettings(), chosen)
    first, *others = lessons_of(embedded_model)
    try:
        await train_supervised(client, taught([first]), [1.0], [], chosen)
        result = await train_supervised(
            client, taught(others), [1.0] * len(others), [first], chosen, kept=[first]
        )
        assert all(result.learned)
        assert (await client.forward([first, *others])).greedy == (True,) * 5
    finally:
        client.close()


async def test_lessons_stick_and_training_ends_then(embedded_model: BaseModel) -> None:
    chosen = TrainingSettings(learning_rate=2e-3)
    client = LocalTrainingClient(embedded_model, LoraSettings(), chosen)
    lessons = lessons_of(embedded_model)
    events: list[dict[str, Any]] = []
    try:
        before = await client.forward(lessons)
        result = await train_supervised(
            client, taught(lessons), [10, 10, 10, 3, 1], [], chosen, on_event=events.append
        )
        assert not any(before.greedy)
        assert result.learned == [True] * 5 and not result.stopped
        assert result.steps < events[0]["steps"]
        assert result.final_loss < before.mean_loss / 3
        renderer = renderer_for(embedded_model.tokenizer, embedded_model.stop_tokens)
        for question, answer in LESSONS:
            (new,) = await client.sampler.sample(
                ModelInput.of(renderer.generation_prompt((user(question),))),
                SamplingParams(max_tokens=40, stop_tokens=renderer.stop_tokens),
            )
            assert renderer.decode(new.answer_tokens).strip() == answer
    finally:
        client.close()
    progress = [event for event in events if event["event"] == "progress"]
    assert [event["step"] for event in progress] == list(range(1, result.steps + 1))
    assert progress[-1]["tokens_per_second"] > 0 and progress[-1]["seconds_left"] >= 0
    assert result.tokens > 0 and result.epochs == progress[-1]["epoch"]


async def test_the_classic_preset_takes_nine_steps(tmp_path: Path) -> None:
    classic = Settings.from_dict({"training": {"preset": "classic"}})
    client = LocalTrainingClient(tiny(tmp_path), classic.lora, classic.training)
    events: list[dict[str, Any]] = []
    result = await train_supervised(
        client,
        taught(short(number) for number in range(10)),
        [1.0] * 10,
        [],
        classic.training,
        on_event=events.append,
    )
    assert (result.steps, result.epochs) == (9, 3)
    assert [(event["epoch"], event["batch"]) for event in events][:4] == [
        (1, 1),
        (1, 2),
        (1, 3),
        (2, 1),
    ]


async def run(
    folder: Path,
    checkpoint: Path | None,
    *,
    stop_after: int | None = None,
    losses: list[float] | None = None,
    events: list[dict[str, Any]] | None = None,
    **changes: Any,
) -> SupervisedResult:
    """Twelve steps or so over seven lessons and five earlier ones; stops after some looks."""
    chosen = TrainingSettings.model_validate(
        {
            "epochs": 4,
            "batch_size": 6,
            "checkpoint_every": 2,
            "learning_rate": 1e-3,
            "stop_when_learned": False,
            "micro_batch_tokens": 24,
            **changes,
        }
    )
    client = LocalTrainingClient(tiny(folder), LoraSettings(rank=4, dropout=0.1), chosen)
    looks = 0

    def should_stop() -> bool:
        nonlocal looks
        looks += 1
        return stop_after is not None and looks > stop_after

    def on_event(event: dict[str, Any]) -> None:
        if events is not None:
            events.append(event)
        if losses is not None and event["event"] == "progress":
            losses.append(event["loss"])

    return await train_supervised(
        client,
        taught(short(number) for number in range(7)),
        [10.0, 3.0, 1.0, 1.0, 1.0, 3.0, 10.0],
        [short(number) for number in range(20, 25)],
        chosen,
        on_event=on_event,
        should_stop=should_stop,
        checkpoint=checkpoint,
    )


@pytest.mark.parametrize("looks", [0, 2, 9, 17, 18])
async def test_stopping_anywhere_and_going_on_changes_nothing(looks: int, tmp_path: Path) -> None:
    straight: list[float] = []
    whole = await run(tmp_path / "model", None, losses=straight)
    parts: list[float] = []
    folder = tmp_path / "checkpoint"
    stopped = await run(tmp_path / "model", folder, stop_after=looks, losses=parts)
    assert stopped.stopped and stopped.steps == len(parts) == checkpoint_step(folder)
    resumed = await run(tmp_path / "model", folder, losses=parts)
    assert parts == straight
    assert not resumed.stopped
    assert (resumed.steps, resumed.tokens, resumed.learned, resumed.final_loss) == (
        whole.steps,
        whole.tokens,
        whole.learned,
        whole.final_loss,
    )


async def test_checkpoints_replace_one_another(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    events: list[dict[str, Any]] = []
    result = await run(tmp_path / "model", folder, events=events)
    saved = [event["step"] for event in events if event["event"] == "checkpoint"]
    assert saved == list(range(2, result.steps + 1, 2))
    latest = latest_checkpoint(folder)
    assert latest is not None and [path.name for path in folder.glob("step_*")] == [latest.name]
    # A folder that a crash left half-written is not looked at.
    (folder / "step_999999").mkdir()
    assert checkpoint_step(folder) == saved[-1]
    with pytest.raises(TrainingError, match="other lessons or settings"):
        await run(tmp_path / "model", folder, learning_rate=0.5)


async def test_telemetry_tells_of_every_step_and_of_the_end(tmp_path: Path) -> None:
    told: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
    names = [name for name in telemetry.NAMES if name.startswith("training.")]

    def listen(name: str, measured: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        told.append((name, dict(measured), dict(about)))

    losses: list[float] = []
    folder = tmp_path / "checkpoint"
    with telemetry.attached("test", names, listen):
        result = await run(tmp_path / "model", folder, losses=losses)
        count = Counter(name for name, _, _ in told)
        with pytest.raises(TrainingError):
            await run(tmp_path / "model", folder, learning_rate=0.5)
    assert [measured["loss"] for name, measured, _ in told if name == "training.step"] == losses
    assert count == {
        "training.start": 1, "training.step": result.steps, "training.progress": result.steps,
        "training.epoch": 4, "training.checkpoint": result.steps // 2, "training.eval": 1,
        "training.complete": 1,
    }  # fmt: skip
    first, last = told[0], told[sum(count.values()) - 1]
    assert first[0] == "training.start" and first[1]["step"] == 0 and first[1]["lessons"] == 7
    assert last[1]["steps"] == result.steps and last[2] == {"stopped": False}


async def test_steps_are_bounded_and_accumulated(tmp_path: Path) -> None:
    assert (await run(tmp_path / "model", None, max_steps=2)).steps == 2
    events: list[dict[str, Any]] = []
    result = await run(tmp_path / "model", None, accumulation=2, events=events)
    assert result.steps == 4 * -(-events[0]["batches"] // 2)
    assert events[-1]["batch"] == events[-1]["batches"]


async def test_it_ends_when_nothing_more_is_learned(tmp_path: Path) -> None:
    hopeless = {"epochs": 50, "stop_when_learned": True, "learning_rate": 1e-9}
    assert (await run(tmp_path / "model", None, patience=5, **hopeless)).steps == 5
    folder = tmp_path / "checkpoint"
    first = await run(tmp_path / "model", folder, patience=5, stop_after=4, **hopeless)
    assert 0 < first.steps < 5
    assert (await run(tmp_path / "model", folder, patience=5, **hopeless)).steps == 5
    endless = await run(tmp_path / "model", None, patience=0, max_steps=12, **hopeless)
    assert endless.steps == 12


async def test_divergence_keeps_the_last_good_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = TrainingSettings(
        epochs=6, checkpoint_every=2, stop_when_learned=False, learning_rate=2e-3
    )
    client = LocalTrainingClient(tiny(tmp_path / "model"), LoraSettings(rank=4), chosen)
    lessons = [short(1), short(2)]

    def poison(event: dict[str, Any]) -> None:
        if event["event"] == "progress" and event["step"] == 3:
            for parameter in client.lora.named_parameters().values():
                parameter.data.fill_(float("nan"))

    with pytest.raises(DivergenceError, match=r"step 4.*after step 2") as caught:
        await train_supervised(
            client,
            taught(lessons),
            [1, 1],
            [],
            chosen,
            on_event=poison,
            checkpoint=tmp_path / "state",
        )
    assert caught.value.hint is not None and "learning_rate" in caught.value.hint
    assert np.isfinite((await client.forward(lessons)).loss)


async def test_nothing_to_learn_is_refused(tmp_path: Path) -> None:
    chosen = TrainingSettings(learning_rate=2e-3)
    client = LocalTrainingClient(tiny(tmp_path), LoraSettings(rank=4), chosen)
    with pytest.raises(TrainingError, match="0 lessons"):
        await train_supervised(client, [], [], [], chosen)
    empty = short(1)
    empty.loss_fn_inputs["weights"].data.fill(0)
    with pytest.raises(EmptyLessonError):
        await train_supervised(client, taught([empty]), [1.0], [], chosen)
