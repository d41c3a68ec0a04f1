"""How an answer is drawn. Knows values only, no tensors."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from shammah.settings import GenerationSettings


@dataclass(frozen=True, slots=True)
class GenerationParams:
    """Temperature 0 takes the likeliest token; `top_k` 0 and `top_p` 1 leave all tokens in.

    `repetition_penalty` divides the score of tokens that were there before (Keskar et al. 2019,
    arXiv 1909.05858). `seed` None draws a fresh seed for each answer, which the answer records.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None

    @classmethod
    def from_settings(cls, settings: GenerationSettings) -> GenerationParams:
        return cls(**settings.model_dump())

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def from_settings(settings: GenerationSettings) -> GenerationParams:
    """The parameters that the settings ask for."""
    return GenerationParams.from_settings(settings)
