"""Groups of samples beside those that TRL's GRPO trainer draws: tokens a second.

A random-weight model of the Qwen2.5-0.5B shape with a LoRA adapter (q_proj and v_proj, rank 16)
answers GSM8K questions, several times each, in bf16 at temperature 1; all answers of a step are one
batch. `trl` is `GRPOTrainer` without vLLM, which a CPU has not: what it calls to draw the
completions of a step is timed, and nothing else of it. No answer ends by itself, so that both draw
exactly `--tokens` tokens a sample. Ours come with their log-probabilities, TRL's without: it
computes them in another pass, which is not counted. Each runs in a process of its own, in turns.

    python scripts/bench/sampling_groups.py [--prompts 4] [--group 8] [--tokens 64] [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import shapes
import table

RANK, ALPHA, TARGETS = 16, 32, ["q_proj", "v_proj"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    table.add_arguments(parser)
    parser.add_argument("--prompts", type=int, default=4, metavar="N")
    parser.add_argument("--group", type=int, default=8, metavar="N")
    parser.add_argument("--tokens", type=int, default=64, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--one", choices=list(DRAWERS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.quick:
        given.prompts, given.group, given.tokens, given.rounds = 2, 4, 8, 1
    if given.one:
        print(json.dumps(DRAWERS[given.one](questions(given.prompts), given.group, given.tokens)))
        return
    shapes.qwen_half_billion()
    found: dict[str, list[float]] = {name: [] for name in DRAWERS}
    for _ in range(given.rounds):
        for name, seconds in found.items():
            seconds.append(in_its_own_process(name, given))
    drawn = given.prompts * given.group * given.tokens
    rows: list[table.Row] = [
        {"drawn by": name, "seconds": median(seconds), "tokens/s": drawn / median(seconds)}
        for name, seconds in found.items()
    ]
    table.report(
        f"{given.prompts} prompts, {given.group} samples each, {given.tokens} tokens a sample",
        rows,
        {"sampling_vs_trl": median(found["trl"]) / median(found["shammah"])},
        targets={"sampling_vs_trl": "at least 2"},
        json_file=given.json,
    )


def in_its_own_process(name: str, given: argparse.Namespace) -> float:
    """Seconds that one of them takes, when nothing of the other is in memory."""
    command = [
        sys.executable, __file__, "--one", name, "--prompts", str(given.prompts),
        "--group", str(given.group), "--tokens", str(given.tokens),
    ]  # fmt: skip
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(ended.stdout.splitlines()[-1])


def questions(count: int) -> list[list[int]]:
    """Token ids of GSM8K questions as prompts."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shapes.qwen_half_billion())
    lines = (shapes.SHARED / "gsm8k" / "train.jsonl").read_text().splitlines()[:count]
    return [
        tokenizer(f"<|im_start|>user\n{json.loads(line)['question']}<|im_end|>\n")["input_ids"]
        for line in lines
    ]


def shammah_seconds(prompts: list[list[int]], group: int, tokens: int) -> float:
    """Seconds of `sample_batch` of the client that trains."""
    from shammah.models.load import load_base_model
    from shammah.ports.datum import ModelInput
    from shammah.ports.sampling_client import SamplingParams
    from shammah.settings import LoraSettings, ModelSettings, TrainingSettings
    from shammah.training.local_client import LocalTrainingClient

    settings = ModelSettings(name=str(shapes.qwen_half_billion()), dtype="bf16")
    lora = LoraSettings(rank=RANK, alpha=ALPHA, target_modules=TARGETS, layers=1.0)
    client = LocalTrainingClient(load_base_model(settings), lora, TrainingSettings())

    async def draw(asked: list[list[int]], limit: int) -> float:
        began = time.perf_counter()
        found = await client.sampler.sample_batch(
            [
                (ModelInput.of(prompt), SamplingParams(limit, 1.0, number), group)
                for number, prompt in enumerate(asked)
            ]
        )
        assert all(len(sample) == limit for samples in found for sample in samples)
        return time.perf_counter() - began

    asyncio.run(draw([prompts[0][:16]], 2))
    return asyncio.run(draw(prompts, tokens))


def trl_seconds(prompts: list[list[int]], group: int, tokens: int) -> float:
    """Seconds in which TRL's `GRPOTrainer` draws the completions of a step."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    folder = shapes.qwen_half_billion()

    size = len(prompts) * group
    with tempfile.TemporaryDirectory() as output:
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16),
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=GRPOConfig(
                output_dir=output,
                per_device_train_batch_size=size,
                num_generations=group,
                max_completion_length=tokens,
                temperature=1.0,
                use_cpu=True,
                bf16=True,
                report_to=[],
            ),
            train_dataset=Dataset.from_list([{"prompt": "a"}] * size),
            processing_class=AutoTokenizer.from_pretrained(folder),
            peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS),
        )
        trainer.model.eval()

        def draw(asked: list[list[int]], limit: int) -> float:
            config = trainer.generation_config
            config.max_new_tokens = config.min_new_tokens = limit
            repeated = [prompt for prompt in asked for _ in range(group)]
            began = time.perf_counter()
            found, _ = trainer._generate_single_turn(repeated, None, {}, group)
            seconds = time.perf_counter() - began
            assert all(len(each) == limit for each in found)
            return seconds

        draw([prompts[0][:16]], 2)
        return draw(prompts, tokens)


DRAWERS: dict[str, Callable[[list[list[int]], int, int], float]] = {
    "shammah": shammah_seconds,
    "trl": trl_seconds,
}

if __name__ == "__main__":
    # What TRL and others print must not get between this program and its one line.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
