"""Reinforcement with a reward of one's own: answers in one sentence, without examples in code.

    python scripts/examples/own_reward.py

The base model knows these answers and adds a block of code to most of them. The reward is a plain
function of an answer and its example; named parts add up and are shown apart. From the shell:

    shammah train rl --data questions.jsonl --reward scripts/examples/own_reward.py:reward \
        --max-tokens 48
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from pathlib import Path

from shammah import Assistant, ChatExample, Paths, Reinforcement, Settings

ROWS = (
    {"prompt": "how do I reverse a list in python?", "names": "[::-1]"},
    {"prompt": "how do I sort a list of numbers in python?", "names": "sorted("},
    {"prompt": "what does a list comprehension look like?", "names": " for "},
    {"prompt": "how do I undo my last commit?", "names": "git re"},
    {"prompt": "how do I read a file in python?", "names": "read"},
    {"prompt": "how do I count the lines of a file?", "names": "wc -l"},
)


def reward(answer: str, example: ChatExample) -> dict[str, float]:
    """Half for naming what the example says a right answer names; and only with that, half for
    being one line that ends as a sentence does."""
    if example.metadata["names"] not in answer:
        return {"right": 0.0, "short": 0.0}
    lines = [line for line in answer.splitlines() if line.strip()]
    ended = answer.rstrip().endswith((".", "!"))
    return {"right": 0.5, "short": (0.25 + 0.25 * ended) / len(lines)}


async def answers(home: Path, adapter: str) -> list[str]:
    """What the first two questions are answered in the chat, with an adapter or with `none`."""
    assistant = Assistant(Settings(), Paths(home, home), train=False, adapter=adapter)
    try:
        found = []
        for question in [row["prompt"] for row in ROWS[:2]]:
            found.append(await assistant.ask(question).text())
            assistant.clear()
        return found
    finally:
        await assistant.close()


async def main(home: Path, data: str, steps: int) -> None:
    if not data:
        file = home / "questions.jsonl"
        file.write_text("\n".join(json.dumps(row) for row in ROWS))
        data = str(file)
    recipe = Reinforcement(
        data=data,
        reward=f"{__file__}:reward",
        max_tokens=48,
        prompts=3,  # three questions a step, eight answers to each
        group=8,
        max_steps=steps,
        evaluate_every=steps,
        schedule="constant",
    )
    result = await recipe.run(paths=Paths(home, home))
    for part in ("reward", "reward/right", "reward/short"):
        figures = result.metrics[f"before/{part}"], result.metrics[f"after/{part}"]
        print(f"{part:14} {figures[0]:.2f} -> {figures[1]:.2f}")
    asked = (
        [row["prompt"] for row in ROWS[:2]],
        await answers(home, "none"),
        await answers(home, result.context.state["adapter"]),
    )
    for question, before, after in zip(*asked, strict=True):
        print(f"\n> {question}\n  before: {before!r}\n  after:  {after!r}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="", help="rows with a column `prompt`")
    parser.add_argument("--home", type=Path, help="where to work; else a folder that is deleted")
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = options.home or Path(temporary)
        asyncio.run(main(Paths(home, home).ensure().data, options.data, options.steps))
