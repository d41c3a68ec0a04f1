"""Random-weight checkpoints in the shapes of real models, for benches.

What a bench measures does not depend on the weights' values, so nothing needs to be downloaded.
Run as a program it builds the checkpoint and prints its folder.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"


def cache_folder() -> Path:
    """Where built checkpoints are kept between benches."""
    return Path(tempfile.gettempdir()) / "shammah-bench"


def qwen_half_billion(folder: Path | None = None) -> Path:
    """A folder with a Qwen2.5-0.5B-shaped model: bf16 safetensors, 494 million random weights,
    tied embeddings, and the Qwen3 tokenizer. Built once."""
    target = folder or cache_folder() / "qwen2.5-0.5b-shape"
    if (target / "complete").is_file():
        return target
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = SHARED / "tokenizers" / "qwen3"
    if not tokenizer.is_dir():
        raise SystemExit(f"{tokenizer} is not there: the bench needs a real tokenizer.")
    building = target.with_name(f"{target.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=896,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        intermediate_size=4864,
        vocab_size=151936,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=151645,
        dtype="bfloat16",
    )
    model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(building)
    for source in tokenizer.iterdir():
        shutil.copy(source, building / source.name)
    (building / "complete").touch()
    shutil.rmtree(target, ignore_errors=True)
    building.rename(target)
    return target


if __name__ == "__main__":
    print(qwen_half_billion())
