"""Removing the worst adapters: which ones, and never one that is needed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from adapter_files import FINGERPRINT, write_adapter
from command import shammah, shammah_json
from hypothesis import given
from hypothesis import strategies as st
from test_learning_trainer import Chat

from shammah.adapters.library import AdapterLibrary
from shammah.adapters.metadata import MergedParent, MergeRecord
from shammah.adapters.pruning import Candidate, Removal, to_remove, with_ancestors
from shammah.assistant.workspace import Workspace
from shammah.errors import UsageError
from shammah.learning.upkeep import Upkeep
from shammah.messages import user
from shammah.paths import Paths
from shammah.settings import AdaptersSettings, FeedbackSettings, Settings, TrainingSettings

START = datetime(2026, 2, 6, 14, 30, 25, tzinfo=UTC)


def candidate(name: str, age: int = 0, **known: Any) -> Candidate:
    return Candidate(name, START - timedelta(hours=age), **known)


def test_the_worst_go_first_and_it_is_said_why() -> None:
    items = [
        candidate("fine", 9, answers=50, ratings={"good": 8, "critical": 1}),
        candidate("failed", answers=90, failed=True, ratings={"good": 20}),
        candidate("bad", answers=70, ratings={"good": 1, "critical": 2, "medium": 1}),
        candidate("old", 5, answers=3),
        candidate("new", 1, answers=3),
        candidate("once", 1, answers=1),
        candidate("idle", 2),
    ]
    assert to_remove(items, (), 1) == [
        Removal("failed", "it failed its checks"),
        Removal("bad", "3 of its 4 ratings were critical or medium"),
        Removal("fine", "1 of its 9 ratings were critical or medium"),
        Removal("idle", "never used"),
        Removal("once", "used in only 1 answer"),
        Removal("old", "used in only 3 answers"),
    ]
    assert [item.name for item in to_remove(items, ("failed", "fine"), 5)] == ["bad", "idle"]
    assert to_remove(items, (), 0) == to_remove(items, (), 7) == to_remove([], (), 3) == []


names = st.integers(0, 9).map(str)


@given(
    parents=st.dictionaries(names, st.lists(names, max_size=3), max_size=10),
    held=st.sets(names),
    keep=st.integers(0, 12),
)
def test_what_is_held_stays_and_no_more_is_removed_than_needed(
    parents: dict[str, list[str]], held: set[str], keep: int
) -> None:
    items = [candidate(name, int(name)) for name in parents]
    lineage = with_ancestors(held, parents)
    assert held <= lineage
    assert all(set(parents.get(name, ())) <= lineage for name in lineage)
    removed = {item.name for item in to_remove(items, lineage, keep)}
    assert not removed & lineage
    left = len(items) - len(removed)
    assert left == len(items) if keep == 0 else left == max(
        min(keep, len(items)), len(lineage & parents.keys())
    )  # fmt: skip


# --- with a library ---------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    workspace = Workspace(Settings(), Paths(tmp_path, tmp_path).ensure())
    yield workspace
    workspace.close()


@pytest.fixture
def publish(workspace: Workspace, tmp_path: Path) -> Callable[..., str]:
    """Publish one adapter a minute."""
    count = iter(range(10_000))

    def work(name: str, **changes: Any) -> str:
        number = next(count)
        path, metadata = write_adapter(
            tmp_path / "made", number, created_at=START + timedelta(minutes=number), **changes
        )
        return workspace.library.publish(path, metadata, name).name

    return work


def left(library: AdapterLibrary) -> set[str]:
    return {adapter.name for adapter in library.list()}


def upkeep(workspace: Workspace) -> Upkeep:
    return Upkeep(workspace.library, workspace.exchanges, workspace.feedback, workspace.queue)


def test_active_ancestors_previous_pinned_newest_and_broken_ones_stay(
    workspace: Workspace, publish: Callable[..., str]
) -> None:
    library = workspace.library
    publish("root", failures=["lost earlier lessons"])
    publish("parent", parent="root")
    publish("other")
    parts = [MergedParent(name=name, weight=0.5, sha256="") for name in ("parent", "other")]
    merged = MergeRecord(parents=parts, method="cat", rank=2, relative_error=0.0)
    publish("active", merge=merged, origin="merged")
    publish("previous")
    publish("pinned")
    publish("broken")
    (library.folder / "broken.json").write_text("{")
    publish("foreign", base_fingerprint="e" * 64)
    for name in ("bad", "idle", "newest"):
        publish(name)
    for name in ("parent", "previous", "active"):
        library.activate(FINGERPRINT, name)
    for rating in ("critical", "good"):
        exchange = workspace.exchanges.add(
            session="s", messages=(user("?"),), response="!", cut=False, model="tiny",
            fingerprint=FINGERPRINT, adapter="bad", generation=1, settings={},
        )  # fmt: skip
        workspace.feedback.rate(exchange.id, rating)  # type: ignore[arg-type]

    expected = [
        Removal("bad", "1 of its 2 ratings were critical or medium"),
        Removal("idle", "never used"),
    ]
    before = left(library)
    with library.pin("pinned"):
        assert library.pinned() == {"pinned"}
        assert upkeep(workspace).prune(0) == []
        assert upkeep(workspace).prune(8) == expected[:1]
    assert left(library) == before - {"bad"}
    with library.pin("pinned"):
        assert upkeep(workspace).prune(1, dry_run=True) == expected[1:]
        assert left(library) == before - {"bad"}
        assert upkeep(workspace).prune(1) == expected[1:]
    assert left(library) == before - {"bad", "idle"}
    # Nobody uses it any more; and going back still goes where it went.
    assert [item.name for item in upkeep(workspace).prune(1)] == ["pinned"]
    assert library.rollback(FINGERPRINT) == "previous"
    assert not (library.folder / "idle.json").exists()


def test_what_comes_into_use_meanwhile_stays(
    workspace: Workspace, publish: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        publish(f"n{number}")
    library = workspace.library
    delete = library.delete

    def late(name: str, check: Callable[[], object] | None = None) -> None:
        if name == "n0":
            library.activate(FINGERPRINT, "n0")
        delete(name, check)

    monkeypatch.setattr(library, "delete", late)
    assert [item.name for item in upkeep(workspace).prune(1)] == ["n1", "n2"]
    assert left(library) == {"n0", "n3"}


def test_processes_together_remove_no_more_than_one_would(
    tmp_path: Path, workspace: Workspace, publish: Callable[..., str]
) -> None:
    for number in range(30):
        publish(f"n{number:02}")
    begin = time.time() + 0.3
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            try:
                mine = Workspace(Settings(), Paths(tmp_path, tmp_path))
                time.sleep(max(0.0, begin - time.time()))
                mine.prune(12)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert left(workspace.library) == {f"n{number:02}" for number in range(18, 30)}
    assert len(list(workspace.library.folder.glob("*.json"))) == 12


def test_a_pin_does_not_outlive_its_process(
    workspace: Workspace, publish: Callable[..., str]
) -> None:
    publish("one")
    child = os.fork()
    if child == 0:
        with workspace.library.pin("one"):
            os._exit(0)
    os.waitpid(child, 0)
    assert workspace.library.pinned() == set()


async def test_training_removes_the_worst_and_says_so(tmp_path: Path) -> None:
    chat = Chat(
        tmp_path,
        "learn:0",
        Settings(
            feedback=FeedbackSettings(threshold=3),
            training=TrainingSettings(mode="fresh"),
            adapters=AdaptersSettings(max_kept=2),
        ),
    )
    try:
        await chat.trainer.start()
        made = []
        for number in range(4):
            chat.teach(3, start=3 * number)
            made.append(str((await chat.ended(number + 1)).adapter))
            await chat.until(lambda: chat.trainer.status().state == "idle")
        await chat.until(lambda: len(chat.library.list()) == 2)
        # The active one, and the one that `rollback` goes to.
        assert left(chat.library) == set(made[2:])
        said = [text for _, text in chat.notices if "removed" in text]
        assert [name in text for name, text in zip(made, said, strict=False)] == [True] * 2
        assert "never used" in said[0] and "adapters.max_kept" in said[0]
        assert chat.library.active(chat.trainer.queue.get(1).base_fingerprint) == made[3]
    finally:
        await chat.close()


async def test_a_chain_of_adapters_is_all_kept(tmp_path: Path) -> None:
    chat = Chat(tmp_path, "learn:0", Settings(adapters=AdaptersSettings(max_kept=1)))
    try:
        await chat.trainer.start()
        for number in range(3):
            chat.teach(1, start=number)
            await chat.trainer.request("now")
            assert (await chat.ended(number + 1)).status == "done"
        assert len(chat.library.list()) == 3
    finally:
        await chat.close()


def test_the_command_prunes_and_says_what(
    tmp_path: Path, workspace: Workspace, publish: Callable[..., str]
) -> None:
    for number in range(4):
        publish(f"n{number}")
    dry = shammah_json(tmp_path, "adapters", "prune", "--keep", "2", "--dry-run")
    wanted = [{"name": name, "reason": "never used"} for name in ("n0", "n1")]
    assert dry == {"removed": wanted, "kept": 2, "dry_run": True}
    assert len(left(workspace.library)) == 4
    done = shammah(tmp_path, "adapters", "prune", "--keep", "2")
    assert done.stdout == "n0: never used\nn1: never used\n2 adapters removed, 2 kept.\n"
    assert left(workspace.library) == {"n2", "n3"}
    done = shammah(tmp_path, "adapters", "prune", "--keep", "0")
    assert done.returncode == 2 and "--keep takes a whole number from 1 on" in done.stderr
    workspace.apply(Settings(adapters=AdaptersSettings(max_kept=0)))
    with pytest.raises(UsageError, match="max_kept is 0"):
        workspace.prune()
