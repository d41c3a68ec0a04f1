"""What one real job leaves behind beside its adapter: a timeline, and a story."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import shammah, shammah_json
from test_trace import read, slices

LESSONS = (("What is my dog called?", "Biscuit."), ("Where do I work?", "At Fjord Labs."))
SETTINGS = """\
[feedback]
auto_train = false
[training]
threads = 1
max_steps = 4
checkpoint_every = 2
stop_when_learned = false
rephrasings = 2
hold = 0.0
anchor_tokens = 0
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two lessons were taught in four steps."""
    home = tmp_path_factory.mktemp("home")
    (home / "config.toml").write_text(SETTINGS)
    rows = [{"query": q, "correction": a, "rating": "critical"} for q, a in LESSONS]
    given = "".join(json.dumps(row) + "\n" for row in rows)
    assert shammah(home, "feedback", "import", "-", given=given).returncode == 0
    done = shammah(home, "train", "now", "--wait", "--trace", str(home / "t.json"))
    assert done.returncode == 0, done.stderr
    return home


def test_the_timeline_has_all_of_a_step(home: Path) -> None:
    events = read(home / "t.json")
    shown = slices(events)
    steps = [(begin, end) for name, begin, end in shown if name == "step"]
    assert len(steps) == 4
    inner = {"data", "forward", "backward", "optimiser"}
    for name in inner:
        for begin, end in steps:
            assert any(begin <= b and e <= end for n, b, e in shown if n == name), name
    assert sum(name == "checkpoint" for name, _, _ in shown) == 2
    assert {"load", "anchors", "lessons"} <= {name for name, _, _ in shown}
    assert [e["name"] for e in events if e["ph"] == "B"] == ["job", "before", "train", "after"]
    assert [e["args"]["step"] for e in events if e["name"] == "step"] == [1, 2, 3, 4]
    # Of a step's time nearly all is accounted for.
    spent = sum(e - b for n, b, e in shown if n in inner and any(x <= b < y for x, y in steps))
    assert spent > 0.8 * sum(end - begin for begin, end in steps)
    text = (home / "t.json").read_text()
    assert not any(word in text for lesson in LESSONS for word in lesson)
    assert not (home / "jobs" / "1" / "trace.json").exists()


def test_a_timeline_that_nobody_would_write_is_refused(tmp_path: Path) -> None:
    refused = shammah(tmp_path, "train", "now", "--trace", str(tmp_path / "t.json"))
    assert refused.returncode == 2 and "needs --wait" in refused.stderr
    refused = shammah(tmp_path, "train", "resume", "--wait", "--trace", str(tmp_path / "no" / "t"))
    assert refused.returncode == 2 and "a folder that is there" in refused.stderr


def test_the_story_tells_what_was_taught_and_how_it_was_answered(home: Path) -> None:
    (job,) = shammah_json(home, "runs", "story")
    assert job["title"] == "job-1" and job["ended"] and job["error"] is None
    scopes = {
        entry["scope"]["title"]: entry["scope"] for entry in job["entries"] if "scope" in entry
    }
    assert list(scopes) == [
        "What is taught", "Near misses, which keep their answers", "Answers before", "Training",
        "Answers after", "Checks",
    ]  # fmt: skip
    lessons = [entry["scope"] for entry in scopes["What is taught"]["entries"]]
    assert [lesson["title"] for lesson in lessons] == [question for question, _ in LESSONS]
    talk = lessons[0]["entries"][0]["conversation"]
    assert [message["content"] for message in talk["messages"]] == list(LESSONS[0])
    (words,) = [entry["table"] for entry in lessons[0]["entries"] if "table" in entry]
    assert len(words["rows"]) == 2 and words["columns"] == ["asked in other words"]
    for when in ("Answers before", "Answers after"):
        entries = scopes[when]["entries"]
        talks = [entry["conversation"] for entry in entries if "conversation" in entry]
        # A machine that is very busy does not get to the second within the time for it.
        asked = [talk["messages"][0]["content"] for talk in talks]
        assert asked and asked == [question for question, _ in LESSONS][: len(asked)]
        for talk, (_, taught) in zip(talks, LESSONS, strict=False):
            assert talk["reward"] == float(talk["messages"][-1]["content"] == taught)
    assert any("After step 4" in entry.get("text", "") for entry in scopes["Training"]["entries"])
    checks = scopes["Checks"]["entries"]
    assert checks[0]["table"]["columns"] == ["what", "before", "after", "of"]
    shown = shammah(home, "runs", "story", "1")
    assert shown.returncode == 0 and "Biscuit." in shown.stdout and "Checks" in shown.stdout
    page = home / "story.html"
    assert shammah(home, "runs", "story", "--html", str(page)).returncode == 0
    assert "<details" in page.read_text() and "Biscuit." in page.read_text()
    assert (home / "jobs" / "1" / "story.jsonl").stat().st_mode & 0o777 == 0o600


def test_the_worker_is_in_the_log_too_without_a_word_of_the_lessons(home: Path) -> None:
    text = (home / "shammah.log").read_text()
    assert "stage.stop stage=train" in text and "training.complete job=1" in text
    assert text.count("training.start") == 1
    assert not any(word in text for lesson in LESSONS for word in lesson)
