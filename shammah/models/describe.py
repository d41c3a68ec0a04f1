"""What a loaded base model is, in figures, for a person or a program to read."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shammah.models.load import BaseModel
from shammah.models.memory import estimate, free_memory, gigabytes
from shammah.models.safetensors_header import stored_tensors
from shammah.models.source import weight_files


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """Sizes are in bytes, lengths in tokens.

    `trainable` are the parameters of an adapter with the current `[lora]` settings; `memory` is
    what chatting and training take at each number format; `figures` are those that the model's
    makers measured (`card.json`), right answers of so many.
    """

    name: str
    path: str
    architecture: str
    parameters: int
    trainable: int
    layers: int
    heads: int
    key_value_heads: int
    hidden_size: int
    vocabulary: int
    context_length: int
    chat_template: bool
    special_tokens: dict[str, str]
    licence: str | None
    dtype: str
    device: str
    attention: str
    weights_bytes: int
    memory: dict[str, dict[str, int]]
    free_bytes: int
    fingerprint: str
    figures: dict[str, tuple[int, int]]
    notes: tuple[str, ...]

    def rows(self) -> list[tuple[str, str]]:
        """Label and value, as `/model info` prints them."""
        heads = f"{self.heads} heads"
        if self.key_value_heads != self.heads:
            heads += f" sharing {self.key_value_heads} of keys and values"
        share = self.trainable / self.parameters
        rows = [
            ("model", self.name),
            ("folder", self.path),
            ("licence", self.licence or "not said"),
            ("architecture", self.architecture),
            ("parameters", f"{_count(self.parameters)} ({self.parameters:,})"),
            ("trainable", f"{_count(self.trainable)} with the LoRA of the settings ({share:.1%})"),
            ("layers", f"{self.layers} of width {self.hidden_size}, {heads}"),
            ("vocabulary", f"{self.vocabulary:,}"),
            ("special tokens", ", ".join(f"{n} {t}" for n, t in self.special_tokens.items())),
            ("context", f"{self.context_length:,} tokens"),
            ("chat template", "its own" if self.chat_template else "none (User: and Assistant:)"),
            ("computes in", f"{self.dtype} on {self.device}, {self.attention} attention"),
            ("weights", gigabytes(self.weights_bytes)),
            ("memory to chat", "about " + self._at_each_dtype("inference_bytes")),
            ("memory to train", "about " + self._at_each_dtype("training_bytes")),
            ("memory free", gigabytes(self.free_bytes)),
            ("fingerprint", self.fingerprint[:16]),
        ]
        rows += [
            (name.replace("_", " "), f"{right} of {total} held-out questions right")
            for name, (right, total) in self.figures.items()
        ]
        return rows + [("note", note) for note in self.notes]

    def _at_each_dtype(self, kind: str) -> str:
        return ", ".join(f"{gigabytes(sizes[kind])} in {d}" for d, sizes in self.memory.items())

    def hparams(self) -> dict[str, Any]:
        """What identifies and sizes the model, as a run's hyperparameters; no path, and nothing
        that another moment on this machine would change."""
        left_out = ("path", "memory", "free_bytes", "figures", "notes", "special_tokens")
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def describe(base: BaseModel, trainable: int) -> ModelDescription:
    """The description of a loaded model; `trainable` parameters are what an adapter would have."""
    import torch

    config = base.model.config
    text = config.get_text_config(decoder=True)
    tensors = stored_tensors(weight_files(base.path))
    formats = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    needed = {name: estimate(tensors, config, dtype) for name, dtype in formats.items()}
    heads = int(text.num_attention_heads)
    return ModelDescription(
        name=base.name,
        path=str(base.path),
        architecture=type(base.model).__name__,
        parameters=sum(parameter.numel() for parameter in base.model.parameters()),
        trainable=trainable,
        layers=int(text.num_hidden_layers),
        heads=heads,
        key_value_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        hidden_size=int(text.hidden_size),
        vocabulary=int(text.vocab_size),
        context_length=base.context_length,
        chat_template=bool(base.tokenizer.chat_template),
        special_tokens=_special_tokens(base),
        licence=_licence(base.path),
        dtype=str(base.dtype).removeprefix("torch."),
        device=base.device,
        attention=str(getattr(config, "_attn_implementation", None) or "eager"),
        weights_bytes=estimate(tensors, config, base.dtype).weights_bytes,
        memory={
            name: {
                "inference_bytes": size.inference_bytes,
                "training_bytes": size.training_bytes,
            }
            for name, size in needed.items()
        },
        free_bytes=free_memory(base.device),
        fingerprint=base.fingerprint,
        figures=_figures(base.path),
        notes=base.notes,
    )


def _special_tokens(base: BaseModel) -> dict[str, str]:
    """Those that have a role, and all that end an answer."""
    tokenizer = base.tokenizer
    named = {
        "begin": tokenizer.bos_token,
        "end": tokenizer.eos_token,
        "padding": tokenizer.pad_token,
        "stop": " ".join(tokenizer.convert_ids_to_tokens(sorted(base.stop_tokens))),
    }
    return {role: str(token) for role, token in named.items() if token}


def _licence(folder: Path) -> str | None:
    """What the front matter of the model's README calls its licence."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^license(?:_name)?: *(\S.*)$", front[1], re.MULTILINE) if front else None
    return found[1].strip() if found else None


def _figures(folder: Path) -> dict[str, tuple[int, int]]:
    """What is in the card of a model that the project made; of others nothing is known."""
    try:
        card = json.loads((folder / "card.json").read_bytes())
        return {
            str(name): (int(score["right"]), int(score["of"]))
            for name, score in card["held_out"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _count(parameters: int) -> str:
    if parameters >= 1_000_000_000:
        return f"{parameters / 1e9:.2f} billion"
    return f"{parameters / 1e6:.2f} million"
