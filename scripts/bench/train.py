"""Training speed beside that of others: tokens a second on the same rows, model and adapter.

A random-weight model of the Qwen2.5-0.5B shape learns GSM8K answers with LoRA (q_proj and v_proj,
rank 16) in bf16, loss on the answer alone. Each trainer runs in a process of its own, one after the
other, and takes the same optimiser steps of four rows; only real tokens are counted, never padding.
The first step is not timed. TRL's rows need `pip install trl datasets`; without it they are left
out, and so is the ratio.

    python scripts/bench/train.py [--rows 24] [--quick] [--json FILE] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shapes
import table

RANK, ALPHA, TARGETS = 16, 32, ["q_proj", "v_proj"]
BATCH = 4
LEARNING_RATE = 1e-4

Example = tuple[list[int], int]
"""Token ids and the length of the prompt."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    table.add_arguments(parser)
    parser.add_argument("--rows", type=int, default=24, help="GSM8K rows (default 24)")
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    parser.add_argument("--only", nargs="*", choices=list(TRAINERS), help="some trainers only")
    parser.add_argument("--one", choices=[*TRAINERS, "peak"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    rows = min(given.rows, 2 * BATCH) if given.quick else given.rows
    if given.one:
        print(json.dumps(_measure(given.one, rows, given.threads)))
        return
    folder = shapes.qwen_half_billion()
    print(f"{folder}, {rows} rows of GSM8K, LoRA {'+'.join(TARGETS)} r{RANK}, batch {BATCH}")
    wanted = given.only or list(TRAINERS)
    if importlib.util.find_spec("trl") is None:
        print("TRL is not installed: its rows are left out (pip install trl datasets).")
        wanted = [name for name in wanted if not name.startswith("trl")]
    peak = in_own_process(__file__, "peak", rows, given.threads)["gflops"]
    results = {}
    for name in wanted:
        results[name] = in_own_process(__file__, name, rows, given.threads)
        print(f"  {name}: {results[name]['tokens_per_second']:.0f} tokens/s", flush=True)
    lines = [
        {
            "trainer": LABELS[name],
            "tokens/s": result["tokens_per_second"],
            "seconds": result["seconds"],
            "tokens": result["tokens"],
            "needed GFLOP/s": result["gflop"] / result["seconds"],
            "share of peak": result["gflop"] / result["seconds"] / peak,
            "peak MiB": result["peak_mib"],
        }
        for name, result in results.items()
    ]
    ratios = {}
    for ratio, other in (
        ("train_vs_trl", "trl"),
        ("train_vs_peft", "peft"),
        ("train_vs_trl_no_checkpointing", "trl-no-checkpointing"),
    ):
        if "shammah" in results and other in results:
            ratios[ratio] = (
                results["shammah"]["tokens_per_second"] / results[other]["tokens_per_second"]
            )
    ratios["matmul_peak_gflops"] = peak
    if "shammah" in results:
        ratios["share_of_matmul_peak"] = lines[wanted.index("shammah")]["share of peak"]
    table.report(
        "Training", lines, ratios, targets={"train_vs_trl": "at least 3"}, json_file=given.json
    )


def in_own_process(script: str, name: str, rows: int, threads: int) -> dict[str, Any]:
    """What `--one NAME` of a bench prints, when nothing of the others is in memory."""
    command = [sys.executable, script, "--one", name, "--rows", str(rows)]
    done = subprocess.run(
        [*command, "--threads", str(threads)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _measure(name: str, rows: int, threads: int) -> dict[str, Any]:
    import torch

    if threads:
        torch.set_num_threads(threads)
    if name == "peak":
        return {"gflops": _matmul_peak()}
    examples = _examples(rows)
    seconds = TRAINERS[name](examples)
    tokens = sum(len(ids) for ids, _ in examples)
    return {
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "gflop": _needed_gflop(examples),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _matmul_peak() -> float:
    """GFLOP/s of a bf16 matrix product of 2048 x 2048, the best of many."""
    import torch

    a, b = torch.randn(2, 2048, 2048, dtype=torch.float32).to(torch.bfloat16)
    best = float("inf")
    for _ in range(20):
        begin = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - begin)
    return 2 * 2048**3 / best / 1e9


def _needed_gflop(examples: list[Example]) -> float:
    """What one pass cannot do without: the linear layers forward and backward to their input, and
    the head where there is a label. Attention, the adapters and all else come on top."""
    layer = 2 * 896 * 896 + 2 * 896 * 128 + 3 * 896 * 4864
    tokens = sum(len(ids) for ids, _ in examples)
    labels = sum(len(ids) - prompt for ids, prompt in examples)
    return 4 * (24 * layer * tokens + 896 * 151936 * labels) / 1e9


def texts(rows: int) -> list[tuple[str, str]]:
    lines = (shapes.SHARED / "gsm8k" / "train.jsonl").read_text().splitlines()[:rows]
    return [(row["question"] + "\n", row["answer"]) for row in map(json.loads, lines)]


def tokenizer_of() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shapes.qwen_half_billion())


def _examples(rows: int) -> list[Example]:
    """Question and answer with the end token after it."""
    tokenizer = tokenizer_of()
    examples = []
    for question, answer in texts(rows):
        prompt = tokenizer(question)["input_ids"]
        ids = prompt + tokenizer(answer)["input_ids"] + [tokenizer.eos_token_id]
        examples.append((ids, len(prompt)))
    return examples


def _batches(examples: list[Example]) -> list[list[Example]]:
    return [examples[start : start + BATCH] for start in range(0, len(examples), BATCH)]


def shammah_seconds(examples: list[Example]) -> float:
    """Seconds of this project's trainer."""
    import asyncio

    from shammah.models.load import load_base_model
    from shammah.ports.datum import Datum
    from shammah.ports.training_client import AdamParams
    from shammah.settings import LoraSettings, ModelSettings, TrainingSettings
    from shammah.training.datums import from_tokens
    from shammah.training.local_client import LocalTrainingClient

    base = load_base_model(ModelSettings(name=str(shapes.qwen_half_billion()), dtype="bf16"))
    client = LocalTrainingClient(
        base,
        LoraSettings(rank=RANK, alpha=ALPHA, target_modules=TARGETS, layers=1.0),
        TrainingSettings(),
    )
    batches = [
        [from_tokens(ids, [0.0] * prompt + [1.0] * (len(ids) - prompt)) for ids, prompt in batch]
        for batch in _batches(examples)
    ]

    async def step(batch: list[Datum]) -> None:
        await client.forward_backward(batch)
        await client.optim_step(AdamParams(learning_rate=LEARNING_RATE, max_grad_norm=1.0))

    async def run() -> float:
        await step(batches[0])
        begin = time.perf_counter()
        for batch in batches:
            await step(batch)
        return time.perf_counter() - begin

    return asyncio.run(run())


def hub_model() -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(shapes.qwen_half_billion(), dtype=torch.bfloat16)


def lora_config() -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, lora_dropout=0.0, task_type="CAUSAL_LM"
    )


def peft_seconds(examples: list[Example]) -> float:
    """Seconds of the loop that tutorials show: padded batches, labels, logits everywhere."""
    import torch
    from peft import get_peft_model

    model = get_peft_model(hub_model(), lora_config())
    model.train()
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=LEARNING_RATE,
    )

    def step(batch: list[Example]) -> None:
        width = max(len(ids) for ids, _ in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        labels = torch.full_like(ids, -100)
        for row, (tokens, prompt) in enumerate(batch):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
            labels[row, prompt : len(tokens)] = torch.tensor(tokens[prompt:])
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    batches = _batches(examples)
    step(batches[0])
    begin = time.perf_counter()
    for batch in batches:
        step(batch)
    return time.perf_counter() - begin


def trl_seconds(examples: list[Example], **options: Any) -> float:
    """Seconds of TRL's SFTTrainer with its defaults, on prompt-completion rows."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    warm = examples[:BATCH]
    data = Dataset.from_list(
        [
            {
                "input_ids": ids,
                "completion_mask": [0] * prompt + [1] * (len(ids) - prompt),
            }
            for ids, prompt in [*warm, *examples]
        ]
    )

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Notes when the first step is done."""

        began = 0.0

        def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 1:
                self.began = time.perf_counter()

    class InOrder(SFTTrainer):  # type: ignore[misc]
        """The rows in their order, so that all trainers make the same batches."""

        def _get_train_sampler(self, *_: Any) -> Any:
            from torch.utils.data import SequentialSampler

            return SequentialSampler(data)

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            learning_rate=LEARNING_RATE,
            use_cpu=True,
            bf16=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            **options,
        )
        trainer = InOrder(
            model=hub_model(),
            args=arguments,
            train_dataset=data,
            processing_class=tokenizer_of(),
            peft_config=lora_config(),
            callbacks=[clock],
        )
        trainer.train()
        return time.perf_counter() - clock.began


TRAINERS: dict[str, Callable[[list[Example]], float]] = {
    "shammah": shammah_seconds,
    "peft": peft_seconds,
    "trl": trl_seconds,
    "trl-no-checkpointing": lambda examples: trl_seconds(examples, gradient_checkpointing=False),
}
LABELS = {
    "shammah": "shammah",
    "peft": "PEFT loop, padded",
    "trl": "TRL SFTTrainer",
    "trl-no-checkpointing": "TRL, no gradient checkpointing",
}

if __name__ == "__main__":
    # What TRL and others print must not get between this program and its one line of JSON.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
