"""A run over many made-up rows with a completer that costs nothing, to be killed and resumed.

    python evaluation_stub.py FOLDER COUNT

Prints what was resumed and done, and by how much memory grew while rows were asked.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from shammah.datasets import ChatExample
from shammah.evaluation.report import report
from shammah.evaluation.run_folder import RunFolder, RunSettings
from shammah.evaluation.runner import Progress, evaluate
from shammah.evaluation.scorer import Score
from shammah.messages import Conversation, Message, assistant, user


class Third:
    """Wrong for every third number."""

    async def complete(self, messages: Conversation) -> Message:
        number = int(messages[-1].text.rpartition(" ")[2])
        return assistant(str(2 * number + (number % 3 == 0)))


class Same:
    name = "same"

    async def score(self, output: str, target: str, metadata: Mapping[str, Any]) -> Score:
        return Score(float(output == target))


def examples(count: int) -> Iterator[ChatExample]:
    for number in range(count):
        yield ChatExample(
            (user(f"What is twice the number {number}"), assistant(str(2 * number))),
            metadata={"number": number},
            place=f"numbers:{number + 1}",
        )


async def main(folder: Path, count: int) -> None:
    settings = RunSettings(data={"rows": count}, model={"name": "stub"}, scorers=["same"])
    process = psutil.Process()
    early: list[int] = []
    most: list[int] = [0]
    resumed = [0]

    def look(progress: Progress) -> None:
        resumed[0] = progress.resumed
        if progress.done == progress.resumed + 200:
            early.append(process.memory_info().rss)
        if progress.done % 500 == 0:
            most[0] = max(most[0], process.memory_info().rss)

    with RunFolder(folder, settings, [Same()], resume=True) as run:
        results = await evaluate(
            examples(count), Third(), [Same()], run=run, concurrency=8, on_progress=look
        )
        found = report(results)
        run.write_report(found.to_dict())
    grown = (most[0] - early[0]) / 1e6 if early else 0.0
    told = {"resumed": resumed[0], "done": len(results), "grown_mb": round(grown, 2)}
    print(json.dumps({**told, "mean": found.metrics[0].mean}))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
