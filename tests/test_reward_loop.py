"""Reward models: a scalar head, and the model's own comparison; right on pairs they never saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from shammah.datasets.formatters.base import ChatExample
from shammah.errors import AdapterInvalidError, TrainingError
from shammah.messages import assistant, user
from shammah.models.anchors import read_anchors
from shammah.models.load import BaseModel, load_base_model
from shammah.ports.datum import Datum, ModelInput, TensorData
from shammah.ports.training_client import AdamParams
from shammah.renderers.base import RenderedExample
from shammah.renderers.registry import renderer_for
from shammah.settings import LoraSettings, ModelSettings, TrainingSettings
from shammah.training.comparison import comparison_of, judged, summary
from shammah.training.local_client import LocalTrainingClient
from shammah.training.loops.engine import LoopResult, run_loop
from shammah.training.loops.reward import ComparisonMethod, RewardMethod
from shammah.training.loops.settings import LoopSettings
from shammah.training.reward_client import RewardTrainingClient, head_file
from shammah.training.reward_model import RewardModel, score_datum, scored_pairs

EMBEDDED = Path(tiny_models.__file__).parents[1] / "shammah" / "models" / "embedded"


def damaged(count: int) -> list[ChatExample]:
    """Questions of the corpus with their answer, rather than with that answer cut short or with its
    words in another order."""
    random = np.random.default_rng(0)
    anchors = [each for each in read_anchors(EMBEDDED) if 25 < len(each.answer) < 110]
    found = []
    for index in random.permutation(len(anchors)):
        query, answer = anchors[index].query, anchors[index].answer
        said = answer.split(" ")
        if len(found) % 2:
            said = said[: max(1, round(len(said) * random.uniform(0.3, 0.8)))]
        else:
            random.shuffle(said)
        if " ".join(said) != answer:
            worse = (user(query), assistant(" ".join(said)))
            found.append(ChatExample((user(query), assistant(answer)), worse))
    return found[:count]


def swapped(count: int) -> list[ChatExample]:
    """Questions of the corpus with their answer, rather than with that to another question. Every
    answer stands once on either side: whether it is the right one lies in its question."""
    random = np.random.default_rng(1)
    anchors = {each.answer: each.query for each in read_anchors(EMBEDDED)}
    answers = [each for each in anchors if len(each) < 110]
    order = [answers[index] for index in random.permutation(len(answers))[:count]]
    return [
        ChatExample((user(anchors[own]), assistant(own)), (user(anchors[own]), assistant(other)))
        for own, other in zip(order, [*order[1:], order[0]], strict=True)
    ]


def words(count: int) -> list[ChatExample]:
    random = np.random.default_rng(2)

    def text() -> str:
        return "".join(chr(97 + letter) for letter in random.integers(0, 26, 8))

    return [
        ChatExample((user(asked), assistant(text())), (user(asked), assistant(text())))
        for asked in (text() for _ in range(count))
    ]


def tiny(folder: Path, **changes: Any) -> RewardTrainingClient:
    path = tiny_models.build("qwen2", folder)
    base = load_base_model(ModelSettings(name=str(path), device="cpu", dtype="fp32"))
    lora = LoraSettings(rank=4, layers=1.0, **changes)
    return RewardTrainingClient(base, lora, TrainingSettings(micro_batch_tokens=96))


def renderer_of(base: BaseModel) -> Any:
    return renderer_for(base.tokenizer, base.stop_tokens)


async def test_held_out_pairs_of_the_corpus(embedded_model: BaseModel, tmp_path: Path) -> None:
    renderer = renderer_of(embedded_model)
    kinds = [damaged(130), swapped(130)]
    learned = [each for kind in kinds for each in kind[:60]]
    known = {message.text for each in learned for message in each.messages}
    unseen = [
        [each for each in kind[60:] if known.isdisjoint(one.text for one in each.messages)]
        for kind in kinds
    ]
    held_out = [each for kind in unseen for each in kind]
    assert min(map(len, unseen)) > 40
    client = RewardTrainingClient(embedded_model, LoraSettings(), TrainingSettings())
    method = RewardMethod(
        scored_pairs(learned, renderer), scored_pairs(held_out, renderer), batch_size=16
    )
    try:
        result = await run_loop(client, method, LoopSettings(learning_rate=2e-3, epochs=2))
        await client.save_weights(tmp_path / "reward.safetensors")
        mine = RewardModel(client, renderer).score([each.messages for each in held_out])
    finally:
        client.close()
    assert result.before["accuracy"] == 0 and result.before["loss"] == pytest.approx(np.log(2))
    loaded = RewardModel.load(embedded_model, renderer, tmp_path / "reward.safetensors")
    try:
        chosen = loaded.score([each.messages for each in held_out])
        rejected = loaded.score([each.rejected or () for each in held_out])
    finally:
        loaded.close()
    assert chosen.dtype == np.float32 and chosen.shape == (len(held_out),)
    np.testing.assert_allclose(chosen, mine, rtol=1e-4, atol=1e-4)
    right = chosen > rejected
    assert right.mean() == pytest.approx(result.figures["accuracy"], abs=0.02)
    for kind in np.split(right, [len(unseen[0])]):
        assert kind.mean() > 0.9


async def test_scores_and_gradients_are_those_of_plain_torch(tmp_path: Path) -> None:
    client = tiny(tmp_path / "model")
    renderer = renderer_of(client.base)
    examples = words(3)
    method = RewardMethod(scored_pairs(examples, renderer), batch_size=3)
    for number in range(2):
        await method.step(client, number)
        await client.optim_step(AdamParams(learning_rate=0.02))
    pairs = [(each.messages, each.rejected or ()) for each in examples]
    datums = [score_datum(each, renderer) for pair in pairs for each in pair]
    found = await method.step(client, 2)
    own = {"head": client.head, "likelihood": client.likelihood, **parameters(client)}
    grads = {name: parameter.grad for name, parameter in own.items()}
    grads = {name: None if g is None else g / 3 for name, g in grads.items()}
    scores = client.scores(datums)
    with client.body.own_attention():
        client.head.grad = client.likelihood.grad = None
        plain = torch.stack(
            [plain_score(client, renderer.supervised(each)) for pair in pairs for each in pair]
        )
    np.testing.assert_allclose(scores, plain.detach().numpy(), rtol=1e-4, atol=1e-5)
    loss = -torch.nn.functional.logsigmoid(plain[0::2] - plain[1::2]).mean()
    assert found.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    wanted = torch.autograd.grad(loss, list(own.values()))
    for (name, given), each in zip(grads.items(), wanted, strict=True):
        assert given is not None, name
        torch.testing.assert_close(given, each, rtol=1e-3, atol=1e-7)


def plain_score(client: RewardTrainingClient, rendered: RenderedExample) -> torch.Tensor:
    """w . h at the answer's last token, and c times the mean of what its tokens' logits say."""
    told = [place for place, weight in enumerate(rendered.weights) if weight]
    ids = torch.tensor([rendered.tokens[: told[-1] + 1]])
    output = client.base.model(input_ids=ids, output_hidden_states=True)
    logprobs = torch.log_softmax(output.logits[0].float(), -1)
    answer = torch.stack([logprobs[place - 1, rendered.tokens[place]] for place in told])
    return output.hidden_states[-1][0, -1] @ client.head + client.likelihood[0] * answer.mean()


async def test_positions_are_scored_by_what_is_before_them(tmp_path: Path) -> None:
    client = tiny(tmp_path / "model")
    with torch.no_grad():
        client.head.normal_()
        client.likelihood.fill_(3.0)
    tokens = list(range(40, 52))
    weights = np.zeros(12, dtype=np.float32)
    places = [0, 5, 6, 11]
    weights[places] = 1.0
    given = {"target_tokens": TensorData.ints(tokens), "weights": TensorData(weights)}
    answer = TensorData.ints([1, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 1])
    datums = [
        Datum(ModelInput.of(tokens), given),
        Datum(ModelInput.of(tokens), {**given, "answer": answer}),
    ]
    found = (await client.forward(datums, "cross_entropy")).logprobs
    with client.body.own_attention(), torch.no_grad():
        output = client.base.model(torch.tensor([tokens]), output_hidden_states=True)
    logprobs = torch.log_softmax(output.logits[0], -1)[range(11), tokens[1:]].numpy()
    states = (output.hidden_states[-1][0] @ client.head.detach()).numpy()
    for values, members in zip(found, (range(1, 12), (6, 7, 8, 11)), strict=True):
        for place in places:
            told = [logprobs[each - 1] for each in members if each <= place]
            wanted = states[place] + 3.0 * (np.mean(told) if told else 0.0)
            assert values[place] == pytest.approx(wanted, rel=1e-4, abs=1e-4)
        assert not values[weights == 0].any()


async def test_a_head_of_hidden_states_alone_scores_as_it_did(tmp_path: Path) -> None:
    client = tiny(tmp_path / "model")
    with torch.no_grad():
        client.head.normal_()
        client.likelihood.fill_(3.0)
    saved = tmp_path / "reward.safetensors"
    await client.save_weights(saved)
    with safe_open(head_file(saved), "pt") as opened:
        about = opened.metadata()
    save_file({"score.weight": client.head.detach()}, head_file(saved), about)
    renderer = renderer_of(client.base)
    conversations = [each.messages for each in words(3)]
    with torch.no_grad():
        client.likelihood.zero_()
    wanted = RewardModel(client, renderer).score(conversations)
    client.close()
    model = RewardModel.load(client.base, renderer, saved)
    np.testing.assert_allclose(model.score(conversations), wanted, rtol=1e-5, atol=1e-5)
    model.close()
    save_file({"score.weight": torch.zeros(3, 3)}, head_file(saved), about)
    with pytest.raises(AdapterInvalidError, match="no finite float32"):
        RewardModel.load(client.base, renderer, saved)


def parameters(client: RewardTrainingClient) -> dict[str, torch.nn.Parameter]:
    return client.lora.named_parameters()


async def run(model: Path, folder: Path | None, stop_after: int | None = None) -> LoopResult:
    looks = 0

    def should_stop() -> bool:
        nonlocal looks
        looks += 1
        return stop_after is not None and looks > stop_after

    client = tiny(model, dropout=0.1)
    pairs = scored_pairs(words(9), renderer_of(client.base))
    return await run_loop(
        client,
        RewardMethod(pairs[:6], pairs[6:], batch_size=2, loss="reward_bradley_terry:center=0.01"),
        LoopSettings(learning_rate=1e-2, epochs=3, evaluate_every=4),
        folder=folder,
        should_stop=should_stop,
    )


async def test_stopping_and_going_on_changes_nothing(tmp_path: Path) -> None:
    whole = await run(tmp_path / "model", None)
    first = await run(tmp_path / "model", tmp_path / "state", 5)
    second = await run(tmp_path / "model", tmp_path / "state")
    assert whole.steps == 9 and first.steps == 5
    assert first.losses + second.losses == whole.losses
    assert second.figures == whole.figures


async def test_the_best_comes_back_with_its_head(tmp_path: Path) -> None:
    client = tiny(tmp_path / "model")
    pairs = scored_pairs(words(6), renderer_of(client.base))
    datums = [each for pair in pairs for each in pair.datums]
    seen: list[Any] = []

    class Scored(RewardMethod):
        """Its second evaluation after the first step is said to be the best."""

        async def evaluate(self, client: Any) -> dict[str, float]:
            seen.append(client.scores(datums))
            return {"score": (0.1, 0.4, 0.5, 0.2, 0.3)[len(seen) - 1]}

    settings = LoopSettings(
        learning_rate=1e-2, max_steps=4, epochs=9, evaluate_every=1, schedule="constant",
        best_metric="score", best_lower=False, restore_best=True,
    )  # fmt: skip
    result = await run_loop(client, Scored(pairs, batch_size=3), settings, folder=tmp_path / "run")
    assert result.best_step == 2 and len(seen) == 5
    np.testing.assert_array_equal(client.scores(datums), seen[2])
    assert not np.allclose(seen[2], seen[4])
    kept = sorted(path.name for path in (tmp_path / "run" / "best").iterdir())
    best = "best_000002"
    assert kept == ["best.json", best, f"{best}.safetensors", f"score_{best}.safetensors"]


async def test_what_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    client = tiny(tmp_path / "model")
    renderer = renderer_of(client.base)
    pairs = scored_pairs(words(2), renderer)
    with pytest.raises(TrainingError, match="no loss of scores"):
        RewardMethod(pairs, loss="dpo")
    saved = tmp_path / "reward.safetensors"
    await client.save_weights(saved)
    assert load_file(head_file(saved)).keys() == {"score.weight", "score.likelihood"}
    client.close()
    plain = LocalTrainingClient(client.base, LoraSettings(rank=4), TrainingSettings())
    with pytest.raises(TrainingError, match="scalar head"):
        await RewardMethod(pairs).step(plain, 0)
    plain.close()
    other = load_base_model(
        ModelSettings(
            name=str(tiny_models.build("qwen2", tmp_path / "other", seed=1)),
            device="cpu",
            dtype="fp32",
        )
    )
    with pytest.raises(AdapterInvalidError, match="another base model"):
        RewardModel.load(other, renderer, saved)
    head_file(saved).unlink()
    with pytest.raises(AdapterInvalidError, match="not the head"):
        RewardModel.load(client.base, renderer, saved)


async def test_comparison_in_both_orders(tmp_path: Path) -> None:
    path = tiny_models.build("qwen2", tmp_path / "model")
    base = load_base_model(ModelSettings(name=str(path), device="cpu", dtype="fp32"))
    client = LocalTrainingClient(base, LoraSettings(rank=8, layers=1.0), TrainingSettings())
    renderer = renderer_of(base)
    examples = words(4)
    swapped = [ChatExample(each.rejected or (), each.messages) for each in examples]
    one = await judged(client, [comparison_of(each, renderer) for each in examples])
    other = await judged(client, [comparison_of(each, renderer) for each in swapped])
    for left, right in zip(one, other, strict=True):
        assert left.margin == pytest.approx(-right.margin, abs=1e-4)
        assert left.position_bias == pytest.approx(right.position_bias, abs=1e-4)
        assert left.probability == pytest.approx(1 - right.probability, abs=1e-4)
    comparisons = [comparison_of(each, renderer) for each in examples]
    result = await run_loop(
        client,
        ComparisonMethod(comparisons, comparisons, batch_size=4),
        LoopSettings(learning_rate=1e-2, epochs=60),
    )
    assert result.figures["loss"] < result.before["loss"]
    assert result.figures["accuracy"] == 1 and result.figures["agreement"] == 1
    assert abs(result.figures["position_bias"]) < result.figures["margin"]
    assert (summary(one)["accuracy"] + summary(other)["accuracy"]) == 1
