"""Lessons rendered for training: what is learned, after which turns, and what is replayed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shammah.errors import ModelError
from shammah.generation.engine import Engine
from shammah.generation.params import GenerationParams
from shammah.learning.lessons import Lesson
from shammah.learning.material import material, replayed
from shammah.messages import Conversation, assistant, system, user
from shammah.models.anchors import read_anchors
from shammah.models.load import BaseModel
from shammah.ports.datum import Datum, ModelInput
from shammah.renderers.base import Renderer
from shammah.renderers.registry import renderer_for

EARLIER: Conversation = (
    system("Be brief."),
    user("Hello"),
    assistant("Hi."),
    user("What is a list?"),
    assistant("A sequence."),
)


@pytest.fixture(scope="module")
def renderer(embedded_model: BaseModel) -> Renderer:
    return renderer_for(embedded_model.tokenizer, embedded_model.stop_tokens)


def lesson(number: int, messages: Conversation, target: str = "A tuple.") -> Lesson:
    return Lesson(number, messages, target, 10.0)


def read(renderer: Renderer, datum: Datum) -> str:
    return renderer.decode(list(datum.model_input.tokens))


def test_a_later_question_is_learned_by_itself_and_after_its_turn(renderer: Renderer) -> None:
    made = material(
        [lesson(1, (user("And this?"),)), lesson(2, (*EARLIER, user("And this?")))],
        renderer,
        context_turns=1,
        max_length=200,
    )
    assert made.owners == (0, 1, 1)
    assert made.weights == (10.0, 5.0, 5.0)
    alone, after = (read(renderer, datum) for datum in made.datums[1:])
    assert "Be brief." in alone and "A sequence." not in alone
    assert "Be brief." in after and "A sequence." in after and "Hello" not in after
    # A lesson is learned when it is answered as taught in every setting.
    assert made.learned([True, True, False]) == [True, False]
    assert made.learned([False, True, True]) == [False, True]


def test_only_the_answer_is_learned(renderer: Renderer) -> None:
    (datum,) = material(
        [lesson(1, (user("And this?"),))], renderer, context_turns=1, max_length=200
    ).datums
    weights = datum.loss_fn_inputs["weights"].data
    targets = datum.loss_fn_inputs["target_tokens"].data
    trained = [int(token) for token, weight in zip(targets, weights, strict=True) if weight > 0]
    assert renderer.decode(trained[:-1]) == "A tuple."
    assert trained[-1] in renderer.stop_tokens
    assert weights.sum() == pytest.approx(1.0)


def test_what_cannot_be_learned_is_said(renderer: Renderer) -> None:
    made = material(
        [lesson(1, (user("Why? " * 300),)), lesson(2, (user("Why?"),))],
        renderer,
        context_turns=1,
        max_length=100,
    )
    assert [kept.feedback_id for kept in made.lessons] == [2]
    assert "training.max_length (100 tokens)" in made.problems[1]


@given(earlier=st.integers(0, 30), anchors=st.integers(0, 30))
def test_replay_is_half_earlier_lessons_and_half_anchors(earlier: int, anchors: int) -> None:
    first = [Datum(ModelInput.of((1, index))) for index in range(earlier)]
    second = [Datum(ModelInput.of((2, index))) for index in range(anchors)]
    mixed = replayed(first, second)
    counts = [sum(datum.model_input.tokens[0] == kind for datum in mixed) for kind in (1, 2)]
    assert {datum.model_input for datum in mixed} == {d.model_input for d in [*first, *second]}
    if earlier and anchors:
        assert counts[0] == counts[1] == max(earlier, anchors)
    else:
        assert counts == [earlier, anchors]


def test_anchors_are_the_models_own_answers(embedded_model: BaseModel) -> None:
    anchors = read_anchors(embedded_model.path)
    assert len(anchors) >= 200
    engine = Engine(
        embedded_model, renderer_for(embedded_model.tokenizer, embedded_model.stop_tokens)
    )
    try:
        for anchor in anchors[::40]:
            answer = engine.generate((user(anchor.query),), GenerationParams())
            assert answer.text.strip() == anchor.answer
    finally:
        engine.close()


def test_a_broken_anchor_is_named(tmp_path: Path) -> None:
    assert read_anchors(tmp_path) == ()
    (tmp_path / "anchors.jsonl").write_text('{"query": "a", "answer": "b"}\n{"query": 1}\n')
    with pytest.raises(ModelError, match="line 2"):
        read_anchors(tmp_path)
