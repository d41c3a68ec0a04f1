"""DPO beside TRL's `DPOTrainer`: tokens a second on the same pairs, model and adapter.

The model, the adapter and the questions are those of `train.py`; a pair is an answer of GSM8K and
that to the next question. Each trainer runs in a process of its own and takes the same optimiser
steps of two pairs through one epoch. Every pair's reference is computed once in both: by TRL in the
step, by us before the first one, which is timed too. Only real tokens are counted, each once. The
first step is not timed.

    python scripts/bench/dpo.py [--rows 16] [--quick] [--json FILE] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shapes
import table
import train

PAIRS = 2
"""In a step."""
BETA = 0.1

Seconds = tuple[float, float, float]
"""By the clock, of all threads together, and the loss of the first step."""

Triple = tuple[list[int], list[int], list[int]]
"""Token ids of a prompt, of the chosen and of the rejected answer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    table.add_arguments(parser)
    parser.add_argument("--rows", type=int, default=16, help="pairs (default 16)")
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    parser.add_argument("--only", nargs="*", choices=list(TRAINERS), help="some trainers only")
    parser.add_argument("--one", choices=list(TRAINERS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    rows = min(given.rows, 2 * PAIRS) if given.quick else given.rows
    if given.one:
        print(json.dumps(_measure(given.one, rows, given.threads)))
        return
    folder = shapes.qwen_half_billion()
    print(f"{folder}, {rows} pairs, LoRA {'+'.join(train.TARGETS)} r{train.RANK}, {PAIRS} a step")
    wanted = given.only or list(TRAINERS)
    if importlib.util.find_spec("trl") is None:
        print("TRL is not installed: its rows are left out (pip install trl datasets).")
        wanted = [name for name in wanted if not name.startswith("trl")]
    results = {}
    for name in wanted:
        results[name] = train.in_own_process(__file__, name, rows, given.threads)
        print(f"  {name}: {results[name]['tokens_per_second']:.0f} tokens/s", flush=True)
    lines = [
        {
            "trainer": LABELS[name],
            "tokens/s": result["tokens_per_second"],
            "seconds": result["seconds"],
            "CPU seconds": result["cpu_seconds"],
            "tokens": result["tokens"],
            "first loss": result["loss"],
            "peak MiB": result["peak_mib"],
        }
        for name, result in results.items()
    ]
    ratios = {}
    for ending, other in (("", "trl"), ("_no_checkpointing", "trl-no-checkpointing")):
        if "shammah" in results and other in results:
            ours, theirs = results["shammah"], results[other]
            ratios[f"dpo_vs_trl{ending}"] = ours["tokens_per_second"] / theirs["tokens_per_second"]
            # What other programs take of the machine is not in these.
            ratios[f"dpo_cpu_vs_trl{ending}"] = theirs["cpu_seconds"] / ours["cpu_seconds"]
            ratios[f"dpo_memory_vs_trl{ending}"] = ours["peak_mib"] / theirs["peak_mib"]
    targets = {"dpo_vs_trl": "at least 2.5", "dpo_memory_vs_trl": "at most 0.8"}
    table.report("DPO", lines, ratios, targets=targets, json_file=given.json)


def _measure(name: str, rows: int, threads: int) -> dict[str, Any]:
    import torch

    if threads:
        torch.set_num_threads(threads)
    triples = triples_of(rows)
    seconds, cpu_seconds, loss = TRAINERS[name](triples)
    tokens = tokens_in(triples)
    return {
        "tokens": tokens,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "tokens_per_second": tokens / seconds,
        "loss": loss,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def triples_of(rows: int) -> list[Triple]:
    tokenizer = train.tokenizer_of()
    texts = train.texts(rows)
    prompts = [tokenizer(question)["input_ids"] for question, _ in texts]
    answers = [tokenizer(answer)["input_ids"] + [tokenizer.eos_token_id] for _, answer in texts]
    return list(zip(prompts, answers, [*answers[1:], answers[0]], strict=True))


def tokens_in(triples: list[Triple]) -> int:
    """Real tokens that a pass over the pairs reads, those of a prompt with each of its answers."""
    return sum(len(prompt + answer) for prompt, *both in triples for answer in both)


def _in_order(triples: list[Triple]) -> list[Triple]:
    """As our loop takes them, so that both make the same batches."""
    from shammah.training.loops.pairs import Windows

    windows = Windows(len(triples), PAIRS, 1, 0)
    batches = [batch for number in range(windows.per_epoch) for batch in windows.batches(number)]
    return [triples[index] for batch in batches for index in batch]


def shammah_seconds(triples: list[Triple]) -> Seconds:
    """This project's loop."""
    import asyncio

    from shammah.models.load import load_base_model
    from shammah.ports.datum import Datum
    from shammah.ports.training_client import AdamParams
    from shammah.settings import LoraSettings, ModelSettings, TrainingSettings
    from shammah.training.datums import from_tokens
    from shammah.training.local_client import LocalTrainingClient
    from shammah.training.loops.pairs import Pair
    from shammah.training.loops.preference import PreferenceMethod

    base = load_base_model(ModelSettings(name=str(shapes.qwen_half_billion()), dtype="bf16"))
    lora = LoraSettings(
        rank=train.RANK, alpha=train.ALPHA, target_modules=train.TARGETS, layers=1.0
    )
    client = LocalTrainingClient(base, lora, TrainingSettings())

    def datum(prompt: list[int], answer: list[int]) -> Datum:
        return from_tokens(prompt + answer, [0.0] * len(prompt) + [1.0] * len(answer))

    pairs = [Pair(datum(prompt, one), datum(prompt, other)) for prompt, one, other in triples]
    adam = AdamParams(learning_rate=train.LEARNING_RATE, max_grad_norm=1.0)

    async def run() -> Seconds:
        loss = f"dpo:beta={BETA}"
        warm = PreferenceMethod(pairs[:PAIRS], loss=loss, batch_size=PAIRS)
        first = await warm.step(client, 0)
        await client.optim_step(adam)
        begin, worked = time.perf_counter(), time.process_time()
        method = PreferenceMethod(pairs, loss=loss, batch_size=PAIRS)
        for number in range(method.steps_per_epoch):
            await method.step(client, number)
            await client.optim_step(adam)
        return time.perf_counter() - begin, time.process_time() - worked, first.loss

    return asyncio.run(run())


def trl_seconds(triples: list[Triple], **options: Any) -> Seconds:
    """TRL's DPOTrainer with its defaults."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    data = Dataset.from_list(
        [
            {"prompt_ids": prompt, "chosen_ids": one, "rejected_ids": other}
            for prompt, one, other in [*triples[:PAIRS], *_in_order(triples)]
        ]
    )

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Notes when the first step is done."""

        began = worked = 0.0

        def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 1:
                self.began, self.worked = time.perf_counter(), time.process_time()

    class AsItIs(DPOTrainer):  # type: ignore[misc]
        """The pairs in their order and with their tokens, so that both compute the same."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *_: Any) -> Any:
            from torch.utils.data import SequentialSampler

            return SequentialSampler(data)

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = DPOConfig(
            output_dir=folder,
            per_device_train_batch_size=PAIRS,
            num_train_epochs=1,
            learning_rate=train.LEARNING_RATE,
            beta=BETA,
            use_cpu=True,
            bf16=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="steps",
            logging_steps=1,
            disable_tqdm=True,
            **options,
        )
        trainer = AsItIs(
            model=train.hub_model(),
            args=arguments,
            train_dataset=data,
            processing_class=train.tokenizer_of(),
            peft_config=train.lora_config(),
            callbacks=[clock],
        )
        trainer.train()
        seconds = time.perf_counter() - clock.began
        worked = time.process_time() - clock.worked
        return seconds, worked, float(trainer.state.log_history[0]["loss"])


TRAINERS: dict[str, Callable[[list[Triple]], Seconds]] = {
    "shammah": shammah_seconds,
    "trl": trl_seconds,
    "trl-no-checkpointing": lambda triples: trl_seconds(triples, gradient_checkpointing=False),
}
LABELS = {
    "shammah": "shammah",
    "trl": "TRL DPOTrainer",
    "trl-no-checkpointing": "TRL, no gradient checkpointing",
}

if __name__ == "__main__":
    # What TRL and others print must not get between this program and its one line of JSON.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
