"""A model that ships no anchors is asked once for its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shammah.generation.engine import Engine
from shammah.generation.params import GenerationParams
from shammah.learning import own_answers
from shammah.messages import user
from shammah.models.anchors import FILE
from shammah.models.load import load_base_model
from shammah.models.source import EMBEDDED
from shammah.renderers.registry import renderer_for
from shammah.settings import ModelSettings


def test_they_are_sampled_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_answers, "QUESTIONS", 5)
    model = shutil.copytree(EMBEDDED, tmp_path / "model")
    (model / FILE).unlink()
    base = load_base_model(ModelSettings(name=str(model)))
    renderer = renderer_for(base.tokenizer, base.stop_tokens)
    first, second, kept = tmp_path / "1", tmp_path / "2", tmp_path / "kept" / "f.jsonl"
    first.mkdir(), second.mkdir()
    found = own_answers.anchors_for(base, renderer, first)
    assert 3 <= len(found) <= 5
    engine = Engine(base, renderer)
    try:
        for anchor in found:
            said = engine.generate((user(anchor.query),), GenerationParams())
            assert said.text.strip() == anchor.answer
    finally:
        engine.close()

    own_answers.lend(kept, second)
    assert not (second / FILE).exists()
    own_answers.keep(first, kept)
    own_answers.lend(kept, second)
    monkeypatch.setattr(own_answers, "QUESTIONS", 0)
    assert own_answers.anchors_for(base, renderer, second) == found
    assert kept.stat().st_mode & 0o777 == 0o600
