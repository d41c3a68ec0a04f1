"""Conversations to tokens, in tokens per second, beside the tokenizer's own `apply_chat_template`.

    python scripts/bench/rendering.py [--data FOLDER] [--json rendering.json] [--quick]

Conversations of 1, 5 and 20 turns of questions and worked answers from GSM8K. Two jobs: the prompt
for the next answer, and a training example, where the renderer gives a weight for each token and
the template does not. Both must give the same tokens, or nothing is measured. They take turns at
each conversation, in one process; counted is the CPU time of the fastest of several rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from table import Row, add_arguments, report

from shammah.messages import Conversation, assistant, system, to_dicts, user
from shammah.renderers.base import Renderer
from shammah.renderers.gpt_oss import GptOssRenderer
from shammah.renderers.llama3 import Llama3Renderer
from shammah.renderers.qwen3 import Qwen3Renderer
from shammah.renderers.template import TemplateRenderer

DATA = Path(__file__).parents[3] / "shared" / "data"
FAMILIES: dict[str, tuple[str, Callable[[Any], Renderer]]] = {
    "qwen3": ("qwen3", Qwen3Renderer),
    "gpt_oss": ("gpt-oss", GptOssRenderer),
    "llama3": ("llama3.2", Llama3Renderer),
    "template": ("qwen3", TemplateRenderer),
}
"""The folder of a family's vocabulary, and its renderer."""
TURNS = (1, 5, 20)
TOKENS = 20_000
TARGET = "at least 1"

Job = Callable[[Conversation], Sequence[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--data", type=Path, default=DATA, metavar="FOLDER")
    options = parser.parse_args()
    exchanges = read_exchanges(options.data / "gsm8k" / "train.jsonl")
    rows: list[Row] = []
    for family in FAMILIES:
        rows += measured(family, options.data / "tokenizers", exchanges, options.quick)
    ratios = {
        f"{family}, {job}": statistics.geometric_mean(
            row["ratio"] for row in rows if (row["family"], row["job"]) == (family, job)
        )
        for family in FAMILIES
        for job in ("prompt", "example")
    }
    report(
        "Rendering, tokens/s",
        rows,
        ratios,
        targets=dict.fromkeys(ratios, TARGET),
        json_file=options.json,
    )


def read_exchanges(file: Path) -> list[tuple[str, str]]:
    """Questions and answers."""
    with file.open(encoding="utf-8") as lines:
        found = map(json.loads, lines)
        return [(row["question"], row["answer"]) for row in found]


def measured(
    family: str, tokenizers: Path, exchanges: Sequence[tuple[str, str]], quick: bool
) -> Iterator[Row]:
    """One row for each job and length."""
    from transformers import AutoTokenizer

    folder, make = FAMILIES[family]
    tokenizer = AutoTokenizer.from_pretrained(tokenizers / folder)
    renderer = make(tokenizer)

    def template(conversation: Conversation) -> Sequence[int]:
        rows = to_dicts(conversation)
        asked = conversation[-1].role == "user"
        found = tokenizer.apply_chat_template(rows, tokenize=True, add_generation_prompt=asked)
        return list(found["input_ids"])

    jobs: dict[str, Job] = {
        "prompt": renderer.generation_prompt,
        "example": lambda conversation: renderer.supervised(conversation).tokens,
    }
    for name, render in jobs.items():
        for turns in TURNS:
            talks = conversations(exchanges, turns, answered=name == "example")
            chosen, tokens = [], 0
            while tokens < TOKENS / (4 if quick else 1):
                chosen.append(next(talks))
                tokens += len(same(render, template, chosen[-1]))
            seconds, template_seconds = fastest((render, template), chosen, 3 if quick else 5)
            yield {
                "family": family,
                "job": name,
                "turns": turns,
                "tokens": tokens,
                "renderer": tokens / seconds,
                "template": tokens / template_seconds,
                "ratio": template_seconds / seconds,
            }


def conversations(
    exchanges: Sequence[tuple[str, str]], turns: int, *, answered: bool
) -> Iterator[Conversation]:
    """One after the other, no text twice."""
    for begin in range(0, len(exchanges) - turns, turns):
        talk = [system("You solve problems step by step.")]
        for question, answer in exchanges[begin : begin + turns]:
            talk += [user(question), assistant(answer)]
        yield tuple(talk if answered else talk[:-1])


def same(render: Job, template: Job, conversation: Conversation) -> Sequence[int]:
    """What both give.

    Raises:
        ValueError: they differ.
    """
    tokens, wanted = render(conversation), template(conversation)
    if list(tokens) != list(wanted):
        raise ValueError("the renderer and the template give different tokens")
    return tokens


def fastest(jobs: Sequence[Job], talks: Sequence[Conversation], rounds: int) -> list[float]:
    """CPU seconds that each job takes for all conversations, each at its best."""
    totals = [0.0] * len(jobs)
    for talk in talks:
        best = [float("inf")] * len(jobs)
        for _ in range(rounds):
            for place, job in enumerate(jobs):
                began = time.process_time()
                job(talk)
                best[place] = min(best[place], time.process_time() - began)
        totals = [total + seconds for total, seconds in zip(totals, best, strict=True)]
    return totals


if __name__ == "__main__":
    main()
