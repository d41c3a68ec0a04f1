"""Whether questions find the adapter that was taught them, and what looking for it costs.

    python scripts/bench/routing.py [--model embedded] [--encoder FOLDER] [--json routing.json]

Three things, for the state at the end of the prompt at each layer of the model, for the mean over
the prompt, and for a sentence encoder where one is given:

- `same question`: of the held-out questions (`tests/data/embedded`) that are asked in several ways,
  how many have another way to ask the same for their nearest neighbour;
- `adapter`: of the other ways to ask the lessons of `data/lessons.toml`, how many are nearest to
  the lessons of the set of ten that they belong to, of five; and how many of them are near enough
  to be routed there, with how many of the held-out questions that nobody taught;
- `domain`: questions of a subject of which ten others were taught: how many are routed, and how
  many of other subjects.

Then the seconds that one question takes beside 1, 5 and 20 adapters of ten lessons.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lessons import read_lessons
from numpy.typing import NDArray
from table import report

from shammah.adapters.domains import DomainAdapter, DomainRouter, nearness
from shammah.generation.embedding import DEPTH, HiddenStateEmbedder
from shammah.messages import user
from shammah.models.load import BaseModel, load_base_model
from shammah.models.sentence_encoder import SentenceEncoder
from shammah.renderers.base import Renderer
from shammah.renderers.registry import renderer_for
from shammah.settings import AdaptersSettings, ModelSettings

HELD_OUT = Path(__file__).parents[2] / "tests" / "data" / "embedded"
SUBJECTS = ("git", "sql", "regex")
TAUGHT, DRAWS = 10, 20
THRESHOLD = AdaptersSettings().routing_threshold

Vectors = NDArray[np.float32]
Embed = Callable[[Sequence[str]], Vectors]


@dataclass(frozen=True, slots=True)
class Asked:
    """A held-out question, and what it asks."""

    id: str
    question: str

    @property
    def subject(self) -> str:
        return self.id.split("/")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--encoder", metavar="FOLDER", help="a sentence encoder to compare with")
    options = parser.parse_args()
    base = load_base_model(ModelSettings(name=options.model))
    renderer = renderer_for(base.tokenizer, base.stop_tokens)
    layers = int(base.model.config.get_text_config(decoder=True).num_hidden_layers)
    rows = []
    for depth in range(1, layers + 1):
        embedder = HiddenStateEmbedder(base, renderer, depth=depth / layers)
        rows.append({"vectors": f"end of prompt, layer {depth}", **separation(embedder.vectors)})
        mean = mean_over_prompt(base, renderer, depth)
        rows.append({"vectors": f"mean over prompt, layer {depth}", **separation(mean)})
    if options.encoder:
        encoder = SentenceEncoder(options.encoder, threads=base.threads)
        rows.append({"vectors": "sentence encoder", **separation(encoder.vectors)})
    report(f"How vectors separate questions (layers: {DEPTH:.0%} are used)", rows, {})
    costs = asyncio.run(cost(HiddenStateEmbedder(base, renderer)))
    report("What routing a question takes", costs, {})
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "cost": costs}, indent=1) + "\n")


def separation(embed: Embed) -> dict[str, float]:
    """Shares of questions that find what they should, and of others that do too."""
    asked = held_out()
    questions = embed([item.question for item in asked])
    nobody = embed(unknown())
    return {
        "same question": same_question(asked, questions),
        **to_adapters(embed, np.concatenate([questions, nobody])),
        **to_domains(asked, questions, nobody),
    }


def same_question(asked: Sequence[Asked], vectors: Vectors) -> float:
    """How many have a neighbour of the same meaning, of those that have one at all."""
    near = vectors @ vectors.T
    np.fill_diagonal(near, -np.inf)
    ids = [item.id for item in asked]
    found = [
        ids[int(near[index].argmax())] == name
        for index, name in enumerate(ids)
        if ids.count(name) > 1
    ]
    return statistics.fmean(found)


def to_adapters(embed: Embed, others: Vectors) -> dict[str, float]:
    """Each set of ten lessons stands for an adapter."""
    lessons = read_lessons()
    sets = sorted({lesson.set for lesson in lessons})
    taught = [embed([item.ask for item in lessons if item.set == number]) for number in sets]
    right, routed = [], []
    for place, number in enumerate(sets):
        for vector in embed([text for i in lessons if i.set == number for text in i.other]):
            scores = [nearness(vector, rows) for rows in taught]
            right.append(int(np.argmax(scores)) == place)
            routed.append(right[-1] and max(scores) >= THRESHOLD)
    wrong = [max(nearness(vector, rows) for rows in taught) >= THRESHOLD for vector in others]
    return {
        "adapter": statistics.fmean(right),
        "routed": statistics.fmean(routed),
        "others routed": statistics.fmean(wrong),
    }


def to_domains(asked: Sequence[Asked], vectors: Vectors, nobody: Vectors) -> dict[str, float]:
    """Ten questions of a subject are taught; its other questions, and those of other subjects."""
    rng = random.Random(1)
    same, other = [], []
    for subject in SUBJECTS:
        inside = [index for index, item in enumerate(asked) if item.subject == subject]
        outside = [index for index, item in enumerate(asked) if item.subject != subject]
        strangers = np.concatenate([vectors[outside], nobody])
        for _ in range(DRAWS):
            chosen = rng.sample(inside, TAUGHT)
            known = {asked[index].id for index in chosen}
            rest = [index for index in inside if asked[index].id not in known]
            lessons = vectors[chosen]
            same += [nearness(row, lessons) >= THRESHOLD for row in vectors[rest]]
            other += [nearness(row, lessons) >= THRESHOLD for row in strangers]
    return {"domain": statistics.fmean(same), "other domains": statistics.fmean(other)}


async def cost(embedder: HiddenStateEmbedder) -> list[dict[str, Any]]:
    """Seconds for one question, and for a first look at all lessons."""
    questions = [lesson.ask for lesson in read_lessons()]
    rows = []
    for count in (1, 5, 20):
        rng = random.Random(count)
        adapters = [
            DomainAdapter(
                f"adapter {n}", f"domain{n}", tuple(f"{q} ({n})" for q in rng.sample(questions, 10))
            )
            for n in range(count)
        ]
        with tempfile.TemporaryDirectory() as folder:
            router = DomainRouter(embedder, Path(folder))
            began = time.perf_counter()
            await router.learn(adapters)
            first = time.perf_counter() - began
            again = DomainRouter(embedder, Path(folder))
            began = time.perf_counter()
            await again.learn(adapters)
            kept = time.perf_counter() - began
            times = []
            for question in questions[:40]:
                began = time.perf_counter()
                await again.candidates(question, THRESHOLD)
                times.append(time.perf_counter() - began)
        rows.append(
            {
                "adapters": count,
                "lessons read, s": first,
                "from the disk, s": kept,
                "a question, s": statistics.median(times),
            }
        )
    return rows


def mean_over_prompt(base: BaseModel, renderer: Renderer, layer: int) -> Embed:
    """What sentence encoders do, here: the mean over the tokens of the prompt."""
    body = base.model.base_model
    centre: list[Vectors] = []

    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> Vectors:
        rows = []
        for text in texts:
            ids = torch.tensor([renderer.generation_prompt((user(text),))])
            states = body(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
            rows.append(states[layer][0].float().mean(0).numpy())
        found = np.stack(rows)
        centre.append(found.mean(axis=0))  # that of the first texts, which are of all sorts, counts
        found = found - centre[0]
        return np.asarray(found / np.linalg.norm(found, axis=-1, keepdims=True), np.float32)

    return embed


def held_out() -> list[Asked]:
    """Every held-out question that has an answer of the embedded model's, once."""
    found: dict[str, Asked] = {}
    for name, key in (
        ("answers", "question"),
        ("follow_ups", "asked"),
        ("revisions", "asked"),
        ("small_talk", "question"),
    ):
        for line in (HELD_OUT / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            found.setdefault(row[key], Asked(row["id"], row[key]))
    return list(found.values())


def unknown() -> list[str]:
    """Held-out questions that the embedded model has no answer to."""
    text = (HELD_OUT / "unknown.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["question"] for line in text.splitlines()]


if __name__ == "__main__":
    main()
