"""What recipes take of a data set: which examples teach them something, and what is said of the
others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from shammah import DPO, Backends, Paths, Reinforcement, RewardModeling, SupervisedFineTuning
from shammah.errors import InputError
from shammah.ports.training_client import TrainingClient
from shammah.recipes.material import Material
from shammah.recipes.reading import material_of
from shammah.recipes.training_recipe import TrainingRecipe

if TYPE_CHECKING:
    from shammah.models.load import BaseModel

FEEDBACK: list[dict[str, Any]] = [
    {"query": "Which port?", "response": "80.", "rating": "critical", "correction": "8087."},
    {"query": "Who reviews?", "response": "Nobody.", "rating": "critical"},
    {"query": "Which city?", "response": "Paris.", "rating": "good"},
    {"query": "Which tree?", "correction": "An oak."},
    {"query": "Which day?", "response": "Monday.", "rating": "good", "preferred_over": "Today."},
]


def feedback(folder: Path, rows: list[dict[str, Any]] = FEEDBACK) -> str:
    """A file of feedback."""
    file = folder / "feedback.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def taken(recipe: TrainingRecipe, base: BaseModel) -> tuple[list[str], Mapping[str, int]]:
    """The questions that are learned, and what the others lack."""
    material: Material = material_of(recipe, base)
    return [each.prompt[-1].text for each in material.examples], material.lacking


def test_each_recipe_takes_what_teaches_it(tmp_path: Path, embedded_model: BaseModel) -> None:
    data = feedback(tmp_path)
    pairs, lacking = taken(DPO(data=data), embedded_model)
    assert (pairs, lacking) == (["Which port?", "Which day?"], {"two answers": 3})
    answers, lacking = taken(SupervisedFineTuning(data=data), embedded_model)
    assert answers == ["Which port?", "Which city?", "Which tree?", "Which day?"]
    assert lacking == {"an answer": 1}
    prompts, lacking = taken(Reinforcement(data=data, reward="exact_match"), embedded_model)
    assert (len(prompts), lacking) == (5, {})


def test_data_without_a_pair_are_refused(tmp_path: Path, embedded_model: BaseModel) -> None:
    data = feedback(tmp_path, FEEDBACK[1:4])
    with pytest.raises(InputError, match=r"None of the 3 examples of .* has two answers"):
        taken(DPO(data=data), embedded_model)


def test_what_is_passed_over_is_counted_before_what_is_held_out(
    tmp_path: Path, embedded_model: BaseModel
) -> None:
    data = feedback(tmp_path, FEEDBACK * 20)
    material = material_of(DPO(data=data, held_out=10), embedded_model)
    assert (len(material.examples), len(material.held_out)) == (30, 10)
    assert all(each.rejected for each in material.held_out)


async def test_an_example_that_is_too_long_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = [*FEEDBACK[2:4], {"query": "word " * 2000, "correction": "Too long."}]
    paths = Paths(tmp_path / "home", tmp_path / "home")
    recipe = SupervisedFineTuning(data=feedback(tmp_path, rows), max_steps=2)
    result = await recipe.run(paths=paths, run_id="long")
    lacking = {"an answer that fits into 1,024 tokens": 1}
    assert result.context.state["data"]["lacking"] == lacking
    manifest = json.loads((paths.runs / "long" / "manifest.json").read_text())
    assert manifest["data"]["lacking"] == lacking and manifest["data"]["examples"] == 2
    taught = [each["query"] for each in result.context.state["lessons"]]
    assert taught == ["Which city?", "Which tree?"]


async def test_a_pair_that_is_too_long_is_left_out_and_counted(
    tmp_path: Path, embedded_model: BaseModel
) -> None:
    data = feedback(tmp_path, [*FEEDBACK, {**FEEDBACK[0], "query": "word " * 2000}])
    paths = Paths(tmp_path / "home", tmp_path / "home")
    result = await DPO(data=data, max_steps=1).run(paths=paths)
    about = result.context.state["data"]
    lacking = {"two answers": 3, "answers that fit into 1,024 tokens": 1}
    assert (about["examples"], about["lacking"]) == (2, lacking)
    client = cast(TrainingClient, None)  # the method of pairs is made of the material alone
    for kind in (DPO, RewardModeling):
        material = material_of(kind(data=data), embedded_model)
        kind(data=data).method(material, client, Backends())
        assert material.lacking == lacking
        short = material_of(kind(data=data, max_length=5), embedded_model)
        with pytest.raises(InputError, match="None of the 3 pairs to learn from fits into 5"):
            kind(data=data).method(short, client, Backends())
