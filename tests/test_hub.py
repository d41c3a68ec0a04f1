"""The client of the Hub, against a server that speaks its interface."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import LARGE, HubServer

from shammah.errors import HubError
from shammah.models.huggingface import HuggingFaceHub
from shammah.ports.hub_client import HubClient, HubFile

FILES = {"config.json": b"{}", "deep/a.txt": b"a", "model.safetensors": b"s" * 3000, "x.bin": b"p"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setenv("NO_PROXY", "*")
    with HubServer() as running:
        running.commit("models/me/tiny", FILES)
        running.commit("models/me/tiny", {"config.json": b'{"new": 1}'})
        running.commit("datasets/me/rows", {"train.jsonl": b"{}\n"})
        yield running


@pytest.fixture
def hub(server: HubServer, tmp_path: Path) -> HubClient:
    return HuggingFaceHub(server.endpoint, cache=tmp_path / "cache", token="t")


async def test_files_are_listed_and_fetched_one_by_one_at_a_revision(hub: HubClient) -> None:
    files = await hub.list_files("me/tiny")
    assert files[0] == HubFile("config.json", 10)
    assert [file.path for file in files] == sorted(FILES)
    assert (await hub.download("me/tiny", "config.json")).read_bytes() == b'{"new": 1}'
    old = await hub.download("me/tiny", "config.json", revision="1".zfill(40))
    assert old.read_bytes() == b"{}"
    rows = await hub.download("me/rows", "train.jsonl", kind="dataset")
    assert rows.read_bytes() == b"{}\n"


async def test_a_snapshot_is_a_folder_without_pickles(hub: HubClient) -> None:
    told: list[tuple[int, int]] = []
    folder = await hub.snapshot("me/tiny", on_progress=lambda done, all: told.append((done, all)))
    expected = {**FILES, "config.json": b'{"new": 1}'}
    del expected["x.bin"]
    assert _files(folder) == expected
    assert told and told[-1][0] <= told[-1][1]
    with pytest.raises(HubError, match="may be a pickle"):
        await hub.download("me/tiny", "x.bin")
    with pytest.raises(HubError, match="may be a pickle"):
        await hub.download("me/tiny", "deep/X.PKL")


async def test_a_snapshot_takes_only_what_is_asked_for(hub: HubClient) -> None:
    folder = await hub.snapshot("me/tiny", allow=["*.json"])
    assert set(_files(folder)) == {"config.json"}


async def test_what_was_fetched_is_there_without_a_network(
    hub: HubClient, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HubError, match="not in the local cache"):
        await hub.snapshot("me/tiny", cached=True)
    fetched = await hub.snapshot("me/tiny")
    server.stop()
    assert await hub.snapshot("me/tiny") == fetched
    assert await hub.snapshot("me/tiny", cached=True) == fetched
    assert (await hub.download("me/tiny", "config.json")).parent == fetched
    for call in (
        hub.list_files("me/tiny"),
        hub.snapshot("me/other"),
        hub.upload("me/new", fetched),
    ):
        with pytest.raises(HubError, match="the Hub cannot be reached") as told:
            await call
        assert (told.value.port, told.value.backend) == ("HubClient", hub.name)
        assert told.value.__cause__ is not None
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="none of me/tiny is not in the local cache"):
        await hub.download("me/tiny", "none")


async def test_what_the_hub_does_not_give_is_said(hub: HubClient) -> None:
    for call, words in (
        (hub.snapshot("me/none"), "There is no model me/none on the Hub"),
        (hub.list_files("me/none", kind="dataset"), "There is no dataset me/none on the Hub"),
        (hub.list_files("me/gated"), "Access to me/gated must be granted first"),
        (hub.snapshot("me/tiny", revision="nope"), "me/tiny has no such revision"),
        (hub.download("me/tiny", "none.json"), "There is no none.json of me/tiny"),
        (hub.download("not/a/name", "x"), "not/a/name"),
    ):
        with pytest.raises(HubError, match=words):
            await call


async def test_a_folder_is_published_in_one_commit_and_comes_back(
    hub: HubClient, server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # LFS is plain HTTP; huggingface_hub's other way for large files is a protocol of its own.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    source = tmp_path / "adapter"
    (source / ".git").mkdir(parents=True)
    (source / ".git" / "config").write_text("secret")
    (source / "README.md").write_text("# mine\n")
    (source / "adapter_model.safetensors").write_bytes(os.urandom(LARGE))
    (source / "deep").mkdir()
    (source / "deep" / "empty").touch()
    url = await hub.upload("me/new", source, message="First")
    assert url == f"{server.endpoint}/me/new/commit/{'1'.zfill(40)}"
    assert server.messages == ["First"]
    assert server.made[0].get("private") is True or server.made[0].get("visibility") == "private"
    expected = {path: data for path, data in _files(source).items() if ".git/" not in path}
    assert server.files("models/me/new", "main") == expected
    assert _files(await hub.snapshot("me/new")) == expected
    await hub.upload("me/new", source / "README.md", to="docs/card.md")
    assert await hub.list_files("me/new") == tuple(
        HubFile(path, len(data))
        for path, data in sorted({**expected, "docs/card.md": b"# mine\n"}.items())
    )


async def test_what_cannot_be_published_is_said(
    hub: HubClient, server: HubServer, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(HubError, match="nothing to publish"):
            await hub.upload("me/new", source)
    server.read_only.add("models/me/tiny")
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(HubError, match=r"me/tiny: .*403"):
        await hub.upload("me/tiny", tmp_path / "file.txt")


def _files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
