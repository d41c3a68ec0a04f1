"""A model opened to be asked: it answers as the chat's engine does, alone and in a batch."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shammah import (
    ChatExample,
    ModelSettings,
    Paths,
    SupervisedFineTuning,
    assistant_message,
    evaluate,
    local_completer,
    report,
    scorer,
    user_message,
)
from shammah.errors import AdapterInvalidError, ModelNotFoundError

if TYPE_CHECKING:
    from shammah.models.load import BaseModel

ASKED = "How do I undo the last commit?"


async def test_it_answers_as_the_engine_does(embedded_model: BaseModel) -> None:
    from shammah.generation.engine import Engine
    from shammah.generation.params import GenerationParams
    from shammah.renderers.registry import renderer_for

    base = embedded_model
    engine = Engine(base, renderer_for(base.tokenizer, base.stop_tokens))
    try:
        params = GenerationParams(max_tokens=40, temperature=0.0)
        wanted = engine.generate((user_message(ASKED),), params).text
    finally:
        engine.close()
    settings = ModelSettings(name="embedded", dtype="fp32")
    async with local_completer(settings, max_tokens=40) as model:
        assert (await model.complete((user_message(ASKED),))).text == wanted
        examples = [ChatExample((user_message(ASKED), assistant_message(wanted)))]
        results = await evaluate(examples * 3, model, [scorer("exact_match")])
    assert report(results).figures()["exact_match"] == 1.0


async def test_it_answers_with_the_adapter_that_a_run_leaves(tmp_path: Path) -> None:
    data = tmp_path / "faq.csv"
    with data.open("w", newline="") as stream:
        csv.writer(stream).writerows([("prompt", "completion"), (ASKED, "Ask Ines.")])
    paths = Paths(tmp_path / "home", tmp_path / "home")
    result = await SupervisedFineTuning(data=str(data), max_steps=12).run(paths=paths)
    adapter = result.artifacts["adapter"]
    async with local_completer(adapter=adapter) as model, local_completer() as base:
        assert (await model.complete((user_message(ASKED),))).text == "Ask Ines."
        assert (await base.complete((user_message(ASKED),))).text != "Ask Ines."
    adapter.with_suffix(".json").unlink()
    with pytest.raises(AdapterInvalidError):
        async with local_completer(adapter=adapter):
            pass


async def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        async with local_completer(str(tmp_path / "nothing")):
            pass
