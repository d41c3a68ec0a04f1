"""What each kind of feedback makes the model learn: formulas by hand, then behaviour."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch

from shammah.errors import TrainingError
from shammah.generation.engine import Engine
from shammah.generation.params import GenerationParams
from shammah.learning.lessons import Lesson, answered
from shammah.learning.material import Material, material
from shammah.learning.revision import acceptable, requests, revised, with_advantages
from shammah.messages import user
from shammah.models.load import BaseModel, load_base_model
from shammah.ports.datum import Datum, TensorData
from shammah.renderers.base import Renderer
from shammah.renderers.registry import renderer_for
from shammah.settings import LoraSettings, ModelSettings, TrainingSettings
from shammah.training import losses
from shammah.training.datums import from_tokens
from shammah.training.examples import with_references
from shammah.training.local_client import LocalTrainingClient
from shammah.training.supervised import train_supervised

QUESTION = "What is a list?"


@pytest.fixture(scope="module")
def renderer(embedded_model: BaseModel) -> Renderer:
    return renderer_for(embedded_model.tokenizer, embedded_model.stop_tokens)


# Formulas


def inputs(**values: list[float]) -> dict[str, torch.Tensor]:
    found = {name: torch.tensor(value) for name, value in values.items()}
    found["example"] = found["example"].long()
    return found


def test_npo_by_hand() -> None:
    # Two answers: log ratios -1 + 0.5 and 2, weights 0.4 + 0.6 and 3; b = 0.1.
    value = losses.get("npo").compute(
        torch.tensor([-3.0, -1.5, -1.0]),
        inputs(weights=[0.4, 0.6, 3.0], reference=[-2.0, -2.0, -3.0], example=[0, 0, 1]),
    )
    expected = 20 * math.log(1 + math.exp(-0.05)) + 3 * 20 * math.log(1 + math.exp(0.2))
    assert float(value) == pytest.approx(expected, rel=1e-6)


def test_npo_pushes_as_hard_as_a_supervised_term_pulls_and_then_lets_go() -> None:
    def slope(ratio: float) -> float:
        logprob = torch.tensor([-2.0 + ratio], requires_grad=True)
        value = losses.get("npo").compute(
            logprob, inputs(weights=[1.0], reference=[-2.0], example=[0])
        )
        (gradient,) = torch.autograd.grad(value, logprob)
        return float(gradient)

    assert slope(0.0) == pytest.approx(1.0)
    # 2 p^b / (p^b + p_ref^b), equation 4 of the paper.
    assert slope(-20.0) == pytest.approx(2 / (1 + math.exp(2.0)), rel=1e-6)
    assert slope(-100.0) < 1e-3


def test_preference_by_hand() -> None:
    # Chosen: -1 against -3 before; rejected: -2 - 2 against -1 - 1. Margin 0.1 * (2 + 2).
    value = losses.get("preference").compute(
        torch.tensor([-1.0, -2.0, -2.0]),
        inputs(weights=[5.0, 9.0, 9.0], reference=[-3.0, -1.0, -1.0], example=[0, 1, 1]),
    )
    assert float(value) == pytest.approx(-5 * math.log(1 / (1 + math.exp(-0.4))), rel=1e-6)


def test_clipped_advantage_by_hand() -> None:
    # Ratios 2, 0.5, 2 and advantages 1, -1, -1: clipped to 1.2, to 0.8, not clipped.
    half = math.log(2.0)
    value = losses.get("clipped_advantage").compute(
        torch.tensor([half - 1, -half - 1, half - 1]),
        inputs(
            weights=[1.0, 1.0, 0.5],
            reference=[-1.0, -1.0, -1.0],
            advantages=[1.0, -1.0, -1.0],
            example=[0, 0, 0],
        ),
    )
    assert float(value) == pytest.approx(-(1.2 - 0.8 - 0.5 * 2), rel=1e-6)


def test_an_unknown_loss_and_missing_inputs_are_named() -> None:
    with pytest.raises(TrainingError, match="no loss named 'dppo'"):
        losses.get("dppo")


def short(seed: int, length: int = 12) -> Datum:
    tokens = np.random.default_rng(seed).integers(0, 250, length).tolist()
    return from_tokens(tokens, [0.0] * 6 + [1.0] * (length - 6))


def referenced(datum: Datum, values: np.ndarray) -> Datum:
    return replace(datum, loss_fn_inputs={**datum.loss_fn_inputs, "reference": TensorData(values)})


async def test_pairs_stay_together_however_they_are_packed(tmp_path: Path) -> None:
    path = tiny_models.build("qwen2", tmp_path)
    base = load_base_model(ModelSettings(name=str(path), device="cpu", dtype="fp32"))
    client = LocalTrainingClient(base, LoraSettings(rank=4), TrainingSettings())
    datums = [short(seed, 10 + 7 * (seed % 4)) for seed in range(8)]
    plain = await client.forward(datums)
    pairs = [
        referenced(d, logprobs - 1.0) for d, logprobs in zip(datums, plain.logprobs, strict=True)
    ]
    values = []
    for budget in (32, 64, 4096):
        client.micro_batch_tokens = budget
        values.append((await client.forward_backward(pairs, "preference")).loss)
    # log p - log p_ref is 1 for each token.
    sizes = [int(np.count_nonzero(d.loss_fn_inputs["weights"].data)) for d in datums]
    margins = [0.1 * (a - b) for a, b in zip(sizes[::2], sizes[1::2], strict=True)]
    expected = sum(math.log(1 + math.exp(-margin)) for margin in margins)
    assert values == pytest.approx([expected] * 3, rel=1e-4)
    with pytest.raises(TrainingError, match="2 datums at a time, not 3"):
        await client.forward(pairs[:3], "preference")
    with pytest.raises(TrainingError, match="needs 'reference'"):
        await client.forward(datums[:2], "preference")


# Behaviour, on the embedded model


async def teach(
    base: BaseModel, renderer: Renderer, lessons: list[Lesson], *, steps: int = 60
) -> tuple[LocalTrainingClient, Material, list[bool]]:
    """Train on lessons as a job does."""
    chosen = TrainingSettings(max_steps=steps, learning_rate=2e-3)
    client = LocalTrainingClient(base, LoraSettings(), chosen)
    made = material(lessons, renderer, context_turns=1, max_length=512, rephrased=2)
    made = await with_advantages(client, renderer, made)
    made = replace(made, examples=tuple(await with_references(client, made.examples)))
    result = await train_supervised(client, made.examples, made.weights, [], chosen)
    return client, made, made.learned(result.learned)


@pytest.fixture(scope="module")
def answer(embedded_model: BaseModel, renderer: Renderer) -> str:
    """What the base says."""
    engine = Engine(embedded_model, renderer)
    try:
        return engine.generate((user(QUESTION),), GenerationParams()).text.strip()
    finally:
        engine.close()


async def test_a_bad_answer_is_not_given_again(
    embedded_model: BaseModel, renderer: Renderer, answer: str
) -> None:
    lesson = Lesson(1, (user(QUESTION),), None, 10.0, answer, None, "avoid")
    client, made, learned = await teach(embedded_model, renderer, [lesson])
    try:
        assert learned == [True]
        output = await client.forward(made.datums, "cross_entropy")
        mean = output.loss / output.weight
        # Away, but not without bound: it was near 0 nats a token before.
        assert not output.greedy[0] and mean < 5.0
    finally:
        client.close()


async def test_a_correction_is_given_and_preferred(
    embedded_model: BaseModel, renderer: Renderer, answer: str
) -> None:
    lesson = Lesson(1, (user(QUESTION),), "A row of things.", 10.0, answer, None, "prefer")
    client, made, learned = await teach(embedded_model, renderer, [lesson])
    try:
        assert learned == [True]
        first, *others = made.examples
        assert [term.loss for term in first.terms] == ["cross_entropy", "preference"]
        assert all(len(example.terms) == 1 for example in others), "once is enough"
        margin = await client.forward(first.terms[1].datums, "preference")
        assert margin.loss < 0.9 * math.log(2.0)
    finally:
        client.close()


async def test_a_note_becomes_a_revision_of_the_model_itself(
    embedded_model: BaseModel, renderer: Renderer, answer: str
) -> None:
    lesson = Lesson(1, (user(QUESTION),), None, 10.0, answer, "shorter", "revise")
    client = LocalTrainingClient(embedded_model, LoraSettings(), TrainingSettings())
    try:
        found = await revised(client, renderer, lesson, 512)
    finally:
        client.close()
    assert found.objective == "towards" and found.target is not None
    assert found.target != answer and acceptable(found.target, lesson)
    assert len(found.target) < len(answer)
    assert found.messages == lesson.messages, "it is taught without the note"


async def test_where_nothing_fit_is_found_the_note_weighs_the_tokens(
    embedded_model: BaseModel, renderer: Renderer, answer: str
) -> None:
    lesson = Lesson(1, (user(QUESTION),), None, 10.0, answer, "say it in one word", "revise")
    client = LocalTrainingClient(embedded_model, LoraSettings(), TrainingSettings())
    try:
        # No room for any revision.
        room = len(renderer.generation_prompt(requests(lesson)[0])) // 2
        noted = await revised(client, renderer, lesson, room)
        assert (noted.objective, noted.target) == ("note", None)
        plain = material([noted], renderer, context_turns=0, max_length=512)
        made = await with_advantages(client, renderer, plain)
        datum = made.examples[0].judged
        advantage = datum.loss_fn_inputs["advantages"].data
        where = np.flatnonzero(datum.loss_fn_inputs["weights"].data)
        shown = (user(f"{QUESTION}\n\nsay it in one word"),)
        after = material([Lesson(2, shown, answer, 1.0)], renderer, context_turns=0, max_length=512)
        low = (await client.forward(plain.datums)).logprobs[0]
        high = (await client.forward(after.datums)).logprobs[0]
        expected = np.clip(high[high != 0] - low[where], -2, 2)
        np.testing.assert_allclose(advantage[where], expected, atol=1e-4)
        assert np.count_nonzero(advantage) <= len(where)
    finally:
        client.close()
    client, _, _ = await teach(embedded_model, renderer, [noted], steps=5)
    client.close()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A  TREE!",
        "Too long.",
        "Sorry, here is a shorter answer: a plant.",
        "You are right, a tree is a plant.",
        "As you asked, a plant.",
        "My previous answer was wrong.",
    ],
)
def test_a_revision_that_talks_about_the_feedback_is_refused(text: str) -> None:
    lesson = Lesson(1, (user("What is a tree?"),), None, 3.0, "A tree.", "too long", "revise")
    assert not acceptable(text, lesson)
    assert acceptable("A plant with a trunk.", lesson)
    assert requests(lesson)[0] == (*answered(lesson.messages, "A tree."), user("too long"))


@pytest.mark.parametrize("seed", range(3))
async def test_one_critical_lesson_outweighs_three_good_ones(
    embedded_model: BaseModel, renderer: Renderer, seed: int
) -> None:
    # The same question, taught both ways at once: nobody has settled it before.
    lessons = [Lesson(n, (user("Hello!"),), "Ahoy, sailor!", 1.0) for n in (1, 2, 3)]
    lessons.append(Lesson(4, (user("Hello!"),), "Good day to you.", 10.0))
    made = material(lessons, renderer, context_turns=0, max_length=512)
    chosen = TrainingSettings(
        seed=seed, max_steps=24, learning_rate=4e-3, stop_when_learned=False, batch_size=4
    )
    client = LocalTrainingClient(embedded_model, LoraSettings(), chosen)
    try:
        result = await train_supervised(client, made.examples, made.weights, [], chosen)
        assert result.learned == [False, False, False, True]
    finally:
        client.close()
