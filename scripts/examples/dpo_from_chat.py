"""DPO on corrections from the chat: what was said instead of what.

    python scripts/examples/dpo_from_chat.py
    python scripts/examples/dpo_from_chat.py --data feedback.jsonl

The file is what `shammah feedback export feedback.jsonl` writes. Without it the example asks the
model itself, corrects it as `/correct` does, and exports that.

Each correction is a pair: chosen is the correction, rejected the answer that it corrects. What
makes no pair (a `/good`, a `/critical` without a correction) is passed over and counted.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from shammah import DPO, Assistant, Paths, Settings, local_completer, open_dataset

CORRECTIONS = {
    "How do I undo the last commit?": "Use git reset --soft HEAD~1.",
    "How do I list files by size?": "Use ls -S.",
    "How do I reverse a list in Python?": "Use items[::-1].",
    "How do I count the rows of a table?": "Use SELECT count(*) FROM table.",
    "How do I see which branch I am on?": "Use git branch.",
    "How do I stop a process?": "Use kill PID.",
}
GOOD = "How do I sort a list in Python?"


async def chat(paths: Paths) -> None:
    """Ask and correct, and say of one answer that it is good."""
    assistant = Assistant(Settings(), paths, train=False)
    try:
        for question, correction in CORRECTIONS.items():
            await assistant.ask(question).text()
            await assistant.rate(None, correction=correction)
            assistant.clear()
        await assistant.ask(GOOD).text()
        await assistant.rate("good")
    finally:
        await assistant.close()


def export(paths: Paths, exported: Path) -> None:
    """As `shammah feedback export` on the command line."""
    command = [sys.executable, "-m", "shammah", "feedback", "export", str(exported)]
    subprocess.run(command, env={**os.environ, "SHAMMAH_HOME": str(paths.data)}, check=True)


async def learn(data: Path, steps: int, paths: Paths) -> None:
    recipe = DPO(data=str(data), loss="dpo:beta=0.1,supervised=0.2", max_steps=steps)
    result = await recipe.run(paths=paths)

    about = result.context.state["data"]
    passed_over = ", ".join(f"{n} without {what}" for what, n in about["lacking"].items())
    print(f"{about['examples']} pairs learned; passed over: {passed_over or 'none'}")
    for figure in ("likelier", "margin", "reward_chosen", "reward_rejected"):
        before, after = (result.metrics[f"{when}/{figure}"] for when in ("before", "after"))
        print(f"{figure:<16}{before:7.2f} -> {after:6.2f}")
    pair = next(each for each in open_dataset(data).examples() if each.rejected is not None)
    print(f"\n{pair.prompt[-1].text}")
    for name, adapter in (("before", None), ("after", result.artifacts["adapter"])):
        async with local_completer(adapter=adapter) as model:
            print(f"{name:<8}{(await model.complete(pair.prompt)).text}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="what `shammah feedback export` wrote")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--home", type=Path, help="a data folder to keep")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        home = given.home or Path(folder, "home")
        paths = Paths(home, home).ensure()
        data = given.data or Path(folder, "feedback.jsonl")
        if given.data is None:
            asyncio.run(chat(paths))
            export(paths, data)
        asyncio.run(learn(data, given.steps, paths))


if __name__ == "__main__":
    main()
