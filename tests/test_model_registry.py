"""Models under short names: the file, the commands, and what loads them."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from shammah.cli.main import main
from shammah.errors import ConfigError, ModelError, ModelNotFoundError, RegistryError
from shammah.models.find import find_model
from shammah.models.load import load_base_model
from shammah.models.registered import RegisteredModels
from shammah.models.source import EMBEDDED
from shammah.paths import Paths
from shammah.ports.model_registry import ModelRegistry, RegisteredModel
from shammah.renderers.registry import renderer_for
from shammah.renderers.role_colon import RoleColonRenderer
from shammah.repl.commands import COMMANDS
from shammah.repl.completion import CommandCompleter
from shammah.settings import ModelSettings


@pytest.fixture
def file(shammah_home: Path) -> Path:
    shammah_home.mkdir()
    return Paths.default().models_file


@pytest.fixture
def registry(file: Path) -> ModelRegistry:
    return RegisteredModels(file)


async def test_models_are_registered_listed_found_and_forgotten(
    registry: ModelRegistry, file: Path
) -> None:
    assert await registry.list() == ()
    small = RegisteredModel("small", "me/tiny", "v1", "template", 'says "hi"\nÜ')
    await registry.register(small)
    await registry.register(RegisteredModel("own", "embedded"))
    assert await registry.list() == (RegisteredModel("own", "embedded"), small)
    assert await registry.get("small") == small
    with pytest.raises(RegistryError, match="registered already") as told:
        await registry.register(RegisteredModel("small", "me/other"))
    assert (told.value.port, told.value.backend) == ("ModelRegistry", registry.name)
    await registry.register(RegisteredModel("small", "me/other"), replace=True)
    assert await registry.get("small") == RegisteredModel("small", "me/other")
    await registry.forget("small")
    for call in (registry.get("small"), registry.forget("small")):
        with pytest.raises(RegistryError, match="no model is registered as 'small'"):
            await call
    assert (await asyncio.to_thread(file.stat)).st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "model",
    [RegisteredModel("embedded", "me/tiny"), RegisteredModel("a/b", "me/tiny"),
     RegisteredModel("", "me/tiny"), RegisteredModel("x", "/none/there"),
     RegisteredModel("x", "not a model"), RegisteredModel("x", "embedded", "v1")],
)  # fmt: skip
async def test_what_leads_nowhere_is_not_registered(
    registry: ModelRegistry, file: Path, model: RegisteredModel
) -> None:
    with pytest.raises(RegistryError):
        await registry.register(model)
    assert not await asyncio.to_thread(file.exists)


def test_a_file_written_by_hand_keeps_its_comments_and_its_faults_are_said(file: Path) -> None:
    file.write_text('# mine\n[a]\nsource = "me/tiny" # the small one\n')
    asyncio.run(RegisteredModels(file).register(RegisteredModel("b", "gpt2")))
    assert file.read_text().startswith('# mine\n[a]\nsource = "me/tiny" # the small one\n')
    assert find_model("b").hub_id == "gpt2"
    for content, words in (
        ("[a", "cannot be read"),
        ("[a]\nsource = 1", "a.source"),
        ("[a]\nsource = 'x'\nextra = 1", "a.extra"),
        ("[embedded]\nsource = 'x'", "cannot be registered as 'embedded'"),
    ):
        file.write_text(content)
        with pytest.raises(RegistryError, match=words):
            RegisteredModels(file).read()
        with pytest.raises(ModelError, match=words):
            find_model("a")
        assert find_model("embedded").path == EMBEDDED


def test_a_registered_name_leads_to_its_model_and_renderer(file: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(EMBEDDED)
    folder = str(tmp_path / "link")
    asyncio.run(
        RegisteredModels(file).register(RegisteredModel("mine", folder, None, "role_colon"))
    )
    base = load_base_model(ModelSettings(name="mine"))
    assert (base.name, base.path, base.renderer) == (folder, Path(folder), "role_colon")
    renderer = renderer_for(base.tokenizer, base.stop_tokens, base.renderer)
    assert isinstance(renderer, RoleColonRenderer)
    with pytest.raises(ConfigError, match="no renderer 'nope'"):
        renderer_for(base.tokenizer, base.stop_tokens, "nope")
    (tmp_path / "link").unlink()
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        find_model("mine")


def test_a_revision_is_the_one_that_is_fetched(file: Path, tmp_path: Path) -> None:
    code = "import sys; from shammah.models.load import locate; print(locate(sys.argv[1]))"
    with HubServer() as server:
        files = {f.name: f.read_bytes() for f in EMBEDDED.iterdir() if f.is_file()}
        old = server.commit("models/me/tiny", {**files, "extra.txt": b"old"})
        server.commit("models/me/tiny", {"extra.txt": b"new"})
        for name, revision in (("old", old), ("new", None)):
            model = RegisteredModel(name, "me/tiny", revision)
            asyncio.run(RegisteredModels(file).register(model))
            environment = {
                **os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": server.endpoint,
                "NO_PROXY": "*",
            }  # fmt: skip
            done = subprocess.run(
                [sys.executable, "-c", code, name],
                env=environment, capture_output=True, text=True, check=True,
            )  # fmt: skip
            assert (Path(done.stdout.strip()) / "extra.txt").read_text() == name


def test_the_commands(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())

    def run(*words: str) -> tuple[int, str]:
        code = main(list(words))
        return code, "".join(capsys.readouterr())

    assert run("model", "list") == (
        0, "No model has a short name yet: `shammah model register NAME SOURCE`.\n",
    )  # fmt: skip
    mine = ("model", "register", "mine", "embedded")
    assert run(*mine, "--notes", "own", "--renderer", "template")[0] == 0
    code, said = run("model", "register", "hub", "me/tiny", "--revision", "v1", "--json")
    assert json.loads(said)["revision"] == "v1"
    code, said = run("model", "list")
    assert "embedded spoken to by template (own)" in said and "me/tiny at v1" in said
    listed = json.loads(run("model", "list", "--json")[1])
    assert [model["name"] for model in listed] == ["hub", "mine"]
    code, said = run("model", "register", "mine", "gpt2")
    assert code == 4 and "registered already" in said and "--replace" in said
    assert run("model", "register", "mine", "gpt2", "--replace")[0] == 0
    assert run("model", "register", "x", "gpt2", "--renderer", "nope")[0] == 2
    assert run("model", "forget", "hub")[0] == 0
    assert run("model", "forget", "hub")[0] == 4
    assert run(*mine, "--replace")[0] == 0
    code, said = run("ask", "--model", "mine", "Hello")
    assert code == 0 and said.strip()
    completer = CommandCompleter(COMMANDS, Paths.default())
    offered = completer.get_completions(Document("/model load m"), CompleteEvent())
    assert "mine" in [completion.text for completion in offered]
