"""What a swap costs: 200 swaps under load on the 0.5B shape, beside PEFT's own hot swap.

python scripts/bench/swap.py [--json FILE] [--swaps N]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from shapes import qwen_half_billion
from table import Row, add_arguments, report
from transformers import AutoModelForCausalLM

from shammah.adapters.weights import LoraWeights
from shammah.generation.engine import Engine
from shammah.generation.params import GenerationParams
from shammah.messages import user
from shammah.models.load import load_base_model
from shammah.renderers.registry import renderer_for
from shammah.settings import ModelSettings

RANK = 16
TARGETS = {"swap_vs_peft": "below 1; a swap takes less than 0.1 s"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_arguments(parser)
    parser.add_argument("--swaps", type=int, help="default: 200, with --quick 50")
    options = parser.parse_args()
    count = options.swaps or (50 if options.quick else 200)
    folder = qwen_half_billion()
    ours, answers = swaps_under_load(folder, count)
    theirs = peft_swaps(folder)
    rows: list[Row] = [
        {
            "what": f"swap, {count} under load, median",
            "value": statistics.median(ours),
            "unit": "s",
        },
        {"what": "swap, the slowest", "value": max(ours), "unit": "s"},
        {
            "what": f"answers meanwhile ({answers['lost']} lost)",
            "value": answers["given"],
            "unit": "",
        },
        {"what": "PEFT hotswap_adapter from disk, idle, median", "value": theirs, "unit": "s"},
    ]
    report(
        "Swapping adapters",
        rows,
        {"swap_vs_peft": statistics.median(ours) / theirs},
        targets=TARGETS,
        json_file=options.json,
    )


def swaps_under_load(folder: Path, count: int) -> tuple[list[float], dict[str, int]]:
    """Seconds of each activation while another thread keeps asking; answers given and lost."""
    base = load_base_model(ModelSettings(name=str(folder)))
    engine = Engine(base, renderer_for(base.tokenizer, base.stop_tokens))
    adapters = [random_adapter(base.shape.modules, seed) for seed in range(2)]
    done = threading.Event()
    answers = {"given": 0, "lost": 0}

    def keep_asking() -> None:
        while not done.is_set():
            answer = engine.generate((user("And?"),), GenerationParams(max_tokens=4))
            answers["given"] += 1
            answers["lost"] += answer.tokens == 0

    asking = threading.Thread(target=keep_asking)
    asking.start()
    taken = []
    for number in range(count):
        started = time.perf_counter()
        engine.activate(adapters[number % 2], f"adapter{number % 2}")
        taken.append(time.perf_counter() - started)
        time.sleep(0.02)
    done.set()
    asking.join()
    engine.close()
    return taken, answers


def random_adapter(modules: dict[str, tuple[int, int]], seed: int) -> LoraWeights:
    """Random weights for q_proj and v_proj, rank 16."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {
        name: (
            torch.randn(RANK, width_in, generator=generator) * 0.01,
            torch.randn(width_out, RANK, generator=generator) * 0.01,
        )
        for name, (width_in, width_out) in modules.items()
        if name.endswith(("q_proj", "v_proj"))
    }
    return LoraWeights(modules=pairs, scaling=2.0)


def peft_swaps(folder: Path) -> float:
    """Median seconds of PEFT's hot swap of a like adapter."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = LoraConfig(r=RANK, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    with tempfile.TemporaryDirectory() as place:
        peft_model = get_peft_model(model, config)
        peft_model.save_pretrained(place)
        taken = []
        for _ in range(10):
            started = time.perf_counter()
            hotswap_adapter(peft_model, place, adapter_name="default")
            taken.append(time.perf_counter() - started)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
