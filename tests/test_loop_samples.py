"""Loops that learn from samples: rewards that rise, teachers that are caught up with, and runs that
go on as if they had not been stopped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st

from shammah.backends.openai_logprobs import OpenAILogprobs
from shammah.datasets.formatters.base import ChatExample
from shammah.errors import TrainingError, UsageError
from shammah.messages import Conversation, assistant, user
from shammah.models.load import BaseModel, load_base_model
from shammah.ports.datum import ModelInput
from shammah.ports.sampling_client import BatchSampling, SamplingParams, TopLogprobs
from shammah.ports.training_client import AdamParams
from shammah.renderers.base import Renderer
from shammah.renderers.registry import renderer_for
from shammah.settings import LoraSettings, ModelSettings, TrainingSettings
from shammah.training.datums import datum
from shammah.training.local_client import LocalTrainingClient
from shammah.training.loops.distillation import (
    OffPolicyDistillation,
    OffPolicySettings,
    OnPolicyDistillation,
    OnPolicySettings,
)
from shammah.training.loops.engine import Callbacks, LoopResult, run_loop
from shammah.training.loops.environments import Outcome, Tally, rewarded
from shammah.training.loops.reinforcement import (
    Reinforcement,
    ReinforcementSettings,
    advantages,
    policy_loss,
)
from shammah.training.loops.rollouts import Row, chosen, k3, seed_of
from shammah.training.loops.settings import LoopSettings


def asked(*questions: str) -> list[ChatExample]:
    return [ChatExample((user(question),)) for question in questions]


def sums(*pairs: tuple[int, int]) -> list[ChatExample]:
    return [ChatExample((user(f"what is {a} + {b}?"),), metadata={"sum": a + b}) for a, b in pairs]


@contextmanager
def client_of(base: BaseModel, **lora: Any) -> Iterator[tuple[LocalTrainingClient, Renderer]]:
    client = LocalTrainingClient(base, LoraSettings(**lora), TrainingSettings(seed=1))
    try:
        yield client, renderer_for(base.tokenizer, base.stop_tokens, base.renderer)
    finally:
        client.close()


# --- by hand


def test_advantages_by_hand() -> None:
    assert advantages([1.0, 0.0, 0.0, 3.0]).tolist() == [0.0, -1.0, -1.0, 2.0]
    found = advantages([1.0, 0.0, 0.0, 3.0], divide_by_std=True)
    np.testing.assert_allclose(found, np.array([0, -1, -1, 2]) / np.sqrt(1.5))
    assert advantages([0.7] * 3, divide_by_std=True).tolist() == [0.0, 0.0, 0.0]


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=9), st.booleans())
def test_advantages_have_no_mean(rewards: list[float], divide: bool) -> None:
    found = advantages(rewards, divide_by_std=divide)
    assert abs(found.mean()) < 1e-6 and np.isfinite(found).all()


def test_rows_become_datums() -> None:
    """Read 5, 6; drawn 7, 8; read 9; drawn 4."""
    row = Row([5, 6, 7, 8, 9, 4], [2, 3, 5], [-0.1, -0.2, -0.3], [1.0, 1.0, -2.0], weight=0.5)
    made = row.datum()
    assert made.model_input.tokens == (5, 6, 7, 8, 9)
    inputs = {name: tensor.data.tolist() for name, tensor in made.loss_fn_inputs.items()}
    assert inputs["target_tokens"] == [6, 7, 8, 9, 4]
    assert inputs["weights"] == [0, 0.5, 0.5, 0, 0.5]
    assert inputs["advantages"] == [0, 1, 1, 0, -2]
    np.testing.assert_allclose(inputs["logprobs"], [0, -0.1, -0.2, 0, -0.3], rtol=1e-6)


def test_every_epoch_goes_through_all_and_seeds_follow_from_places() -> None:
    for epoch in range(3):
        batches = [chosen(7, 3, 5, epoch * 3 + at) for at in range(3)]
        assert sorted(index for batch in batches for index in batch) == list(range(7))
    assert chosen(7, 3, 5, 0) != chosen(7, 3, 5, 3)
    assert seed_of(1, 2, 3) == seed_of(1, 2, 3) != seed_of(1, 3, 2)
    of, to = np.log([0.5, 0.25]), np.log([0.25, 0.5])
    assert k3(of, to) == pytest.approx(((0.5 - 1 - np.log(0.5)) + (2 - 1 - np.log(2))) / 2)


def test_what_cannot_be_is_refused() -> None:
    renderer: Any = None
    some = ReinforcementSettings()
    with pytest.raises(TrainingError, match="no prompt"):
        Reinforcement([], rewarded(lambda output, example: 0.0), renderer, some)
    with pytest.raises(TrainingError, match="no advantages"):
        policy_loss("cross_entropy")
    assert policy_loss("ppo:clip_high=0.3", 0.1) == "1 ppo(clip_high=0.3), 0.1 kl_divergence"
    with pytest.raises(UsageError, match="base model"):
        Reinforcement(
            asked("hi"), rewarded(lambda output, example: 0.0), renderer,
            ReinforcementSettings(kl="loss"),
        )  # fmt: skip
    with pytest.raises(TrainingError, match="nan"):
        Tally().add(float("nan"))
    with pytest.raises(UsageError, match="distributions"):
        OffPolicyDistillation(
            asked("hi"), None, renderer, OffPolicySettings(answers="given", match="distribution")
        )


# --- what the clients give


async def test_a_batch_of_prompts_is_what_each_is_alone(embedded_model: BaseModel) -> None:
    with client_of(embedded_model) as (client, renderer):
        assert isinstance(client.sampler, BatchSampling)
        requests = [
            (
                ModelInput.of(renderer.generation_prompt((user(text),))),
                SamplingParams(24, 1.2, seed, tuple(renderer.stop_tokens), (", ",)[:seed]),
                n,
            )
            for seed, (text, n) in enumerate(
                [("what is 3 + 4?", 3), ("How do I reverse a list in python?", 4), ("hi", 1)]
            )
        ]
        together = await client.sampler.sample_batch(requests)
        for request, samples in zip(requests, together, strict=True):
            alone = await client.sampler.sample(*request)
            for one, other in zip(samples, alone, strict=True):
                assert (one.tokens, one.stop_reason, one.stop_token) == (
                    other.tokens, other.stop_reason, other.stop_token,
                )  # fmt: skip
                np.testing.assert_allclose(one.logprobs, other.logprobs, atol=2e-4)


async def test_the_base_is_there_with_the_adapter_off(embedded_model: BaseModel) -> None:
    with client_of(embedded_model) as (client, renderer):
        rendered = renderer.supervised((user("what is 3 + 4?"), assistant("It is eleven.")))
        whole = ModelInput.of(rendered.tokens)
        before = await client.sampler.compute_logprobs(whole)
        for _ in range(3):
            await client.forward_backward([datum(rendered)])
            await client.optim_step(AdamParams(5e-3))
        after = await client.sampler.compute_logprobs(whole)
        assert np.abs(after[1:] - before[1:]).max() > 0.1
        base = await client.base_sampler.compute_logprobs(whole)
        np.testing.assert_allclose(base[1:], before[1:], atol=1e-5)
        np.testing.assert_array_equal(await client.sampler.compute_logprobs(whole), after)
        assert isinstance(client.sampler, TopLogprobs)
        tokens, logprobs = await client.sampler.compute_top_logprobs(whole, 4096)
        assert tokens.shape == logprobs.shape == (len(whole), 4096)
        np.testing.assert_allclose(np.exp(logprobs.astype(np.float64)).sum(-1), 1, atol=1e-4)
        assert (np.diff(logprobs, axis=1) <= 0).all()
        for at in range(1, len(whole)):
            (where,) = np.flatnonzero(tokens[at - 1] == whole.tokens[at])
            assert logprobs[at - 1, where] == pytest.approx(after[at], abs=2e-4)


# --- reinforcement


def one_sentence(output: str, example: ChatExample) -> dict[str, float]:
    """Shorter is better, code is not a sentence."""
    sentences = len(re.findall(r"[.!?](?:\s|$)", output))
    return {"one": float(sentences == 1), "prose": 0.5 * ("```" not in output)}


QUESTIONS = asked(
    "How do I reverse a list in python?", "what is a git branch?", "explain http status codes",
    "how do I join two tables in sql?",
)  # fmt: skip


async def test_answers_become_one_sentence(embedded_model: BaseModel) -> None:
    figures: list[dict[str, Any]] = []
    settings = ReinforcementSettings(prompts=4, group=8, max_tokens=32, temperature=0.6, seed=3)
    with client_of(embedded_model) as (client, renderer):
        method = Reinforcement(
            QUESTIONS, rewarded(one_sentence), renderer, settings, held_out=QUESTIONS,
            reference=client.base_sampler,
        )  # fmt: skip
        result = await run_loop(
            client, method, LoopSettings(learning_rate=2e-3, schedule="constant", epochs=8),
            callbacks=Callbacks(on_step_end=[figures.append]),
        )  # fmt: skip
    rewards = [each["reward"] for each in figures]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:2]) + 0.1
    first, last = figures[0], figures[-1]
    assert first["reward"] == pytest.approx(first["reward/one"] + first["reward/prose"])
    assert first["kl_before_k3"] < 1e-4 and first["kl_base_k3"] < 1e-4 < last["kl_base_k3"]
    assert "kl_after_k3" not in first and figures[1]["kl_after_k3"] > 0
    assert first["entropy"] > 0 and first["tokens"] > 32 and 0 <= first["unended"] <= 1
    assert result.figures["reward"] > result.before["reward"]


def right(output: str, example: ChatExample) -> float:
    return float(str(example.metadata["sum"]) in re.findall(r"\d+", output))


async def test_sums_become_right(embedded_model: BaseModel) -> None:
    """At temperature 1 the model makes mistakes, which it learns to leave; PPO, inner epochs."""
    problems = sums((3, 4), (7, 8), (12, 5), (9, 6), (20, 14), (31, 7))
    settings = ReinforcementSettings(
        prompts=6, group=8, max_tokens=12, loss="ppo", inner_epochs=2,
        divide_by_std=True, seed=1,
    )  # fmt: skip
    figures: list[dict[str, Any]] = []
    with client_of(embedded_model) as (client, renderer):
        method = Reinforcement(problems, rewarded(right), renderer, settings)
        await run_loop(
            client, method, LoopSettings(learning_rate=3e-3, schedule="constant", epochs=8),
            callbacks=Callbacks(on_step_end=[figures.append]),
        )  # fmt: skip
    rewards = [each["reward"] for each in figures[::2]]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.2
    assert [each["inner_epoch"] for each in figures[:4]] == [1, 2, 1, 2]
    assert all("clipped" in each for each in figures)
    assert figures[1]["kl_before_k3"] > figures[0]["kl_before_k3"]


@dataclass
class Guess:
    """Two turns: a guess, a hint, another guess."""

    secret: str
    turns: int = 0

    def reset(self) -> Conversation:
        return (user("hi"),)

    async def step(self, answer: str) -> Outcome:
        self.turns += 1
        if self.turns == 1:
            return Outcome({"first": 0.25}, False, (user(self.secret),))
        return Outcome({"second": float(len(answer))})


async def test_an_environment_of_two_turns(embedded_model: BaseModel) -> None:
    settings = ReinforcementSettings(
        prompts=2, group=3, max_tokens=10, temperature=0.7, kl="reward", weigh="sample"
    )
    begun: list[Guess] = []

    def begin(example: ChatExample) -> Guess:
        begun.append(Guess(example.prompt[-1].text))
        return begun[-1]

    with client_of(embedded_model) as (client, renderer):
        method = Reinforcement(
            asked("thanks", "what is 3 + 4?"), begin, renderer, settings,
            reference=client.base_sampler,
        )  # fmt: skip
        figures = (await method.step(client, 0)).measures
        batch = method.state_dict()["batch"]
    assert len(begun) == 6 and all(each.turns == 2 for each in begun)
    assert figures["turns"] == 2 and figures["unfinished"] == 0
    assert figures["reward/first"] == 0.25
    assert figures["reward"] == pytest.approx(0.25 + figures["reward/second"])
    # The second prompt goes on from the first answer: one row holds both.
    ended = [row for row in batch["rows"] if np.any(np.diff(row["at"]) > 1)]
    assert ended
    for row in batch["rows"]:
        assert sum([row["weight"]] * len(row["at"])) <= 1 + 1e-9
        assert len(row["at"]) == len(row["logprobs"]) == len(row["advantages"])


async def test_equal_groups_are_dropped_or_kept_and_counted(embedded_model: BaseModel) -> None:
    def reward(output: str, example: ChatExample) -> float:
        return 1.0 if example.prompt[-1].text == "hi" else float(len(output))

    with client_of(embedded_model) as (client, renderer):
        found = {}
        for equal in ("drop", "keep"):
            settings = ReinforcementSettings.model_validate(
                {"prompts": 2, "group": 4, "max_tokens": 12, "equal_groups": equal}
            )
            method = Reinforcement(
                asked("hi", "what is git?"), rewarded(reward), renderer, settings
            )
            figures = (await method.step(client, 0)).measures
            found[equal] = (
                figures["dropped"], figures["equal"], len(method.state_dict()["batch"]["rows"])
            )  # fmt: skip
        assert found == {"drop": (0.5, 0.5, 4), "keep": (0.0, 0.5, 8)}
        same = Reinforcement(
            asked("hi"), rewarded(reward), renderer,
            ReinforcementSettings(prompts=1, group=4, max_tokens=12),
        )  # fmt: skip
        result = await run_loop(client, same, LoopSettings(epochs=1))
        assert result.losses == (0.0,) and result.skipped == 1


@pytest.mark.parametrize("kl", ["none", "reward", "loss"])
async def test_what_nothing_is_learned_from_leaves_the_adapter(kl: str, tmp_path: Path) -> None:
    """Rewards differ in the first and the last step alone; the momentum of the first moves nothing
    in between, unless the base holds."""
    client, renderer = tiny_client(tmp_path / "model")
    settings = ReinforcementSettings.model_validate(
        {"prompts": 1, "group": 4, "max_tokens": 4, "inner_epochs": 2, "kl": kl, "loss": "ppo"}
    )
    drawn = 0

    def reward(output: str, example: ChatExample) -> float:
        nonlocal drawn
        drawn += 1
        return float(drawn % 3) if drawn <= 4 or drawn > 12 else 1.0

    def values() -> list[Any]:
        return [p.detach().clone() for p in client.lora.named_parameters().values()]

    method = Reinforcement(
        asked("a"), rewarded(reward), renderer, settings, reference=client.base_sampler
    )
    told: list[dict[str, Any]] = []
    at = [values()]
    result = await run_loop(
        client, method, LoopSettings(learning_rate=1e-2, schedule="constant", epochs=4),
        callbacks=Callbacks(on_step_end=[told.append, lambda step: at.append(values())]),
        folder=tmp_path / "run",
    )  # fmt: skip
    stood = [all(map(torch.equal, *pair)) for pair in pairwise(at)]
    skipped = [each["skipped"] for each in told]
    assert result.steps == 8 and not any(stood[:2] + stood[6:])
    if kl == "none":
        assert stood[2:6] == [True] * 4 and skipped == [0, 0, 1, 2, 3, 4, 4, 4]
        assert [each["grad_norm"] == 0 for each in told] == stood
        assert (await client.info()).step == 4 and result.skipped == 4
        again = await run_loop(
            client, method, LoopSettings(learning_rate=1e-2, schedule="constant", epochs=4),
            folder=tmp_path / "run",
        )  # fmt: skip
        assert again.skipped == 4
    else:
        assert not any(stood) and result.skipped == 0


async def test_a_mixture_may_learn_without_advantages(tmp_path: Path) -> None:
    client, renderer = tiny_client(tmp_path / "model")
    settings = ReinforcementSettings(
        prompts=1, group=2, max_tokens=4, loss="1 ppo, 0.1 cross_entropy"
    )
    method = Reinforcement(
        asked("a"), rewarded(lambda output, example: 1.0), renderer, settings
    )  # fmt: skip
    result = await run_loop(client, method, LoopSettings(epochs=1))
    assert result.skipped == 0 and result.losses[0] > 0


# --- distillation


SUMS = sums((3, 4), (7, 8), (12, 5), (9, 6), (20, 14), (31, 7))


async def taught(base: BaseModel, folder: Path) -> Path:
    """An adapter that is sure of its sums."""
    with client_of(base) as (client, renderer):
        lessons = []
        for example in SUMS:
            question = example.prompt[-1].text.removeprefix("what is ").removesuffix("?")
            said = assistant(f"{question} = {example.metadata['sum']}.")
            lessons.append(datum(renderer.supervised((*example.messages, said))))
        for _ in range(12):
            await client.forward_backward(lessons)
            await client.optim_step(AdamParams(2e-3))
        await client.save_weights(folder / "teacher.safetensors")
    return folder / "teacher.safetensors"


@contextmanager
def teacher_of(path: Path) -> Iterator[LocalTrainingClient]:
    base = load_base_model(ModelSettings(name="embedded", dtype="fp32"))
    client = LocalTrainingClient(base, LoraSettings(), TrainingSettings(), path)
    try:
        yield client
    finally:
        client.close()


async def test_a_teacher_is_caught_up_with(embedded_model: BaseModel, tmp_path: Path) -> None:
    path = await taught(embedded_model, tmp_path)
    settings = OnPolicySettings(prompts=6, group=8, max_tokens=12, seed=2, clip=5.0)
    with teacher_of(path) as teacher, client_of(embedded_model) as (client, renderer):
        method = OnPolicyDistillation(SUMS, teacher.sampler, renderer, settings, held_out=SUMS)
        result = await run_loop(
            client, method, LoopSettings(learning_rate=3e-3, schedule="constant", epochs=16)
        )
        assert result.figures["reverse_kl"] < 0.5 * result.before["reverse_kl"]
        assert result.figures["reverse_kl_k3"] < 0.5 * result.before["reverse_kl_k3"]


@pytest.mark.parametrize("match", ["text", "distribution"])
async def test_answers_of_a_teacher_are_learned(
    match: str, embedded_model: BaseModel, tmp_path: Path
) -> None:
    path = await taught(embedded_model, tmp_path)
    settings = OffPolicySettings.model_validate(
        {"batch": 6, "match": match, "max_tokens": 12, "temperature": 0.5, "top_k": 8}
    )
    with teacher_of(path) as teacher, client_of(embedded_model) as (client, renderer):
        method = OffPolicyDistillation(SUMS, teacher.sampler, renderer, settings, held_out=SUMS)
        result = await run_loop(
            client, method, LoopSettings(learning_rate=3e-3, schedule="constant", epochs=8)
        )
        assert result.figures["loss"] < 0.5 * result.before["loss"]
        if match == "distribution":  # to its own distributions the teacher has no way to go
            assert abs((await method.evaluate(teacher))["kl"]) < 1e-4


# --- going on


def tiny_client(folder: Path) -> tuple[LocalTrainingClient, Renderer]:
    path = tiny_models.build("qwen2", folder)
    base = load_base_model(ModelSettings(name=str(path), device="cpu", dtype="fp32"))
    client = LocalTrainingClient(base, LoraSettings(rank=4), TrainingSettings(seed=1))
    return client, renderer_for(base.tokenizer, base.stop_tokens, base.renderer)


@pytest.mark.parametrize("kind", ["reinforcement", "distillation"])
@pytest.mark.parametrize("stop", [1, 3])
async def test_going_on_is_bit_equal(kind: str, stop: int, tmp_path: Path) -> None:
    """Two inner steps with each draw: stopped between them, and between draws."""
    examples = asked("a", "bc", "de", "f")

    def reward(output: str, example: ChatExample) -> float:
        return float(sum(map(ord, output)) % 7)

    async def run(folder: Path | None, looks: int | None) -> tuple[LoopResult, list[Any]]:
        client, renderer = tiny_client(tmp_path / "model")
        method: Any
        if kind == "reinforcement":
            method = Reinforcement(
                examples, rewarded(reward), renderer,
                ReinforcementSettings(
                    prompts=2, group=3, max_tokens=6, loss="ppo:clip_high=0.3", inner_epochs=2,
                    kl="loss",
                ),
                reference=client.base_sampler,
            )  # fmt: skip
        else:
            method = OnPolicyDistillation(
                examples, client.base_sampler, renderer,
                OnPolicySettings(prompts=2, group=2, max_tokens=6, inner_epochs=2),
            )  # fmt: skip
        told: list[Any] = []
        left = [looks]

        def should_stop() -> bool:
            if left[0] is None:
                return False
            left[0] -= 1
            return left[0] < 0

        def tell(figures: dict[str, Any]) -> None:
            timed = ("tokens_per_second", "seconds_left")
            told.append({name: value for name, value in figures.items() if name not in timed})

        result = await run_loop(
            client, method, LoopSettings(learning_rate=5e-3, epochs=2), folder=folder,
            callbacks=Callbacks(on_step_end=[tell]), should_stop=should_stop,
        )  # fmt: skip
        return result, told

    whole, figures = await run(None, None)
    assert whole.steps == 8 and len({*whole.losses}) > 4
    # Every draw says how far it was left behind, the last one at the end of the run.
    assert sum("kl_after_k3" in each for each in figures) == 3
    assert not whole.before and whole.figures["kl_after_k3"] > 0
    first, before = await run(tmp_path / "run", stop)
    assert first.stopped and first.steps == stop
    second, after = await run(tmp_path / "run", None)
    assert (*first.losses, *second.losses) == whole.losses
    assert [*before, *after] == figures and second.figures == whole.figures


def long(output: str, example: ChatExample, most: int = 9) -> float:
    return float(min(most, len(output)))


@dataclass(frozen=True)
class Long:
    most: int

    def __call__(self, output: str, example: ChatExample) -> float:
        return long(output, example, self.most)


async def test_going_on_with_another_reward_or_teacher_is_refused(tmp_path: Path) -> None:
    client, renderer = tiny_client(tmp_path / "model")
    settings = ReinforcementSettings(prompts=1, group=2, max_tokens=3)
    looks = OnPolicySettings(prompts=1, group=1, max_tokens=3)
    reads = OffPolicySettings(batch=1, max_tokens=3)

    async def taught(step: float) -> LocalTrainingClient:
        """The same model, an adapter of its own."""
        made, _ = tiny_client(tmp_path / "model")
        if step:
            await made.forward_backward([datum(renderer.supervised((user("a"), assistant("b"))))])
            await made.optim_step(AdamParams(step))
        return made

    def reinforced(reward: Any, **more: Any) -> Reinforcement:
        begin = more.pop("begin", None) or rewarded(reward)
        return Reinforcement(asked("a"), begin, renderer, settings, **more)

    class Other:
        def __init__(self, of: Guess) -> None: ...

    def at(url: str, model: str = "big") -> OpenAILogprobs:
        return OpenAILogprobs(model, base_url=url, api_key_env=None)

    teachers = [(await taught(step)).sampler for step in (0.0, 0.0, 1e-2)]
    on: Any = lambda teacher: OnPolicyDistillation(asked("a"), teacher, renderer, looks)  # noqa: E731
    off: Any = lambda teacher: OffPolicyDistillation(asked("a"), teacher, renderer, reads)  # noqa: E731
    # What is begun with, the same made anew, and others.
    cases: dict[str, tuple[Any, Any, list[Any]]] = {
        "function": (reinforced(long), reinforced(long), [
            reinforced(one_sentence), reinforced(partial(long, most=4)), reinforced(Long(4)),
            reinforced(None, begin=Guess), reinforced(long, reference=client.base_sampler),
        ]),
        "partial": (reinforced(partial(long, most=4)), reinforced(partial(long, most=4)), [
            reinforced(partial(long, most=5)), reinforced(long)
        ]),
        "dataclass": (reinforced(Long(4)), reinforced(Long(4)), [reinforced(Long(5))]),
        "method": (reinforced(Long(4).__call__), reinforced(Long(4).__call__), [
            reinforced(Long(5).__call__)
        ]),
        "environment": (
            reinforced(None, begin=lambda example: Guess("a")),
            reinforced(None, begin=lambda example: Guess("a")),
            [reinforced(None, begin=Guess), reinforced(None, begin=Other)],
        ),
        "on-policy": (on(teachers[0]), on(teachers[1]), [
            on(teachers[2]), on(client.base_sampler), on(at("http://a.invalid"))
        ]),
        "server": (on(at("http://a.invalid")), on(at("http://a.invalid")), [
            on(at("http://b.invalid")), on(at("http://a.invalid", "small"))
        ]),
        "off-policy": (off(teachers[0]), off(teachers[1]), [off(teachers[2])]),
    }  # fmt: skip
    for name, (begun, same, others) in cases.items():
        assert begun.mark() == same.mark(), name
        marks = {begun.mark(), *(other.mark() for other in others)}
        assert len(marks) == 1 + len(others), name
    begun, same, others = cases["partial"]
    once = LoopSettings(max_steps=1)
    await run_loop(client, begun, once, folder=tmp_path / "run")
    assert (await run_loop(client, same, once, folder=tmp_path / "run")).losses == ()
    with pytest.raises(TrainingError, match="another method, material"):
        await run_loop(client, others[0], once, folder=tmp_path / "run")


async def test_given_texts_are_learned(tmp_path: Path) -> None:
    client, renderer = tiny_client(tmp_path)
    examples = [
        ChatExample((user("a"), assistant("bcd"))),
        ChatExample((user("e"), assistant("f"))),
    ]
    settings = OffPolicySettings(answers="given", batch=2)
    method = OffPolicyDistillation(examples, None, renderer, settings, held_out=examples)
    result = await run_loop(client, method, LoopSettings(learning_rate=1e-2, epochs=8))
    assert result.figures["loss"] < result.before["loss"]
    with pytest.raises(TrainingError, match="no answer"):
        OffPolicyDistillation(asked("a"), None, renderer, settings)
