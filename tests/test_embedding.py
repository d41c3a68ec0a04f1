"""Texts as vectors: from the base model's own states, and from a sentence encoder."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import KINDS, build, engine_for, random_adapter

from shammah.errors import EmbeddingError, ModelError, ModelNotFoundError
from shammah.generation.embedding import HiddenStateEmbedder
from shammah.generation.engine import Engine
from shammah.generation.params import GenerationParams
from shammah.messages import user
from shammah.models.load import BaseModel, load_base_model
from shammah.models.sentence_encoder import SentenceEncoder
from shammah.models.shape import decoder_layers
from shammah.ports.embedding_client import EmbeddingClient, unit_rows
from shammah.settings import ModelSettings
from shammah.training.trunk import layers_of

HELD_OUT = Path(__file__).parent / "data" / "embedded"
TEXTS = ("how do i sort a list?", "which port does my server use?", "a", "x" * 300)


@pytest.fixture(scope="module")
def engine(embedded_model: BaseModel) -> Iterator[Engine]:
    engine = engine_for(embedded_model)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def embedder(engine: Engine) -> HiddenStateEmbedder:
    return HiddenStateEmbedder(engine.base, engine.renderer)


def shown_alone(embedder: EmbeddingClient, texts: tuple[str, ...]) -> Any:
    async def work() -> Any:
        return np.concatenate([await embedder.embed([text]) for text in texts])

    return asyncio.run(work())


def test_vectors_are_unit_rows_in_the_order_of_the_texts(embedder: HiddenStateEmbedder) -> None:
    vectors = asyncio.run(embedder.embed(TEXTS))
    assert vectors.dtype == np.float32 and vectors.shape == (4, 256)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(vectors, shown_alone(embedder, TEXTS), atol=1e-4)
    assert asyncio.run(embedder.embed([])).shape == (0, 256)


def test_they_are_the_states_of_the_layer_at_the_end_of_the_prompt(engine: Engine) -> None:
    """The slow reference: the whole model, one text at a time, the layer picked out."""
    base = engine.base
    embedder = HiddenStateEmbedder(base, engine.renderer, depth=4 / 6)
    body = base.model.base_model

    def state(text: str) -> Any:
        ids = torch.tensor([engine.renderer.generation_prompt((user(text),))])
        with torch.inference_mode():
            states = body(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
            return body.norm(states[4][0, -1]).float().numpy()

    from shammah.models.anchors import read_anchors

    every = [anchor.query for anchor in read_anchors(base.path)]
    anchors = every[:: len(every) // 32][:32]
    centre = np.mean([state(text) for text in anchors], axis=0)
    wanted = unit_rows(np.stack([state(text) - centre for text in TEXTS]), backend="reference")
    np.testing.assert_allclose(asyncio.run(embedder.embed(TEXTS)), wanted, atol=1e-3)


@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "opt"])
def test_the_same_layers_are_found_wherever_they_lie(kind: str, tmp_path: Path) -> None:
    names = {"n_layer": 4} if kind == "gpt2" else {"num_hidden_layers": 4}
    folder = build(kind, tmp_path / "model", **names)
    base = load_base_model(ModelSettings(name=str(folder), device="cpu", dtype="fp32"))
    stack = decoder_layers(base.model.base_model)
    assert stack is not None and len(stack.layers) == 4
    assert getattr(stack.holder, stack.name) is stack.layers
    assert set(layers_of(base.model).values()) == {0, 1, 2, 3}
    engine = engine_for(base)
    try:
        assert "layer 3" in HiddenStateEmbedder(base, engine.renderer).name
    finally:
        engine.close()
    assert len(stack.layers) == 4


def test_questions_that_mean_the_same_are_near(embedder: HiddenStateEmbedder) -> None:
    asked: dict[str, str] = {}
    for name, key in (("answers", "question"), ("follow_ups", "asked")):
        for line in (HELD_OUT / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            asked.setdefault(row[key], row["id"])
    ids = list(asked.values())
    vectors = asyncio.run(embedder.embed(list(asked)))
    near = vectors @ vectors.T
    np.fill_diagonal(near, -1)
    several = [index for index, name in enumerate(ids) if ids.count(name) > 1]
    found = [ids[int(near[index].argmax())] == ids[index] for index in several]
    assert len(found) >= 100 and np.mean(found) >= 0.7
    assert np.abs(near).mean() < 0.2, "what all questions share is not taken off"


def test_an_adapter_in_use_changes_no_vector_and_no_answer_changes(engine: Engine) -> None:
    """Embedding beside decoding: both as if the other were not there."""
    embedder = HiddenStateEmbedder(engine.base, engine.renderer)
    alone = asyncio.run(embedder.embed(TEXTS))
    engine.activate(random_adapter(engine.base, 1, size=0.05), "other")
    params = GenerationParams(max_tokens=40)
    asked = (user("how do i reverse a list in python?"),)
    engine.forget()
    answer = engine.generate(asked, params)

    async def both() -> tuple[list[str], list[Any]]:
        engine.forget()
        streams, vectors = [], []
        for _ in range(4):
            stream = engine.stream(asked, params)
            reading = asyncio.create_task(collect(stream))
            while not reading.done():
                vectors.append(await embedder.embed(TEXTS))
            streams.append(await reading)
        return streams, vectors

    texts, vectors = asyncio.run(both())
    assert texts == [answer.text] * 4 and len(vectors) >= 4
    for found in vectors:
        np.testing.assert_allclose(found, alone, atol=1e-5)
    # The prefix cache was left alone: all of the prompt but its last token is still there.
    assert engine.generate(asked, params).reused_tokens == answer.prompt_tokens - 1
    engine.activate(None, None)


async def collect(stream: Any) -> str:
    return "".join([piece async for piece in stream])


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_gives_vectors(kind: str, tmp_path: Path) -> None:
    base = load_base_model(ModelSettings(name=str(build(kind, tmp_path)), dtype="fp32"))
    engine = engine_for(base)
    embedder = HiddenStateEmbedder(base, engine.renderer)
    vectors = asyncio.run(embedder.embed(TEXTS))
    assert vectors.shape == (4, 32) and np.isfinite(vectors).all()
    np.testing.assert_allclose(vectors, shown_alone(embedder, TEXTS), atol=1e-4)
    assert base.fingerprint[:16] in embedder.name
    # The model itself has all its layers still.
    assert engine.generate((user("a"),), GenerationParams(max_tokens=2)).prompt_tokens > 0
    assert base.model.config.num_hidden_layers == 2
    engine.close()


def test_a_vector_without_direction_is_an_error() -> None:
    for bad in (np.zeros((1, 3)), np.full((1, 3), np.nan)):
        with pytest.raises(EmbeddingError, match=r"something: .*without a direction") as raised:
            unit_rows(bad, backend="something")
        assert (raised.value.port, raised.value.backend) == ("EmbeddingClient", "something")


# --- sentence encoders ------------------------------------------------------------------------


def encoder_folder(folder: Path, pooling: str | None = "mean") -> Path:
    """A tiny BERT with random weights, in the layout of sentence-transformers."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "sort", "list", "port", "server", "a", "how"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]"
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 12}')
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        modes = {f"pooling_mode_{mode}": mode.startswith(pooling) for mode in MODES}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    return folder


MODES = ("mean_tokens", "cls_token", "max_tokens")


@pytest.mark.parametrize("pooling", ["mean", "cls", None])
def test_an_encoder_pools_as_its_folder_says(tmp_path: Path, pooling: str | None) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = encoder_folder(tmp_path / "encoder", pooling)
    encoder = SentenceEncoder(str(folder))
    texts = ("how sort a list", "server port", "list " * 40)
    vectors = asyncio.run(encoder.embed(texts))
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        rows = [
            model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=12))
            for text in texts
        ]
    states = [row.last_hidden_state[0] for row in rows]
    wanted = [state[0] if pooling == "cls" else state.mean(0) for state in states]
    expected = unit_rows(torch.stack(wanted).numpy(), backend="reference")
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert asyncio.run(encoder.embed(())).shape == (0, 16)


def test_an_encoder_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="pools in a way"):
        SentenceEncoder(str(encoder_folder(tmp_path / "max", "max")))
    with pytest.raises(ModelNotFoundError):
        SentenceEncoder(str(tmp_path / "nothing"))
    broken = encoder_folder(tmp_path / "broken")
    (broken / "sentence_bert_config.json").write_text("[]")
    with pytest.raises(ModelError, match="cannot be read"):
        SentenceEncoder(str(broken))


def test_no_step_of_an_encoder_is_left_out(tmp_path: Path) -> None:
    joined = encoder_folder(tmp_path / "joined")
    modes = {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}
    (joined / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    with pytest.raises(ModelError, match="pools in a way"):
        SentenceEncoder(str(joined))
    (joined / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    assert SentenceEncoder(str(joined)).name.endswith("cls")
    steps = [{"type": f"sentence_transformers.models.{name}"} for name in ("Pooling", "Dense")]
    (joined / "modules.json").write_text(json.dumps(steps))
    with pytest.raises(ModelError, match="steps that are not known here: Dense"):
        SentenceEncoder(str(joined))
