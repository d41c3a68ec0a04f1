"""The library: whole adapters or none, names, what is active, and going back."""

from __future__ import annotations

import os
import re
import resource
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from adapter_files import FINGERPRINT, Base, file_bytes, lora_tensors, metadata_for, write_adapter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shammah.adapters.folder
from shammah.adapters.activations import Activations
from shammah.adapters.library import Adapter, AdapterLibrary
from shammah.adapters.metadata import AdapterMetadata
from shammah.adapters.validate import check_against
from shammah.errors import (
    AdapterError,
    AdapterExistsError,
    AdapterInvalidError,
    AdapterNotFoundError,
    StorageError,
)
from shammah.feedback.exchanges import ExchangeStore
from shammah.messages import user
from shammah.storage.database import Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "shammah.db")
    yield opened
    opened.close()


@pytest.fixture
def library(tmp_path: Path, database: Database) -> AdapterLibrary:
    return AdapterLibrary(tmp_path / "adapters", database)


@pytest.fixture
def publish(tmp_path: Path, library: AdapterLibrary) -> Callable[..., Adapter]:
    def publish(seed: int = 0, **changes: object) -> Adapter:
        return library.publish(*write_adapter(tmp_path / "made", seed, **changes))

    return publish


def names(library: AdapterLibrary) -> list[str]:
    return [adapter.name for adapter in library.list()]


def sound(library: AdapterLibrary) -> list[str]:
    """The names that are listed, all of them checked as before use."""
    for adapter in library.list():
        check_against(adapter.path, adapter.require_metadata(), Base(), folder=library.folder)
    return names(library)


def in_child(work: Callable[[], object]) -> int:
    """Run something in a forked process; its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# --- publishing -------------------------------------------------------------------------------


def test_a_published_adapter_is_private_whole_and_described(
    tmp_path: Path, library: AdapterLibrary, publish: Callable[..., Adapter]
) -> None:
    adapter = publish()
    local = datetime(2026, 2, 6, 14, 30, 25, tzinfo=UTC).astimezone()
    assert adapter.name == f"lora_adapter_{local:%Y%m%d_%H%M%S}"
    metadata = adapter.require_metadata()
    assert metadata.name == adapter.name
    assert (metadata.tensors, metadata.parameters) == (4, 48)
    assert adapter.size == adapter.path.stat().st_size
    assert stat.S_IMODE(library.folder.stat().st_mode) == 0o700
    files = sorted(library.folder.iterdir())
    assert [path.name for path in files] == [f"{adapter.name}.json", f"{adapter.name}.safetensors"]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
    assert sound(library) == [adapter.name]
    again = AdapterMetadata.read(files[0])
    assert again == metadata


def test_weights_that_are_not_the_described_ones_are_refused(
    tmp_path: Path, library: AdapterLibrary
) -> None:
    path, metadata = write_adapter(tmp_path)
    for changes, match in (
        ({"sha256": "0" * 64}, "sha256"),
        ({"lora": metadata.lora.model_copy(update={"rank": 8})}, "rank"),
    ):
        with pytest.raises(AdapterInvalidError, match=match):
            library.publish(path, metadata.model_copy(update=changes))
    path.write_bytes(b"PK\x03\x04" + b"\0\0\x08\x08" + b"x" * 99)
    with pytest.raises(AdapterInvalidError, match="pickle"):
        library.publish(path, metadata)
    assert list(library.folder.iterdir()) == []


def test_two_in_one_second_do_not_collide_also_across_processes(
    tmp_path: Path, library: AdapterLibrary
) -> None:
    path, metadata = write_adapter(tmp_path)

    def work() -> None:
        mine = AdapterLibrary(library.folder, Database(tmp_path / "shammah.db"))
        for _ in range(5):
            mine.publish(path, metadata)

    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            try:
                work()
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    found = sound(library)
    assert len(set(found)) == 20
    assert all(re.fullmatch(r"lora_adapter_\d{8}_\d{6}", name) for name in found)
    assert len(list(library.folder.iterdir())) == 40


def killed_at_every_step(work: Callable[[], object], after: Callable[[], object]) -> int:
    """Run work in processes that are killed (-9) before their first, second, ... change of a file,
    until one comes through; how many were killed."""
    for step in range(200):

        def dies(step: int = step) -> None:
            left = step

            def hook(event: str, arguments: tuple[object, ...]) -> None:
                nonlocal left
                if event not in ("open", "os.rename", "os.remove", "os.link", "os.chmod"):
                    return
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1

            sys.addaudithook(hook)
            work()

        status = in_child(dies)
        after()
        if status == 0:
            return step
        assert status == -signal.SIGKILL
    raise AssertionError("never came to an end")


def test_a_killed_publish_leaves_nothing_or_a_whole_adapter(
    tmp_path: Path,
    library: AdapterLibrary,
    publish: Callable[..., Adapter],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = publish()
    path, metadata = write_adapter(tmp_path / "made", 1)
    seen: list[int] = []

    def work() -> None:
        # A name of its own each time: those that died keep theirs for a while.
        moment = metadata.created_at + timedelta(hours=len(seen))
        library.publish(path, metadata.model_copy(update={"created_at": moment}))

    def after() -> None:
        found = sound(library)
        assert first.name in found
        seen.append(len(found))

    killed = killed_at_every_step(work, after)
    assert killed > 8
    assert seen[0] == 1
    assert seen == sorted(seen)
    assert seen[-1] > 1
    # What they left is swept away once it is old, and nothing else.
    before = sound(library)
    assert len(list(library.folder.iterdir())) > 2 * len(before)
    monkeypatch.setattr(shammah.adapters.folder, "SWEEP_SECONDS", -1.0)
    last = publish(2)
    assert set(sound(library)) == {*before, last.name}
    assert len(list(library.folder.iterdir())) == 2 * (len(before) + 1)


def test_a_full_disk_leaves_nothing(tmp_path: Path, library: AdapterLibrary) -> None:
    content = file_bytes(lora_tensors(modules={f"layers.{n}.q": (200, 100) for n in range(8)}))
    path = tmp_path / "big.safetensors"
    path.write_bytes(content)
    long = "x" * (len(content) + 10_000)
    about = metadata_for(content)
    described = about.model_copy(
        update={"lessons": [about.lessons[0].model_copy(update={"target": long})]}
    )

    def work(limit: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(StorageError):
            library.publish(path, described)

    # The weights do not fit; the weights do, and the description does not.
    for limit in (0, 100, len(content) - 1, len(content) + 1):
        assert in_child(lambda limit=limit: work(limit)) == 0
        assert library.list() == []
        assert list(library.folder.iterdir()) == []
    library.publish(path, described)
    assert len(library.list()) == 1


# --- looking ----------------------------------------------------------------------------------


def test_the_newest_come_first_and_broken_ones_are_shown(
    library: AdapterLibrary, publish: Callable[..., Adapter]
) -> None:
    moments = [datetime(2026, 1, day, tzinfo=UTC) for day in (2, 3, 1)]
    adapters = [publish(seed, created_at=moment) for seed, moment in enumerate(moments)]
    newest = [adapters[index].name for index in (1, 0, 2)]
    assert names(library) == newest
    folder = library.folder
    adapters[0].path.with_suffix(".json").unlink()
    adapters[1].path.with_suffix(".json").write_text('{"name": 3}')
    adapters[2].path.write_bytes(b"")
    (folder / "linked.safetensors").symlink_to("/etc/hostname")
    (folder / "gone.safetensors").symlink_to(folder / "nothing")
    (folder / "a b.safetensors").write_bytes(b"x")
    (folder / "pipe.safetensors").mkdir()
    (folder / "alone.json").write_text("{}")
    problems = {adapter.name: adapter.problem or "" for adapter in library.list()}
    expected = {
        adapters[0].name: "missing",
        adapters[1].name: "does not describe an adapter",
        adapters[2].name: "empty",
        "linked": "leads out",
        "gone": "No such file",
        "a b": "cannot be typed",
    }
    assert problems.keys() == expected.keys()
    for name, words in expected.items():
        assert words in problems[name]
    for name in list(expected)[:5]:
        with pytest.raises(AdapterInvalidError, match=re.escape(name)):
            library.get(name).require_metadata()
        with pytest.raises(AdapterInvalidError):
            library.activate(FINGERPRINT, name)
        library.delete(name)
    assert names(library) == ["a b"]


def test_hundreds_are_listed_fast(library: AdapterLibrary, publish: Callable[..., Adapter]) -> None:
    adapter = publish()
    metadata = adapter.require_metadata()
    full = metadata.model_copy(update={"lessons": metadata.lessons * 100})
    for number in range(300):
        # Sparse: listing must not read weights.
        with (library.folder / f"copy-{number}.safetensors").open("wb") as stream:
            stream.truncate(2**30)
        (library.folder / f"copy-{number}.json").write_text(full.to_json())
    start = time.process_time()
    assert len(library.list()) == 301
    # Reading 300 GB would take minutes.
    assert time.process_time() - start < 10.0


def test_names_with_suffix_and_paths_inside_only(
    tmp_path: Path, library: AdapterLibrary, publish: Callable[..., Adapter]
) -> None:
    adapter = publish()
    for name in (adapter.name, adapter.path.name, str(adapter.path)):
        assert library.get(name).name == adapter.name
    outside = tmp_path / "made" / "adapter-0.safetensors"
    for name in (
        str(outside),
        f"../made/{outside.name}",
        str(library.folder / ".." / "made" / outside.name),
        "..",
        ".",
        "",
        "a\0b",
        "a b",
        ".hidden",
        "-x",
    ):
        with pytest.raises(AdapterInvalidError):
            library.get(name)
    with pytest.raises(AdapterNotFoundError, match=adapter.name):
        library.get(adapter.name[:-1] + "x")


# --- what is active ---------------------------------------------------------------------------


def test_activate_and_roll_back(
    library: AdapterLibrary, publish: Callable[..., Adapter], database: Database
) -> None:
    a, b, c = (publish(seed).name for seed in range(3))
    with pytest.raises(AdapterError, match="nothing to go back to"):
        library.rollback(FINGERPRINT)
    assert library.active(FINGERPRINT) is None
    for name in (a, b, b, c):
        library.activate(FINGERPRINT, name)
    assert library.active(FINGERPRINT) == c
    assert library.active("0" * 64) is None
    # Another process sees it, also after a restart.
    other = AdapterLibrary(library.folder, Database(database.path))
    assert other.rollback(FINGERPRINT) == b
    assert library.active(FINGERPRINT) == b
    assert library.rollback(FINGERPRINT) == a
    assert library.rollback(FINGERPRINT) is None
    assert library.active(FINGERPRINT) is None
    with pytest.raises(AdapterError, match="nothing to go back to"):
        library.rollback(FINGERPRINT)
    steps = [activation.adapter for activation in reversed(library.history(FINGERPRINT))]
    assert steps == [a, b, c, b, a, None]
    library.activate(FINGERPRINT, c)
    library.activate(FINGERPRINT, None)
    assert library.rollback(FINGERPRINT) == c


def test_what_cannot_be_used_is_not_activated(
    library: AdapterLibrary, publish: Callable[..., Adapter]
) -> None:
    other = publish(base_fingerprint="0" * 64, base_model="another")
    with pytest.raises(AdapterInvalidError, match="made for another"):
        library.activate(FINGERPRINT, other.name)
    with pytest.raises(AdapterNotFoundError):
        library.activate(FINGERPRINT, "nobody")
    assert library.history(FINGERPRINT) == []


def test_the_active_one_is_not_deleted_and_deleted_ones_are_passed_over(
    library: AdapterLibrary, publish: Callable[..., Adapter]
) -> None:
    a, b, c = (publish(seed) for seed in range(3))
    for adapter in (a, b, c):
        library.activate(FINGERPRINT, adapter.name)
    with pytest.raises(AdapterError, match="is active"):
        library.delete(c.name)
    assert c.path.exists()
    library.delete(f"{b.name}.safetensors")
    with pytest.raises(AdapterNotFoundError):
        library.delete(b.name)
    assert library.rollback(FINGERPRINT) == a.name
    library.delete(c.name)
    # A broken one is passed over as well.
    d = publish(3)
    library.activate(FINGERPRINT, d.name)
    a.path.with_suffix(".json").write_text("")
    assert library.rollback(FINGERPRINT) is None
    assert sorted(names(library)) == sorted([a.name, d.name])


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("activate"), st.sampled_from(["a", "b", "c", None])),
        st.tuples(st.just("delete"), st.sampled_from(["a", "b", "c"])),
        st.tuples(st.just("rollback"), st.none()),
    ),
    max_size=12,
)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(STEPS)
def test_going_back_is_a_stack(database: Database, steps: list[tuple[str, str | None]]) -> None:
    fingerprint = os.urandom(8).hex()
    activations = Activations(database)
    stack: list[str | None] = [None]
    there = {"a", "b", "c"}
    for action, name in steps:
        if action == "delete" and name != stack[-1]:
            there.discard(str(name))
        elif action == "activate" and (name is None or name in there):
            activations.activate(fingerprint, name)
            if name != stack[-1]:
                stack.append(name)
        elif action == "rollback":
            below = stack[:-1]
            while below and (below[-1] == stack[-1] or below[-1] not in {*there, None}):
                below.pop()
            if below:
                stack = below
                assert activations.rollback(fingerprint, there.__contains__) == stack[-1]
            else:
                with pytest.raises(AdapterError):
                    activations.rollback(fingerprint, there.__contains__)
        assert activations.active(fingerprint) == stack[-1]


# --- renaming ---------------------------------------------------------------------------------


def test_a_renamed_adapter_stays_active_and_known(
    library: AdapterLibrary, publish: Callable[..., Adapter], database: Database
) -> None:
    a = publish()
    b = publish(1, parent=a.name)
    for name in (a.name, b.name, a.name):
        library.activate(FINGERPRINT, name)
    exchanges = ExchangeStore(database)
    exchange = exchanges.add(
        session="s", messages=(user("Hi"),), response="Hello.", cut=False, model="tiny",
        fingerprint=FINGERPRINT, adapter=a.name, generation=1, settings={},
    )  # fmt: skip
    renamed = library.rename(a.name, "my.adapter-1")
    assert renamed.name == "my.adapter-1"
    assert renamed.require_metadata().name == "my.adapter-1"
    assert set(sound(library)) == {"my.adapter-1", b.name}
    assert library.active(FINGERPRINT) == "my.adapter-1"
    assert library.get(b.name).require_metadata().parent == "my.adapter-1"
    assert exchanges.get(exchange.id).adapter == "my.adapter-1"
    assert [row.adapter for row in library.history(FINGERPRINT)] == [
        "my.adapter-1", b.name, "my.adapter-1",
    ]  # fmt: skip
    assert library.rollback(FINGERPRINT) == b.name
    assert library.rollback(FINGERPRINT) == "my.adapter-1"
    assert len(list(library.folder.iterdir())) == 4
    assert stat.S_IMODE(renamed.path.stat().st_mode) == 0o600


def test_names_that_are_taken_or_unfit_are_refused(
    library: AdapterLibrary, publish: Callable[..., Adapter]
) -> None:
    a, b, c = (publish(seed) for seed in range(3))
    assert library.rename(a.name, f"{a.name}.safetensors").name == a.name
    for new in ("", "..", "../x", "a/b", "a b", ".x", "-x", "ä", "x" * 200, "none", "a\n"):
        with pytest.raises(AdapterError, match="not a name"):
            library.rename(a.name, new)
    with pytest.raises(AdapterExistsError, match="already"):
        library.rename(a.name, b.name)
    library.activate(FINGERPRINT, c.name)
    library.activate(FINGERPRINT, None)
    library.delete(c.name)
    with pytest.raises(AdapterExistsError, match="deleted"):
        library.rename(a.name, c.name)
    with pytest.raises(AdapterNotFoundError):
        library.rename("nobody", "x")
    assert set(sound(library)) == {a.name, b.name}
    assert len(list(library.folder.iterdir())) == 4


def test_a_killed_rename_or_delete_loses_nothing_that_is_active(
    tmp_path: Path,
    library: AdapterLibrary,
    publish: Callable[..., Adapter],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library.activate(FINGERPRINT, publish().name)
    doomed = [publish(1).name]
    taken = iter(range(1000))

    def rename() -> None:
        mine = AdapterLibrary(library.folder, Database(tmp_path / "shammah.db"))
        mine.rename(str(mine.active(FINGERPRINT)), f"name-{time.monotonic_ns()}")

    def active_is_there() -> None:
        active = library.active(FINGERPRINT)
        assert active in sound(library)

    assert killed_at_every_step(rename, active_is_there) > 8

    def delete() -> None:
        AdapterLibrary(library.folder, Database(tmp_path / "shammah.db")).delete(doomed[0])

    def whole_or_gone() -> None:
        if doomed[0] not in sound(library):
            doomed[0] = publish(2 + next(taken)).name

    assert killed_at_every_step(delete, whole_or_gone) > 2
    monkeypatch.setattr(shammah.adapters.folder, "SWEEP_SECONDS", -1.0)
    publish(1000, created_at=datetime.now(UTC) + timedelta(days=1))
    assert len(list(library.folder.iterdir())) == 2 * len(sound(library))
