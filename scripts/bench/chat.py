"""How the chat feels: prompt, first token, speed idle and while training, turn 10, learning.

    python scripts/bench/chat.py [--json FILE] [--quick]

`--quick` leaves out the large shape.


The embedded model for what a user meets first; the random-weight 0.5B shape for speed. Everything
runs one after another; nothing else should run beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from shapes import qwen_half_billion
from table import Row, add_arguments, report
from ten_lessons import TEN
from terminal import Terminal

from shammah.assistant import Assistant, Notice
from shammah.generation.decoding import TokenDecoder
from shammah.generation.engine import Engine
from shammah.generation.lora import AdaptableModel
from shammah.generation.params import GenerationParams
from shammah.generation.sampling import Sampler
from shammah.messages import Conversation, assistant, user
from shammah.models.load import load_base_model
from shammah.paths import Paths
from shammah.renderers.registry import renderer_for
from shammah.settings import ModelSettings, Settings

REPEATS = 3
TOKENS = 64
TARGETS = {
    "learn_ten": "seconds, at most 15",
    "decode_vs_generate": "at least 1.0",
    "turn10_first_token": "at most 1.5",
    "chat_while_training": "at least 0.9",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_arguments(parser)
    options = parser.parse_args()
    rows: list[Row] = []
    ratios: dict[str, float] = {}

    rows.append({"what": "prompt on the screen", "value": prompt_seconds(), "unit": "s"})
    rows.append(
        {"what": "first token after a cold start", "value": first_token_seconds(), "unit": "s"}
    )
    seconds, learned = learn_ten_seconds()
    rows.append(
        {
            "what": f"tenth correction to swap ({learned} of 10 learned)",
            "value": seconds,
            "unit": "s",
        }
    )
    ratios["learn_ten"] = seconds

    models = {"embedded": "embedded"}
    if not options.quick:
        models["0.5B shape"] = str(qwen_half_billion())
    for label, name in models.items():
        ours, theirs = decode_speeds(name)
        rows.append({"what": f"decode, {label}", "value": ours, "unit": "tok/s"})
        rows.append({"what": f"transformers.generate, {label}", "value": theirs, "unit": "tok/s"})
        first, tenth = turn_seconds(name)
        rows.append({"what": f"first token of turn 1, {label}", "value": first, "unit": "s"})
        rows.append({"what": f"first token of turn 10, {label}", "value": tenth, "unit": "s"})
        idle, busy = asyncio.run(speeds_beside_training(name))
        rows.append({"what": f"chat idle, {label}", "value": idle, "unit": "tok/s"})
        rows.append({"what": f"chat while a job runs, {label}", "value": busy, "unit": "tok/s"})
        # The last model measured gives the ratios: the large shape unless it was left out.
        ratios["decode_vs_generate"] = ours / theirs
        ratios["turn10_first_token"] = tenth / first
        ratios["chat_while_training"] = busy / idle
    report("The chat", rows, ratios, targets=TARGETS, json_file=options.json)


def prompt_seconds() -> float:
    """Median seconds from starting Python to the prompt on the screen."""
    taken = []
    for _ in range(REPEATS + 1):
        with tempfile.TemporaryDirectory() as home, Terminal(Path(home)) as terminal:
            taken.append(terminal.wait_for("\n>"))
            terminal.leave()
    return statistics.median(taken[1:])


def first_token_seconds() -> float:
    """Median seconds from starting Python to the first byte of an answer."""
    taken = []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as home:
            started = time.perf_counter()
            child = subprocess.Popen(
                [sys.executable, "-m", "shammah", "ask", "What is a Python list?"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "SHAMMAH_HOME": home},
            )
            assert child.stdout is not None
            child.stdout.read(1)
            taken.append(time.perf_counter() - started)
            child.communicate()
    return statistics.median(taken)


def learn_ten_seconds() -> tuple[float, int]:
    """Seconds from the key press of the tenth correction to the swapped-in adapter, at a real
    terminal; and how many of the ten the job says it learned."""
    with (
        tempfile.TemporaryDirectory() as home,
        Terminal(Path(home), rows=40, columns=120) as terminal,
    ):
        terminal.wait_for("\n>")
        pressed = 0.0
        for question, answer in TEN:
            terminal.submit(question)
            asked = f"> {question}"
            terminal.wait_for(asked)
            terminal.wait_for(lambda t: "tok/s" in t.lines[-1] and "answering" not in t.lines[-1])
            terminal.settle(0.5)
            pressed = time.monotonic()
            terminal.submit_and_wait(f"/correct {answer}", "Training buffer:")
        terminal.wait_for("Background training completed!", 300)
        seconds = time.monotonic() - pressed
        terminal.wait_for("of 10")
        learned = re.search(r"(\d+) of 10", terminal.text)
        terminal.leave()
        return seconds, int(learned.group(1)) if learned else 0


def decode_speeds(name: str) -> tuple[float, float]:
    """Median tokens/s of our decoder and of `model.generate`, in turns: greedy, 64 tokens whatever
    they are, from a cold cache, prompt included in both, on as many threads."""
    import torch

    base = load_base_model(ModelSettings(name=name))
    torch.set_num_threads(base.threads)
    prompt = renderer_for(base.tokenizer, base.stop_tokens).generation_prompt((user("Hello"),))
    ids = torch.tensor([prompt])
    ours, theirs = [], []
    for _ in range(REPEATS + 1):
        adaptable = AdaptableModel(base.model)
        decoder = TokenDecoder(base, adaptable.slot)
        with torch.inference_mode():
            started = time.perf_counter()
            run = decoder.start(
                prompt,
                adaptable.prepare(None, None, 0),
                Sampler(GenerationParams(), prompt, 0),
                limit=TOKENS,
                stop_tokens=(),
                stopped=lambda: False,
            )
            assert len(list(run.tokens())) == TOKENS
            ours.append(TOKENS / (time.perf_counter() - started))
            adaptable.restore()
            started = time.perf_counter()
            base.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=TOKENS,
                min_new_tokens=TOKENS,
                do_sample=False,
                pad_token_id=0,
            )
            theirs.append(TOKENS / (time.perf_counter() - started))
    return statistics.median(ours[1:]), statistics.median(theirs[1:])


def turn_seconds(name: str) -> tuple[float, float]:
    """Median seconds to the first token of turn 1 and of turn 10, each question of like length."""
    base = load_base_model(ModelSettings(name=name))
    engine = Engine(base, renderer_for(base.tokenizer, base.stop_tokens))
    params = GenerationParams(max_tokens=24)
    first, tenth = [], []
    try:
        for run in range(REPEATS + 1):
            conversation: Conversation = ()
            for turn in range(1, 11):
                question = user(f"Run {run}, turn {turn}: what is the difference between a list?")
                answer = engine.generate((*conversation, question), params)
                conversation = (*conversation, question, assistant(answer.text))
                if turn == 1:
                    first.append(answer.first_token_seconds)
            tenth.append(answer.first_token_seconds)
    finally:
        engine.close()
    return statistics.median(first[1:]), statistics.median(tenth[1:])


async def speeds_beside_training(name: str) -> tuple[float, float]:
    """Median tokens/s of answers with nothing else running, and while a job trains."""
    with tempfile.TemporaryDirectory() as home:
        paths = Paths(Path(home), Path(home))
        settings = Settings.from_dict(
            {
                "model": {"name": name},
                "generation": {"max_tokens": 48},
                "training": {"epochs": 10_000, "stop_when_learned": False},
            }
        )

        def heard(notice: Notice) -> None:
            print(notice.text, file=sys.stderr)

        chatting = Assistant(settings, paths, on_notice=heard)
        await chatting.start()
        await chatting.ready()
        idle = await speeds(chatting)
        store = (await chatting.workspace()).feedback
        for question, answer in TEN:
            store.add((user(question),), None, "critical", None, None, answer, name)
        await chatting.feedback_changed()
        deadline = time.monotonic() + 300
        while (status := chatting.status.training) is None or not status.step:
            if time.monotonic() > deadline:
                raise TimeoutError("the job did not begin within five minutes")
            await asyncio.sleep(0.1)
        busy = await speeds(chatting)
        assert chatting.status.training is not None and chatting.status.training.step
        await (await chatting.trainer()).cancel()
        await chatting.close()
        return idle, busy


async def speeds(chatting: Assistant) -> float:
    found = []
    for run in range(REPEATS + 2):
        chatting.clear()
        handle = chatting.ask(f"Question {run}: explain what a decorator is, please.")
        await handle.text()
        assert handle.answer is not None
        found.append(handle.answer.tokens_per_second)
        await asyncio.sleep(0.5)
    return statistics.median(found[1:])


if __name__ == "__main__":
    main()
