"""Anchors of a model that ships none: its own answers to general questions, sampled once.

The worker writes them into its job folder; they are kept in the data folder for the jobs after.
Imports torch on use only.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from shammah.files import private_folder, write_atomic
from shammah.messages import user
from shammah.models.anchors import FILE, Anchor, read_anchors
from shammah.models.load import BaseModel
from shammah.models.source import EMBEDDED
from shammah.ports.datum import ModelInput
from shammah.ports.sampling_client import SamplingParams
from shammah.renderers.base import Renderer

QUESTIONS = 96
"""Asked at most, spread over those that the embedded model is held by."""
MOST_TOKENS = 96
"""An answer that does not end by then is left out: learned, it would end nowhere."""
MOST_SECONDS = 120.0
"""A slow model is asked fewer."""


def anchors_for(base: BaseModel, renderer: Renderer, folder: Path) -> tuple[Anchor, ...]:
    """The anchors beside the model, else those in a job folder, where they are written first if
    they are not there yet.

    Raises:
        ModelError: a file of anchors is damaged.
        StorageError: they cannot be written.
    """
    found = read_anchors(base.path) or read_anchors(folder)
    if found:
        return found
    questions = [anchor.query for anchor in read_anchors(EMBEDDED)]
    asked = questions[:: max(1, len(questions) // QUESTIONS)][:QUESTIONS]
    found = own_answers(base, renderer, asked, MOST_SECONDS)
    write_atomic(
        folder / FILE,
        "".join(json.dumps(anchor.model_dump(), ensure_ascii=False) + "\n" for anchor in found),
    )
    return found


def lend(kept: Path, folder: Path) -> None:
    """Give a job the anchors that an earlier one of its base model sampled."""
    if kept.is_file():
        write_atomic(folder / FILE, kept.read_bytes())


def keep(folder: Path, kept: Path) -> None:
    """Keep what a job sampled, if it did."""
    if (folder / FILE).is_file() and not kept.exists():
        private_folder(kept.parent)
        write_atomic(kept, (folder / FILE).read_bytes())


def own_answers(
    base: BaseModel, renderer: Renderer, questions: Sequence[str], most_seconds: float
) -> tuple[Anchor, ...]:
    """What a model without an adapter answers, greedily; answers that do not end are left out."""
    import torch

    from shammah.generation.decoding import TokenDecoder
    from shammah.generation.local_sampling import TokenSampling
    from shammah.generation.lora import AdapterSlot, AdapterState

    sampling = TokenSampling(base, TokenDecoder(base, AdapterSlot()))
    plain = AdapterState(None, 0, ())
    params = SamplingParams(
        max_tokens=MOST_TOKENS, stop_tokens=renderer.stop_tokens, stop_texts=renderer.stop_texts
    )
    began = time.monotonic()
    found = []
    for question in questions:
        if time.monotonic() - began > most_seconds:
            break
        prompt = renderer.generation_prompt((user(question),))
        if len(prompt) + MOST_TOKENS > base.context_length:
            continue
        with torch.no_grad():
            (sample,) = sampling.sample(ModelInput.of(prompt), params, plain)
        text = renderer.parse(sample.tokens, prompt).message.text.strip()
        if text and sample.stop_reason == "stop":
            found.append(Anchor(query=question, answer=text))
    return tuple(found)
