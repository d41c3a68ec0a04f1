"""A run's story is read as it was told, whatever became of who told it, and shown harmlessly."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from command import ROOT, shammah, shammah_json
from hypothesis import given
from hypothesis import strategies as st

from shammah.errors import StorageError
from shammah.messages import assistant, user
from shammah.repl.wording.story import story_tree
from shammah.tracking.story import (
    STORY,
    Scope,
    StoryWriter,
    Table,
    Talk,
    Text,
    read_story,
    scope_record,
)
from shammah.tracking.story_html import story_html, story_page

EVIL = "<script>alert('x')</script> & \x1b[31m\"red\""


def tell(path: Path) -> None:
    story = StoryWriter(path)
    with story.scope("evaluation"):
        story.text("Two questions.\nBoth easy.")
        with story.scope("rollouts"):
            story.conversation([user("2 + 2?"), assistant("4")], reward=1.0, title="first")
            story.conversation([{"role": "user", "content": EVIL}], reward=math.nan)
        story.table(("metric", "value"), [("exact", 0.5), ("loss", math.inf), (None, True)], "all")
    story.close()
    story.text("unheard")


def test_what_was_told_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run" / STORY
    tell(path)
    assert path.stat().st_mode & 0o777 == 0o600
    (scope,) = read_story(path)
    assert scope.title == "evaluation" and scope.seconds is not None and scope.error is None
    text, rollouts, table = scope.entries
    assert text == Text("Two questions.\nBoth easy.")
    assert table == Table(
        "all", ("metric", "value"), (("exact", 0.5), ("loss", "inf"), (None, True))
    )
    assert isinstance(rollouts, Scope) and rollouts.title == "rollouts"
    first, second = rollouts.entries
    assert isinstance(first, Talk) and first.reward == 1.0 and first.title == "first"
    assert [message["content"] for message in first.messages] == ["2 + 2?", "4"]
    assert isinstance(second, Talk) and second.reward is None
    json.dumps(scope_record(scope), allow_nan=False)
    with pytest.raises(ValueError, match="other than 2 cells"):
        StoryWriter(None).table(("a", "b"), [(1,)])
    with pytest.raises(StorageError):
        read_story(tmp_path / "nothing")


def test_scopes_of_tasks_beside_one_another_do_not_mix(tmp_path: Path) -> None:
    story = StoryWriter(tmp_path / STORY)

    async def rollout(number: int) -> None:
        with story.scope(f"rollout {number}"):
            for turn in range(3):
                await asyncio.sleep(0)
                story.text(f"{number}.{turn}")

    async def batch() -> None:
        with story.scope("batch"):
            await asyncio.gather(*map(rollout, range(4)))

    asyncio.run(batch())
    (scope,) = read_story(tmp_path / STORY)
    told = {
        each.title: [entry.text for entry in each.entries if isinstance(entry, Text)]
        for each in scope.entries
        if isinstance(each, Scope)
    }
    assert told == {f"rollout {n}": [f"{n}.{turn}" for turn in range(3)] for n in range(4)}


def test_a_killed_process_leaves_its_story_and_the_next_one_goes_on(tmp_path: Path) -> None:
    path = tmp_path / STORY
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from shammah.tracking.story import StoryWriter\n"
        "story = StoryWriter(Path(sys.argv[1]))\n"
        "with story.scope('job'), story.scope('train'):\n"
        "    for step in range(20): story.text(str(step))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    with path.open("ab") as file:
        file.write(b'{"kind": "text", "wit')  # as a full disk tears a line
    story = StoryWriter(path)
    with pytest.raises(KeyError), story.scope("job, from step 20"):
        raise KeyError
    story.text("afterwards")
    killed, loose, resumed = read_story(path)
    assert killed.ended is None and killed.seconds is None
    (train,) = killed.entries
    assert isinstance(train, Scope) and len(train.entries) == 20 and train.ended is None
    assert resumed.title == "job, from step 20" and resumed.error == "KeyError"
    assert loose.title == "" and loose.entries == [Text("afterwards")]
    assert "not ended" in story_html([killed]) and "KeyError" in story_html([resumed])


def test_a_story_that_cannot_be_told_breaks_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (None, tmp_path / "file" / STORY):
        story = StoryWriter(path)
        with story.scope("unheard"):
            story.text("x")
        story.close()


class Reader(HTMLParser):
    """The elements of a page, and its text; complains of what is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.said: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        assert not any(name in ("src", "href") or name.startswith("on") for name, _ in attrs)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def test_the_page_folds_and_obeys_nothing_that_was_told(tmp_path: Path) -> None:
    tell(tmp_path / STORY)
    story = read_story(tmp_path / STORY)
    for html in (story_html(story), story_page(story, EVIL)):
        reader = Reader()
        reader.feed(html)
        assert not reader.open and reader.seen.count("details") == 2
        assert "script" not in reader.seen and "link" not in reader.seen
        said = "".join(reader.said)
        assert "alert('x')" in said and "reward 1" in said and "Two questions." in said
        assert reader.seen.count("tr") == 4


def test_the_tree_fits_the_terminal_and_obeys_nothing(tmp_path: Path) -> None:
    tell(tmp_path / STORY)
    story = read_story(tmp_path / STORY)
    tree = story_tree(story, width=60, coloured=False)
    lines = tree.splitlines()
    assert lines[0].startswith("evaluation  ") and "└─ rollouts" in tree
    assert "\x1b" not in tree and "alert('x')" in tree and "first  reward 1" in tree
    assert max(map(len, lines)) <= 60
    assert any(line.split()[-2:] == ["exact", "0.5"] for line in lines)
    folded = story_tree(story, width=60, coloured=False, depth=1)
    assert "(2 parts)" in folded and "2 + 2?" not in folded and "Two questions." in folded


@given(st.recursive(st.text(max_size=8), lambda inner: st.lists(inner, max_size=4), max_leaves=20))
def test_any_nesting_comes_back(tmp_path_factory: pytest.TempPathFactory, nested: Any) -> None:
    path = tmp_path_factory.mktemp("story") / STORY
    story = StoryWriter(path)

    def write(value: Any) -> None:
        if isinstance(value, str):
            story.text(value)
        else:
            with story.scope("list"):
                for each in value:
                    write(each)

    def read(entry: Any) -> Any:
        return entry.text if isinstance(entry, Text) else [read(each) for each in entry.entries]

    with story.scope("all"):
        write(nested)
    story.close()
    (scope,) = read_story(path)
    assert [read(entry) for entry in scope.entries] == [nested]
    story_html([scope])
    story_tree([scope], width=40, coloured=False)


def test_the_story_of_an_evaluation(tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    rows = [{"prompt": f"What is {n} + {n}?", "completion": str(2 * n)} for n in range(3)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    arguments = ("eval", "--data", str(data), "--scorers", "exact_match", "--max-tokens", "8")
    done = shammah(tmp_path / "home", *arguments, "--out", str(out))
    assert done.returncode == 0, done.stderr
    again = shammah(tmp_path / "home", *arguments, "--out", str(out), "--resume")
    assert again.returncode == 0, again.stderr
    shown = shammah(tmp_path / "home", "runs", "story", str(out)).stdout
    assert shown.count("Example ") == 3 and "What is 2 + 2?" in shown and "Expected: 4" in shown
    (scope,) = shammah_json(tmp_path / "home", "runs", "story", str(out))
    assert scope["title"] == "base"
    assert (out / STORY).stat().st_mode & 0o777 == 0o600
