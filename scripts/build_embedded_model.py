#!/usr/bin/env python
"""Build the embedded model from its corpus: rows, tokenizer, training, evaluation, card.

    python scripts/build_embedded_model.py --minutes 35
    python scripts/build_embedded_model.py --steps 2000 --seed 7 --out /tmp/model
    python scripts/build_embedded_model.py --minutes 35 --resume

Work in progress stands in `build/embedded_model/` (tokenizer, checkpoints); the finished folder
is written beside the target and moved into place.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from embedded_model.anchors import write_anchors
from embedded_model.card import write_card
from embedded_model.corpus import Corpus, load_corpus
from embedded_model.encoding import EncodedRow, Encoder, save_tokenizer, train_tokenizer
from embedded_model.meaning import Meaning
from embedded_model.packing import Batch, Shape, pack
from embedded_model.rows import RowMaker, Size
from embedded_model.teacher import Taught, Teacher
from embedded_model.training import Progress, Recipe, load_checkpoint, train

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "shammah" / "models" / "embedded"
CONTEXT = 1024
VOCABULARY = 4096
# 4,096 tokens each: with fewer the optimiser's share of a step grows, with more nothing is won.
SHAPES: dict[Size, Shape] = {
    "short": Shape(16, 256),
    "medium": Shape(8, 512),
    "long": Shape(4, 1024),
}
# Short ones hold the most questions; what comes late in a long one needs some of its own.
CYCLE: tuple[Size, ...] = (*("short",) * 7, "medium", *("short",) * 7, "long")
TOKENIZER_ROWS = 12_000
# Read when the process begins, so it begins again with them: a thread that waits must not take the
# processor from other work, and large blocks are kept instead of given back and zeroed every step.
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "KMP_BLOCKTIME": "0",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TOP_PAD_": str(256 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
}


def main() -> int:
    options = _options()
    import torch
    from tokenizers import Tokenizer

    torch.set_num_threads(max(options.threads))
    corpus = load_corpus()
    options.work.mkdir(parents=True, exist_ok=True)
    taught = None if options.teacher == "none" else _taught(options, corpus)
    maker = RowMaker(corpus, options.seed, taught.other_words if taught else None)
    vocabulary = options.work / "tokenizer.json"
    if (options.resume or options.finish) and vocabulary.exists():
        tokenizer = Tokenizer.from_file(str(vocabulary))
    else:
        tokenizer = train_tokenizer(_texts(maker), VOCABULARY)
        tokenizer.save(str(vocabulary))
    encoder = Encoder(tokenizer)

    def batches(step: int, position: int) -> tuple[Batch, int]:
        size = CYCLE[step % len(CYCLE)]

        def draw(row: int) -> EncodedRow:
            return encoder.row(maker.row(row, size), maker.kept_tokens(row, size))

        return pack(SHAPES[size], draw, position)

    torch.manual_seed(options.seed)
    model = new_model(encoder)
    kept = options.work / "recipe.json"
    recipe = Recipe(
        steps=options.steps,
        minutes=None if options.steps else options.minutes,
        seed=options.seed,
        label_smoothing=options.label_smoothing,
    )
    checkpoint = options.work / "checkpoint"
    if options.finish:
        recipe = Recipe(**json.loads(kept.read_text(encoding="utf-8")))
        progress = load_checkpoint(checkpoint, dict(model.named_parameters()), None)
    else:
        kept.write_text(json.dumps(asdict(recipe)), encoding="utf-8")
        if options.compile:
            model.model.compile()
        progress = train(
            model,
            batches,
            recipe,
            checkpoint,
            resume=options.resume,
            threads=options.threads,
            say=lambda line: print(line, flush=True),
            beside=Meaning(model, taught.bank, encoder, options.seed) if taught else None,
        )
    publish(model, tokenizer, recipe, progress, options.work, options.out)
    return 0


def _taught(options: argparse.Namespace, corpus: Corpus) -> Taught:
    """What the teacher says of the corpus's questions, kept with the work in progress."""
    kept = options.work / "taught.safetensors"
    if not ((options.resume or options.finish) and kept.exists()):
        print(f"asking {options.teacher} what the questions mean", flush=True)
        Taught.ask(corpus, Teacher(options.teacher), options.seed).save(kept)
    return Taught.load(kept)


def new_model(encoder: Encoder) -> Any:
    """The architecture, with fresh weights from torch's random state."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=encoder.end,
        pad_token_id=0,
        initializer_range=0.02,
        # With a mask, on a CPU, the fused attention's backward takes a third of the step.
        attn_implementation="eager",
    )
    return Qwen2ForCausalLM(config).to(torch.float32)


def publish(
    model: Any, tokenizer: Any, recipe: Recipe, progress: Progress, work: Path, out: Path
) -> None:
    """Write the folder under a temporary name, judge what was written, then move it in."""
    import torch
    from transformers import GenerationConfig

    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".embedded-", dir=out.parent))
    try:
        model.to(torch.bfloat16)
        model.generation_config = GenerationConfig(
            do_sample=False,
            eos_token_id=model.config.eos_token_id,
            pad_token_id=model.config.pad_token_id,
            max_new_tokens=320,
        )
        model.save_pretrained(folder)
        save_tokenizer(tokenizer, folder, context=CONTEXT)
        write_anchors(folder, load_corpus(), recipe.seed)
        misses = write_card(folder, recipe, progress)
        (work / "misses.json").write_text(json.dumps(misses, indent=1) + "\n", encoding="utf-8")
        folder.chmod(0o755)
        for file in folder.iterdir():
            file.chmod(0o644)
        old = out.with_name(".embedded-old")
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            out.rename(old)
        folder.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    print(f"written to {out}")


def _texts(maker: RowMaker) -> Any:
    for number in range(TOKENIZER_ROWS):
        for _, content in maker.row(number):
            yield content


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=SHIPPED, help="the finished folder")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "embedded_model")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, default=35.0, help="budget by the clock")
    budget.add_argument("--steps", type=int, help="budget in steps: repeatable from the seed")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--threads",
        type=lambda text: tuple(int(part) for part in text.split(",")),
        default=(1, 2),
        help="one number, or several to choose from while training (default: 1,2)",
    )
    parser.add_argument(
        "--teacher",
        default="sentence-transformers/all-MiniLM-L6-v2",
        help="sentence encoder, a folder or a name on the hub; `none` for no teacher",
    )
    parser.add_argument("--label-smoothing", type=float, default=0.1)
    parser.add_argument(
        "--compile", action="store_true", help="a tenth faster, after a minute of compiling"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument(
        "--finish", action="store_true", help="no training: publish the last checkpoint"
    )
    return parser.parse_args()


if __name__ == "__main__":
    if not os.environ.keys() >= ENVIRONMENT.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**ENVIRONMENT, **os.environ})
    raise SystemExit(main())
