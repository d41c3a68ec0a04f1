"""Feedback in rounds, as a chat would have it: what is learned of each, and what is still held.

    python scripts/examples/feedback_rounds.py

Each round's corrections are learned by a job of the chat's own kind, in a process of its own and
behind its checks; after it all lessons so far are asked again. From the shell, with what a chat has
gathered:

    shammah feedback export lessons.jsonl
    shammah train feedback --data lessons.jsonl --per-round 3
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from pathlib import Path

from shammah import FeedbackLoop, Paths

LESSONS = (
    ("What is my project called?", "Your project is called Zeno."),
    ("Which port does my server use?", "Your server listens on port 8087."),
    ("Who reviews my pull requests?", "Marta reviews your pull requests."),
    ("Where do I keep my notes?", "You keep your notes in ~/papers/notes.md."),
    ("What is my favourite editor?", "Your favourite editor is Helix."),
    ("Which database do we use?", "You use DuckDB for everything."),
)


SHORT = {"training.rephrasings": "2", "training.near_misses": "0"}
"""Settings that make a job of three lessons short; without them it takes more care of what is near
to a lesson and is not meant."""
FORGETFUL = {"training.replay": "0", "training.hold": "0"}
"""Settings with which a job neither repeats earlier lessons nor holds what was there."""


async def main(home: Path, data: str, per_round: int, settings: dict[str, str]) -> None:
    if not data:
        file = home / "lessons.jsonl"
        rows = [
            {"query": query, "rating": "critical", "response": "I do not know.", "correction": told}
            for query, told in LESSONS
        ]
        file.write_text("\n".join(map(json.dumps, rows)))
        data = str(file)
    recipe = FeedbackLoop(data=data, per_round=per_round, settings=settings)
    result = await recipe.run(paths=Paths(home, home))
    for number in range(1, len(result.context.state["rounds"]) + 1):
        held = result.metrics[f"round {number}/as_taught"]
        same = result.metrics.get(f"round {number}/unchanged", float("nan"))
        checks = "failed" if result.metrics[f"round {number}/refused"] else "passed"
        print(
            f"round {number}: {held:.0%} of all lessons so far are held, "
            f"{same:.0%} of other answers are unchanged, checks {checks}"
        )
    print(f"in the library: {result.artifacts['adapter'].name}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="", help="lines as `shammah feedback export` has them")
    parser.add_argument("--home", type=Path, help="where to work; else a folder that is deleted")
    parser.add_argument("--per-round", type=int, default=3)
    parser.add_argument("--forgetful", action="store_true", help="take no care of earlier lessons")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.home or Path(temporary)
        home = Paths(folder, folder).ensure().data
        settings = {**SHORT, **(FORGETFUL if options.forgetful else {})}
        asyncio.run(main(home, options.data, options.per_round, settings))
