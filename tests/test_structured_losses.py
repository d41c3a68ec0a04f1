"""Losses of structured answers: certain of every word they are the exact scores; their gradients
are those of finite differences; and the embedded model learns by them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shammah.errors import DataError, TrainingError
from shammah.messages import assistant, user
from shammah.models.load import BaseModel
from shammah.ports.datum import Datum
from shammah.ports.training_client import AdamParams
from shammah.ports.wire import datum_from_dict, datum_to_dict
from shammah.renderers.base import RenderedExample
from shammah.renderers.registry import renderer_for
from shammah.settings import LoraSettings, TrainingSettings
from shammah.structure.claims import ClaimGraph, parse_claims
from shammah.structure.graph import (
    Betti,
    balance,
    betti,
    chirality_loss,
    consistency,
    coverage,
    skew,
    topological_loss,
)
from shammah.structure.rewards import chirality_reward, citation_reward, topological_reward
from shammah.training import losses
from shammah.training.datums import from_tokens
from shammah.training.local_client import LocalTrainingClient
from shammah.training.losses.choices import CITATION, LABEL, TARGET, gathered
from shammah.training.structures import structured

ANSWER = """CLAIM[c1]: The drug lowers blood pressure [12].
CLAIM[c2]: A trial of 300 people saw it fall [12, 15].
CLAIM[c3]: A later trial saw no change [3].
RELATION: c2 supports c1
RELATION: c3 refutes c1
"""
SHOWN = ("12", "15", "3", "120")


def letters(answer: str) -> RenderedExample:
    """A tokenizer that has a token for each letter, after a prompt of two."""
    tokens = [1, 2, *map(ord, answer), 0]
    return RenderedExample(tokens, [0.0, 0.0, *[1.0] * (len(tokens) - 2)])


def words(answer: str) -> RenderedExample:
    """One whose tokens begin with a blank, and which has words of its own."""
    import re

    parts = re.findall(r" ?\w+|\W", answer)
    known: dict[str, int] = _known()
    tokens = [1, 2, *(known.setdefault(part, 10 + len(known)) for part in parts), 0]
    return RenderedExample(tokens, [0.0, 0.0, *[1.0] * (len(tokens) - 2)])


@cache
def _known() -> dict[str, int]:
    return {}


def certain(datum: Datum, chances: dict[tuple[int, int], float] | None = None) -> dict[str, Any]:
    """The inputs of a loss where the model is certain of the datum's own tokens, or finds what
    `chances` says."""
    found = gathered([datum])
    (positions, tokens), own = found.pairs[0], datum.loss_fn_inputs["target_tokens"].data
    given_ = chances or {}
    logprobs = [
        np.log(given_.get((int(p), int(t)), 1.0 if own[p] == t else 1e-30))
        for p, t in zip(positions, tokens, strict=True)
    ]
    return {
        "weights": torch.tensor([1.0], dtype=torch.float64),
        "example": torch.tensor([0]),
        "candidates": torch.tensor(logprobs, dtype=torch.float64),
        "shape": torch.from_numpy(datum.loss_fn_inputs["shape"].data[None]),
        "skew": torch.from_numpy(datum.loss_fn_inputs["skew"].data[None]).double(),
        **{name: torch.from_numpy(array) for name, array in found.arrays.items()},
    }


def value(spec: str, inputs: dict[str, Any]) -> float:
    logprobs = torch.zeros(1, dtype=torch.float64)
    return float(losses.get(spec).compute(logprobs, inputs))


@st.composite
def answers(draw: st.DrawFn) -> str:
    count = draw(st.integers(1, 12))
    claims = [f"CLAIM[c{number}]: Something." for number in range(1, count + 1)]
    one = st.integers(1, count)
    relations = draw(
        st.lists(st.tuples(one, st.sampled_from(["supports", "refutes"]), one), max_size=8)
    )
    lines = [f"RELATION: c{a} {label} c{b}" for a, label, b in relations]
    return "\n".join([*claims, *lines])


@pytest.mark.parametrize("render", [letters, words])
@settings(max_examples=60, deadline=None)
@given(answer=answers(), goal=answers())
def test_a_certain_model_gets_the_exact_scores(render: Any, answer: str, goal: str) -> None:
    graph, wanted = parse_claims(answer), parse_claims(goal)
    datum = structured(answer, render, wanted=betti(wanted), wanted_skew=skew(wanted))
    inputs = certain(datum)
    # b0 counts vanishing eigenvalues: with time enough, only those.
    exact = topological_loss(graph, betti(wanted))
    assert value("topological:time=2000", inputs) == pytest.approx(exact, abs=1e-6)
    if graph.relations:
        bent = (skew(graph) - skew(wanted)) ** 2
        assert value("chirality", inputs) == pytest.approx(bent, abs=1e-6)
        assert bent == pytest.approx(chirality_loss(graph, skew(wanted)))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "spec",
    [
        "topological",
        "topological:time=1",
        "chirality",
        "citation_validity:citation_validity_weight=0.3",
        "0.1 topological, 0.15 chirality, 0.2 citation_validity",
    ],
)
def test_gradients_are_those_of_finite_differences(spec: str, seed: int) -> None:
    answer = ANSWER + "RELATION: c1 supports c2\nRELATION: c2 refutes c3\n"
    goal = Betti(3, 2, 1) if seed % 2 else None
    datum = structured(answer, letters, shown=SHOWN, wanted=goal, wanted_skew=0.5)
    inputs = certain(datum)
    random = torch.Generator().manual_seed(seed)
    count = len(inputs["candidates"])
    leaf = -2 * torch.rand(count, dtype=torch.float64, generator=random) - 0.05
    leaf.requires_grad_()
    loss = losses.get(spec)

    def at(candidates: torch.Tensor) -> torch.Tensor:
        return loss.compute(
            torch.zeros(1, dtype=torch.float64), {**inputs, "candidates": candidates}
        )

    assert torch.autograd.gradcheck(at, (leaf,))
    (gradient,) = torch.autograd.grad(at(leaf), leaf)
    assert bool(gradient.any()), "a constant teaches nothing"


def test_what_stands_where() -> None:
    datum = structured(ANSWER, letters, shown=SHOWN)
    slots = datum.loss_fn_inputs["slots"].data
    assert [(slots[:, 0] == kind).sum() for kind in (LABEL, TARGET)] == [2, 2]
    # 12, 12, 15 have two digits, 3 has one.
    assert (slots[:, 0] == CITATION).sum() == 7
    assert datum.loss_fn_inputs["shape"].data.tolist() == [3, 3, 1, 0]
    assert float(datum.loss_fn_inputs["skew"].data) == 0.0
    text = "".join(map(chr, datum.model_input.tokens))
    paths = datum.loss_fn_inputs["paths"].data
    # "c2 supports": s, or r of refutes, after the blank.
    label = text.index("supports", text.index("RELATION")) - 1
    assert {chr(token) for _, position, token in paths if position == label} == {"s", "r"}
    # After the c of the target its number.
    target = text.index("c1", label) + 0
    assert {chr(token) for _, position, token in paths if position == target} == {"1", "2", "3"}
    # After "1" of 12: 12, 120 and 15 go on with 2 or 5.
    cited = text.index("[12]") + 1
    assert {chr(token) for _, position, token in paths if position == cited} == {"2", "5"}
    assert datum_from_dict(datum_to_dict(datum)).loss_fn_inputs == datum.loss_fn_inputs


def test_words_that_begin_alike_share_what_is_known() -> None:
    """c1, c10, c11 and c2 beside one that the answer names: what leaves its path at one token has
    one probability."""
    claims = "".join(f"CLAIM[c{name}]: Text.\n" for name in (2, 1, 10, 11))
    datum = structured(claims + "RELATION: c2 supports c2\n", letters)
    options = datum.loss_fn_inputs["options"].data
    slots = datum.loss_fn_inputs["slots"].data
    (slot,) = np.flatnonzero(slots[:, 0] == TARGET)
    shares = datum.loss_fn_inputs["shares"].data[options[:, 0] == slot]
    np.testing.assert_allclose(sorted(shares), [1 / 3, 1 / 3, 1 / 3, 1.0])
    datum = structured(claims + "RELATION: c2 supports c10\n", letters)
    options = datum.loss_fn_inputs["options"].data
    shares = datum.loss_fn_inputs["shares"].data[options[:, 0] == slot]
    # Now 1 is on the way, and each parts at a token of its own.
    np.testing.assert_allclose(sorted(shares), [1.0] * 4)
    inputs = certain(datum)
    table = losses.choices.slot_logprobs(inputs)[slot].exp()
    assert table.tolist() == pytest.approx([0, 0, 1, 0], abs=1e-6)


def test_citations_by_hand() -> None:
    answer = "It falls [12]."
    datum = structured(answer, letters, shown=("12", "15", "3"))
    at = answer.index("12") + 2 - 1  # the prompt has two tokens; position before the target
    chances = {
        (at, ord("1")): 0.5,
        (at, ord("3")): 0.2,
        (at + 1, ord("2")): 0.6,
        (at + 1, ord("5")): 0.1,
    }
    inputs = certain(datum, chances)
    wanted = -(np.log(0.7) + np.log(0.7)) / 2
    assert value("citation_validity", inputs) == pytest.approx(wanted)
    assert value("citation_validity:citation_validity_weight=0.2", inputs) == pytest.approx(
        0.2 * wanted
    )
    # An id that was not shown: how likely it was to be another, as far as one could be.
    odd = structured("It falls [19].", letters, shown=("12", "15", "3"))
    assert (odd.loss_fn_inputs["slots"].data[:, 0] == CITATION).sum() == 2


def test_what_cannot_be() -> None:
    with pytest.raises(DataError, match="No graph has the shape"):
        structured(ANSWER, letters, wanted=Betti(0, 0, 0))
    with pytest.raises(DataError, match="changes a token"):
        structured(ANSWER, lambda answer: letters("the same"))
    plain = from_tokens([1, 2, 3], [0, 1, 1])
    with pytest.raises(TrainingError, match="needs 'slots'"):
        gathered([plain])


# Exact scores and rewards


def test_rewards_are_the_exact_scores() -> None:
    graph = parse_claims(ANSWER)
    assert (skew(graph), balance(graph)) == (0.0, 1.0)
    assert topological_reward(ANSWER, betti(graph)) == 1.0
    circle = ANSWER + "RELATION: c1 supports c2\n"
    assert betti(parse_claims(circle)) == Betti(3, 1, 0)
    assert topological_reward(circle, betti(graph)) == pytest.approx(
        consistency(parse_claims(circle))
    )
    assert topological_reward("No claim.", betti(graph)) == 0.0
    sides = (("12", "15"), ("3", "7"))
    assert coverage({"12", "15", "3"}, sides) == 0.5 and coverage((), ((), ())) == 1.0
    assert chirality_reward(ANSWER, 0.0, sides) == pytest.approx(0.5)
    assert chirality_reward(ANSWER, 1.0) == pytest.approx(1 - 1 / 4)
    # Cited 12, 15, 3; gold 12 and 15: precision 2/3, recall 1.
    assert citation_reward(ANSWER, ("12", "15"), SHOWN) == pytest.approx(0.8)
    assert citation_reward(ANSWER, ("12", "15"), ("12", "15"), invalid_weight=0.6) == pytest.approx(
        0.6
    )
    assert ClaimGraph((), ()) == parse_claims("prose")


# On the embedded model


@pytest.fixture(scope="module")
def datums(embedded_model: BaseModel) -> list[Datum]:
    renderer = renderer_for(embedded_model.tokenizer, embedded_model.stop_tokens)
    prompt = (user("Does the drug work?"),)

    def render(answer: str) -> RenderedExample:
        return renderer.supervised((*prompt, assistant(answer)))

    without = "I do not know."
    return [
        structured(ANSWER, render, shown=SHOWN),
        structured(without, render, shown=SHOWN),
        structured(ANSWER.replace("refutes", "supports"), render, shown=SHOWN, wanted_skew=0.0),
    ]


async def test_the_embedded_model_learns_by_each(
    embedded_model: BaseModel, datums: list[Datum]
) -> None:
    for spec in ("topological", "chirality", "citation_validity"):
        client = LocalTrainingClient(embedded_model, LoraSettings(rank=4), TrainingSettings())
        try:
            before = (await client.forward(datums, spec)).loss
            for _ in range(12):
                await client.forward_backward(datums, spec)
                await client.optim_step(AdamParams(learning_rate=5e-3, max_grad_norm=1.0))
            after = await client.forward(datums, spec)
            assert after.loss < 0.8 * before, spec
            assert after.metrics
            with pytest.raises(TrainingError, match="a constant"):
                await client.forward_backward(datums[1:2], spec)
            with pytest.raises(TrainingError, match="needs 'slots'"):
                await client.forward_backward([from_tokens([1, 2, 3], [0, 1, 1])], spec)
        finally:
            client.close()


async def test_a_mixture_reports_its_parts_however_it_is_packed(
    embedded_model: BaseModel, datums: list[Datum]
) -> None:
    mixed = "0.55 cross_entropy, 0.1 topological, 0.15 chirality, 0.2 citation_validity"
    client = LocalTrainingClient(
        embedded_model, LoraSettings(rank=4, target_modules="all-linear"), TrainingSettings()
    )
    try:
        by_packs = []
        for budget in (64, 4096):
            client.micro_batch_tokens = budget
            output = await client.forward_backward(datums, mixed)
            gradients = {
                name: parameter.grad.clone()
                for name, parameter in client.lora.named_parameters().items()
                if parameter.grad is not None
            }
            client._forget()
            by_packs.append((output, gradients))
        (one, left), (other, right) = by_packs
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        assert one.metrics == pytest.approx(other.metrics, rel=1e-3)
        for name, gradient in left.items():
            torch.testing.assert_close(gradient, right[name], atol=1e-4, rtol=1e-2)
        shares = {
            "cross_entropy": 0.55,
            "topological": 0.1,
            "chirality": 0.15,
            "citation_validity": 0.2,
        }
        parts = sum(share * one.metrics[name] for name, share in shares.items())
        assert parts == pytest.approx(one.mean_loss, rel=1e-5)
        for name in shares:
            alone = await client.forward(datums, name)
            assert alone.mean_loss == pytest.approx(one.metrics[name], rel=1e-4)
    finally:
        client.close()


async def test_probabilities_are_the_models_own(
    embedded_model: BaseModel, datums: list[Datum]
) -> None:
    """Every option's tokens, beside the logits of a plain forward pass."""
    client = LocalTrainingClient(embedded_model, LoraSettings(rank=4), TrainingSettings())
    try:
        pairs = gathered(datums).pairs
        with torch.no_grad():
            found = client.body.targets(datums, pairs).others
        assert found is not None
        start = 0
        for datum, (positions, tokens) in zip(datums, pairs, strict=True):
            with client.body.own_attention(), torch.no_grad():
                ids = torch.tensor([datum.model_input.tokens])
                logits = embedded_model.model(input_ids=ids, use_cache=False).logits[0].float()
            plain = logits.log_softmax(-1)[torch.from_numpy(positions), torch.from_numpy(tokens)]
            own = found[start : start + len(positions)]
            start += len(positions)
            torch.testing.assert_close(own, plain, atol=1e-4, rtol=1e-4)
        bare = replace(
            datums[0],
            loss_fn_inputs={k: v for k, v in datums[0].loss_fn_inputs.items() if k != "shape"},
        )
        with pytest.raises(TrainingError, match="needs 'shape'"):
            await client.forward([bare], "topological")
    finally:
        client.close()
