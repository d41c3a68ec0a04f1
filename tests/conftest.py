"""What many tests need: a data folder of their own, and the embedded model, loaded once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from shammah.models.load import BaseModel

# The processes of pytest-xdist get the size of a terminal from the one that starts them (readline
# puts it there), and programs on a terminal of another size would believe it.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)

SHARED = Path(__file__).parents[2] / "shared" / "data"


LONGEST = (
    "test_recipes",
    "test_story",
    "test_learning_worker",
    "test_routing",
    "test_repl",
    "test_cli",
    "test_eval_cli",
    "test_examples_own",
    "test_feedback_recipe",
    "test_scope",
    "test_plan",
    "test_parallel",
    "test_delta",
    "test_corpus",
    "test_corpus_shell",
    "test_gate",
    "test_domains",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the tests, the longest files come first, so that none has one
    of them left when the others are done."""
    if hasattr(config, "workerinput"):
        places = {name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture
def shammah_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty SHAMMAH_HOME."""
    home = tmp_path / "home"
    monkeypatch.setenv("SHAMMAH_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def embedded_model() -> BaseModel:
    """The embedded model in fp32, where the order of additions does not change an answer."""
    from shammah.models.load import load_base_model
    from shammah.settings import ModelSettings

    return load_base_model(ModelSettings(name="embedded", dtype="fp32"))


@pytest.fixture(autouse=True)
def _given_back(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that takes the embedded model gives it back as it was: the next one has the same."""
    yield
    if "embedded_model" not in request.fixturenames:
        return
    model = request.getfixturevalue("embedded_model").model
    assert not [path for path, _ in model.named_modules() if "lora_" in path]
    assert "segments" not in str(model.config._attn_implementation)


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """A path below the shared data, or a skip where it is absent."""

    def find(relative: str) -> Path:
        path = SHARED / relative
        if not path.exists():
            pytest.skip(f"{path} is not here")
        return path

    return find
