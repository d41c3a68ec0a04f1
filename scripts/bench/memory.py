"""Peak memory of the chat alone, and of chat plus training, on the 0.5B shape.

    python scripts/bench/memory.py [--json FILE]

Counted proportionally (PSS): a page shared by two processes counts half in each, so that base
weights that both map from one file count once. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from shapes import qwen_half_billion
from table import Row, add_arguments, report
from ten_lessons import TEN

GIB = 2**30
TARGETS = {"memory_while_training": "at most 1.5"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_arguments(parser)
    parser.add_argument("--chat", choices=["alone", "training"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.chat:
        asyncio.run(chat(train=options.chat == "training", epochs=1 if options.quick else 4))
        return
    folder = qwen_half_billion()
    alone, both = peak("alone", options.quick), peak("training", options.quick)
    rows: list[Row] = [
        {
            "what": "weights on disk",
            "value": (folder / "model.safetensors").stat().st_size / GIB,
            "unit": "GiB",
        },
        {"what": "chat alone", "value": alone / GIB, "unit": "GiB"},
        {"what": "chat and training", "value": both / GIB, "unit": "GiB"},
    ]
    report(
        "Memory",
        rows,
        {"memory_while_training": both / alone},
        targets=TARGETS,
        json_file=options.json,
    )


def peak(mode: str, quick: bool) -> int:
    """The largest PSS sum, in bytes, of a chat process and its children while it works."""
    command = [sys.executable, __file__, "--chat", mode, *(["--quick"] if quick else [])]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    highest = 0
    finished = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not finished.is_set():
            highest = max(highest, tree_pss(child.pid))
            time.sleep(0.1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = child.communicate()
    finished.set()
    watcher.join()
    if child.returncode:
        raise RuntimeError(f"the {mode} chat failed")
    print(f"{mode}: {json.loads(output)}", file=sys.stderr)
    return highest


def tree_pss(pid: int) -> int:
    total = 0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            total += process.memory_full_info().pss
    except psutil.Error:
        return 0
    return total


async def chat(*, train: bool, epochs: int) -> None:
    """Answer, and with `train` answer while a job runs to its end."""
    from shammah.assistant import Assistant
    from shammah.messages import user
    from shammah.paths import Paths
    from shammah.settings import Settings

    with tempfile.TemporaryDirectory() as home:
        settings = Settings.from_dict(
            {
                "model": {"name": str(qwen_half_billion())},
                "generation": {"max_tokens": 32},
                "training": {"epochs": epochs, "stop_when_learned": False},
            }
        )
        paths = Paths(Path(home), Path(home))
        told: list[str] = []
        assistant = Assistant(settings, paths, on_notice=lambda notice: told.append(notice.text))
        await assistant.start()
        await assistant.ready()
        await assistant.ask("What is a decorator?").text()
        if train:
            store = (await assistant.workspace()).feedback
            for question, answer in TEN:
                store.add((user(question),), None, "critical", None, None, answer, "bench")
            await assistant.feedback_changed()
            while not (store.lessons_trained() or any("failed" in text for text in told)):
                await assistant.ask("What is a generator?").text()
                await asyncio.sleep(2)
        await assistant.ask("What is an iterator?").text()
        await assistant.close()
        print(json.dumps({"told": told}))


if __name__ == "__main__":
    main()
