"""What a loaded base model is, in figures, for a person or a program to read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from shammah.models.load import BaseModel
from shammah.models.memory import estimate, free_memory, gigabytes
from shammah.models.safetensors_header import stored_tensors
from shammah.models.source import weight_files


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """Sizes are in bytes, lengths in tokens."""

    name: str
    path: str
    architecture: str
    parameters: int
    layers: int
    hidden_size: int
    vocabulary: int
    context_length: int
    chat_template: bool
    dtype: str
    device: str
    attention: str
    weights_bytes: int
    inference_bytes: int
    training_bytes: int
    free_bytes: int
    fingerprint: str
    notes: tuple[str, ...]

    def rows(self) -> list[tuple[str, str]]:
        """Label and value, as `/model info` prints them."""
        rows = [
            ("model", self.name),
            ("folder", self.path),
            ("architecture", self.architecture),
            ("parameters", _count(self.parameters)),
            ("layers", f"{self.layers} of width {self.hidden_size}"),
            ("vocabulary", f"{self.vocabulary:,}"),
            ("context", f"{self.context_length:,} tokens"),
            ("chat template", "its own" if self.chat_template else "none (User: and Assistant:)"),
            ("computes in", f"{self.dtype} on {self.device}, {self.attention} attention"),
            ("weights", gigabytes(self.weights_bytes)),
            ("memory to chat", f"about {gigabytes(self.inference_bytes)}"),
            ("memory to train", f"about {gigabytes(self.training_bytes)}"),
            ("memory free", gigabytes(self.free_bytes)),
            ("fingerprint", self.fingerprint[:16]),
        ]
        return rows + [("note", note) for note in self.notes]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def describe(base: BaseModel) -> ModelDescription:
    """The description of a loaded model."""
    config = base.model.config
    text = config.get_text_config(decoder=True)
    needed = estimate(stored_tensors(weight_files(base.path)), config, base.dtype)
    return ModelDescription(
        name=base.name,
        path=str(base.path),
        architecture=type(base.model).__name__,
        parameters=sum(parameter.numel() for parameter in base.model.parameters()),
        layers=int(text.num_hidden_layers),
        hidden_size=int(text.hidden_size),
        vocabulary=int(text.vocab_size),
        context_length=base.context_length,
        chat_template=bool(base.tokenizer.chat_template),
        dtype=str(base.dtype).removeprefix("torch."),
        device=base.device,
        attention=str(getattr(config, "_attn_implementation", None) or "eager"),
        weights_bytes=needed.weights_bytes,
        inference_bytes=needed.inference_bytes,
        training_bytes=needed.training_bytes,
        free_bytes=free_memory(base.device),
        fingerprint=base.fingerprint,
        notes=base.notes,
    )


def _count(parameters: int) -> str:
    if parameters >= 1_000_000_000:
        return f"{parameters / 1e9:.2f} billion"
    return f"{parameters / 1e6:.2f} million"
