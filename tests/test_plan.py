"""`train plan` says what a job will do, and the job then does that."""

from __future__ import annotations

from pathlib import Path

from command import shammah, shammah_json, teach

LESSONS = [
    {"query": "What is my project called?", "correction": "It is called Zeno."},
    {"query": "what is my  project called?", "response": "Apollo.", "rating": "good"},
    {"query": "Which port does my server use?", "correction": "It uses port 8087."},
    {"query": "What is a list?", "response": "A list.", "rating": "critical"},
]


def test_the_job_does_what_was_planned(tmp_path: Path) -> None:
    assert shammah_json(tmp_path, "train", "plan")["lessons"] == []
    teach(tmp_path, LESSONS)
    shammah_json(tmp_path, "config", "set", "training.rephrasings", "4")

    planned = shammah_json(tmp_path, "train", "plan")
    ways = {item["feedback_id"]: item["examples"] for item in planned["lessons"]}
    assert ways[2] == 0 and ways[1] > 1 and ways[3] > 1 and ways[4] == 1
    assert "feedback 1" in planned["lessons"][1]["problem"]
    assert [item["objective"] for item in planned["lessons"]] == [
        *("towards", "towards", "towards", "avoid")
    ]
    assert planned["waiting"] == 0
    assert planned["parent"] is planned["seconds"] is None
    assert planned["anchors"] >= 100 and planned["training_bytes"] > 100e6

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

    # Both were asked their lessons: the adapter answers as taught, the base model otherwise.
    answers = found["answers"]
    assert answers["asked"] == answers["lessons"] == 4
    pairs = {pair["question"]: pair for pair in answers["differing"]}
    for row in (LESSONS[0], LESSONS[2]):
        pair = pairs[row["query"]]
        assert pair["second"] == pair["taught"] == row["correction"] != pair["first"]
    # In a chat its own conversation goes on.
    lines = [
        "/adapters unload", LESSONS[0]["query"], f"/adapters compare {listed['name']} --answers 1",
        LESSONS[2]["query"], "/adapters compare", f"/adapters load {listed['name']}",
    ]  # fmt: skip
    chat = shammah(tmp_path, "chat", "--no-train", given="\n".join(lines))
    assert "Answered differently, 1 of 1 lesson asked (4 in all)" in chat.stdout
    assert chat.stdout.count("(as taught)") == 1
    assert pairs[LESSONS[0]["query"]]["first"] in " ".join(chat.stdout.split())
    assert "Write /adapters compare NAME" in chat.stdout + chat.stderr

    again = shammah_json(tmp_path, "train", "plan")
    assert again["lessons"] == [] and again["parent"] == listed["name"]
