"""The figures of a build (`card.json`) and the model card a reader sees (`README.md`)."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from embedded_model.corpus import load_corpus
from embedded_model.evaluation import HELD_OUT, Answerer, evaluate, refused
from embedded_model.training import Progress, Recipe

_TEXT = """\
---
language: en
license: mit
library_name: transformers
pipeline_tag: text-generation
---
# Shammah embedded

The model that Shammah starts with: small enough to ship inside the package, made to be taught.
Qwen2 architecture, {parameters:,} parameters, {layers} layers, hidden size {hidden},
byte-level BPE vocabulary of {vocabulary}, context of {context} tokens, ChatML. Trained from
scratch by `scripts/build_embedded_model.py` on the corpus under `scripts/corpus/`
({answers} answers), all of it written for this project. Which questions mean the same it was taught
by a sentence encoder, all-MiniLM-L6-v2 (Apache-2.0).

It answers everyday questions about Python, the shell, git, SQL, HTTP, regular expressions and
about Shammah itself, in English, and says so when it does not know. It is not a general
assistant: outside that ground it knows nothing, and it can be wrong inside it.

## Figures
Greedy answers to questions that the training phrasings never produce (`tests/data/embedded/`).

| what | figure |
| --- | --- |
{rows}

## Training
{steps:,} steps in {minutes:.0f} minutes on a CPU, {tokens:,} tokens of which {learned:,} were
learned, last loss {loss:.4f} nats, label smoothing {smoothing}, seed {seed}.
"""

_NAMES = {
    "answers": "questions answered right",
    "follow_ups": "follow-ups answered right",
    "listening": "told facts used when asked for",
    "revisions": "answers rewritten as the note says",
    "small_talk": "small talk answered right",
    "sums": "small sums right",
    "unknown": "unknown questions admitted",
}


def write_card(folder: Path, recipe: Recipe, progress: Progress) -> dict[str, list[dict[str, str]]]:
    """Judge the written folder and put both files into it; returns what it got wrong."""
    corpus = load_corpus()
    answerer = Answerer(folder)
    config = answerer.model.config
    figures: dict[str, Any] = {
        "parameters": answerer.model.num_parameters(),
        "answers": len(corpus.answers) + len(corpus.talk),
        "recipe": asdict(recipe),
        "progress": asdict(progress),
        "load_seconds": round(answerer.load_seconds, 3),
        "decode_tokens_per_second": round(answerer.tokens_per_second(), 1),
        "bytes": sum(file.stat().st_size for file in folder.iterdir()),
        "held_out": {},
    }
    rows = []
    misses: dict[str, list[dict[str, str]]] = {}
    if HELD_OUT.exists():
        for name, score in evaluate(answerer, corpus).items():
            figures["held_out"][name] = {"right": score.right, "of": score.total}
            misses[name] = score.misses
            rows.append(f"| {_NAMES.get(name, name)} | {score} |")
            if name == "answers":
                figures["known_refused"] = round(refused(score), 4)
                rows.append(f"| known questions refused | {refused(score):.1%} |")
    rows.append(f"| greedy decode, fp32 | {figures['decode_tokens_per_second']:.0f} tok/s |")
    rows.append(f"| load after imports | {figures['load_seconds']:.2f} s |")
    (folder / "card.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    text = _TEXT.format(
        parameters=figures["parameters"],
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        context=config.max_position_embeddings,
        answers=figures["answers"],
        rows="\n".join(rows),
        steps=progress.step,
        minutes=progress.seconds / 60,
        tokens=progress.tokens,
        learned=progress.learned_tokens,
        loss=progress.loss,
        smoothing=recipe.label_smoothing,
        seed=recipe.seed,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    print("\n".join(rows), flush=True)
    return misses
