"""`train plan` says what a job will do, and the job then does that."""

from __future__ import annotations

import json
from pathlib import Path

from command import shammah_json

LESSONS = [
    {"query": "What is my project called?", "correction": "It is called Zeno."},
    {"query": "what is my  project called?", "response": "Apollo.", "rating": "good"},
    {"query": "Which port does my server use?", "correction": "It uses port 8087."},
    {"query": "What is a list?", "response": "A list.", "rating": "critical"},
]


def test_the_job_does_what_was_planned(tmp_path: Path) -> None:
    assert shammah_json(tmp_path, "train", "plan")["lessons"] == []
    rows = tmp_path / "lessons.jsonl"
    rows.write_text("\n".join(map(json.dumps, LESSONS)), encoding="utf-8")
    shammah_json(tmp_path, "feedback", "import", str(rows))

    planned = shammah_json(tmp_path, "train", "plan")
    ways = {item["feedback_id"]: item["examples"] for item in planned["lessons"]}
    assert ways[2] == 0 and ways[1] > 1 and ways[3] > 1 and ways[4] == 1
    assert "feedback 1" in planned["lessons"][1]["problem"]
    assert [item["objective"] for item in planned["lessons"]] == [
        *("towards", "towards", "towards", "avoid")
    ]
    assert planned["waiting"] == 0
    assert planned["parent"] is planned["seconds"] is None
    assert planned["anchors"] >= 150 and planned["training_bytes"] > 100e6

    job = shammah_json(tmp_path, "train", "now", "--wait")
    (listed,) = shammah_json(tmp_path, "adapters", "list")
    metrics = shammah_json(tmp_path, "adapters", "show", listed["name"])["metrics"]
    assert metrics["examples"] == sum(count > 0 for count in ways.values())
    assert 0 < metrics["steps"] <= planned["steps_at_most"]
    assert job["learned"] == 3

    found = shammah_json(tmp_path, "adapters", "compare", listed["name"])
    assert found["first"] is None and found["second"]["info"]["failures"] == []
    assert {lesson["query"] for lesson in found["difference"]["added"]} == {
        row["query"] for row in LESSONS
    }
    assert all(layer["difference"] > 0 for layer in found["difference"]["layers"])

    again = shammah_json(tmp_path, "train", "plan")
    assert again["lessons"] == [] and again["parent"] == listed["name"]
