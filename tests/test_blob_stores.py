"""Blobs in a folder, in memory, and on a server that speaks S3."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shammah.backends.blobs import open_blobs
from shammah.backends.file_blobs import FileBlobs
from shammah.backends.fsspec_blobs import FsspecBlobs
from shammah.errors import BlobError, PortError
from shammah.ports.blob_store import BlobStore, check_blob_name


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The endpoint of an S3 server of this process's own, with a bucket `lake`."""
    pytest.importorskip("s3fs", reason="s3fs is not installed (pip install shammah[remote])")
    moto = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    import s3fs

    endpoint = f"http://{host}:{port}"
    s3fs.S3FileSystem(**s3_options(endpoint)).mkdir("lake")
    yield endpoint
    server.stop()


def s3_options(endpoint: str) -> dict[str, Any]:
    return {"endpoint_url": endpoint, "key": "me", "secret": "mine"}


@pytest.fixture(params=["folder", "file", "memory", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param == "folder":
        return open_blobs(tmp_path / "blobs")
    if request.param == "file":
        return FsspecBlobs(f"file://{tmp_path}/blobs")
    if request.param == "memory":
        return open_blobs(f"memory://{tmp_path.name}")
    return open_blobs(f"s3://lake/{tmp_path.name}", **s3_options(request.getfixturevalue("s3")))


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
        await asyncio.sleep(0)


async def test_what_is_written_is_read_listed_replaced_and_deleted(blobs: BlobStore) -> None:
    assert await blobs.list() == ()
    assert not await blobs.exists("a/b.bin")
    await blobs.write("a/b.bin", b"first")
    await blobs.write("a/b.bin", pieces(b"sec", b"", b"ond"))
    await blobs.write("a/c/d", b"")
    await blobs.write("e", b"e")
    assert await blobs.read("a/b.bin") == b"second"
    assert await blobs.read("a/c/d") == b""
    assert [part async for part in blobs.stream("a/b.bin", chunk=4)] == [b"seco", b"nd"]
    assert await blobs.list() == ("a/b.bin", "a/c/d", "e")
    assert await blobs.list("a") == ("a/b.bin", "a/c/d")
    assert await blobs.list("none") == ()
    assert await blobs.exists("a/b.bin") and not await blobs.exists("a")
    await blobs.delete("a/b.bin")
    assert await blobs.list() == ("a/c/d", "e")


async def test_several_megabytes_go_through_in_chunks(blobs: BlobStore) -> None:
    parts = [bytes([number]) * (3 << 20) for number in range(4)]
    await blobs.write("large", pieces(*parts))
    read = [part async for part in blobs.stream("large", chunk=1 << 20)]
    assert max(map(len, read)) <= 1 << 20
    assert b"".join(read) == b"".join(parts)


async def test_a_write_that_breaks_off_leaves_what_was_there(blobs: BlobStore) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"new" * 1_000_000
        raise ConnectionError("gone")

    if blobs.name.startswith("memory"):
        pytest.skip("memory:// shows each piece at once")
    await blobs.write("kept", b"old")
    for name in ("kept", "other"):
        with pytest.raises((ConnectionError, BlobError)):
            await blobs.write(name, broken())
    assert await blobs.read("kept") == b"old"
    assert await blobs.list() == ("kept",)


async def test_what_is_not_there_is_said_with_port_backend_and_cause(blobs: BlobStore) -> None:
    for call in (blobs.read("none"), blobs.delete("none"), anext(aiter(blobs.stream("none")))):
        with pytest.raises(BlobError, match="there is no blob 'none'") as told:
            await call
        assert isinstance(told.value, PortError)
        assert (told.value.port, told.value.backend) == ("BlobStore", blobs.name)
        assert isinstance(told.value.__cause__, FileNotFoundError)


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../up", "a/../b", "a//b", ".", "a\\b", "C:x"])
async def test_no_name_leads_out_of_the_store(blobs: BlobStore, name: str) -> None:
    for call in (blobs.read(name), blobs.write(name, b"x"), blobs.exists(name), blobs.delete(name)):
        with pytest.raises(BlobError, match="not the name of a blob"):
            await call


@given(st.text(max_size=20))
def test_names_that_pass_stay_below_the_root(name: str) -> None:
    try:
        check_blob_name(name, backend="test")
    except BlobError:
        return
    assert os.path.normpath(f"/root/{name}") == f"/root/{name}"


async def test_links_out_of_a_folder_are_refused_and_files_are_private(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    blobs = FileBlobs(tmp_path / "deep" / "blobs")
    await blobs.write("a/b", b"x")
    (tmp_path / "deep" / "blobs" / "out").symlink_to(tmp_path)
    for call in (blobs.read("out/secret"), blobs.write("out/new", b"x"), blobs.list("out")):
        with pytest.raises(BlobError, match="leads out of the store"):
            await call
    assert (tmp_path / "deep/blobs/a/b").stat().st_mode & 0o777 == 0o600
    for folder in ("deep", "deep/blobs", "deep/blobs/a"):
        assert (tmp_path / folder).stat().st_mode & 0o777 == 0o700


async def test_readers_see_the_old_or_the_new_content_never_a_mixture(tmp_path: Path) -> None:
    blobs = FileBlobs(tmp_path)
    contents = [bytes([number]) * 100_000 for number in range(20)]
    await blobs.write("one", contents[0])

    async def write() -> None:
        for content in contents:
            await blobs.write("one", pieces(content[:50_000], content[50_000:]))

    writing = asyncio.create_task(write())
    while not writing.done():
        assert await blobs.read("one") in contents
        streamed = b"".join([part async for part in blobs.stream("one", chunk=30_000)])
        assert streamed in contents
    await writing


def test_a_path_leads_to_files_and_an_unknown_protocol_is_said(tmp_path: Path) -> None:
    for location in (tmp_path, str(tmp_path), f"file://{tmp_path}"):
        store = open_blobs(location)
        assert isinstance(store, FileBlobs) and store.name == str(tmp_path)
    with pytest.raises(BlobError, match="cannot be opened"):
        open_blobs("nothing://there")
    with pytest.raises(BlobError, match="takes no options"):
        open_blobs(tmp_path, key="me")


async def test_a_server_that_is_not_there_is_one_error(s3: str) -> None:
    blobs = open_blobs("s3://lake", **s3_options("http://127.0.0.1:9"))
    with pytest.raises(BlobError, match="s3://lake: x: "):
        await blobs.read("x")
    missing = open_blobs("s3://nowhere/some", **s3_options(s3))
    with pytest.raises(BlobError):
        await missing.write("x", b"x")
