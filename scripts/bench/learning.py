"""What ten lessons do: taught, asked in other words, and what else changed.

    python scripts/bench/learning.py [--sets 5] [--unrelated 200] [--setting training.replay=0.3]

Each set of ten lessons (`data/lessons.toml`) is taught to the fresh base by a job as the program
makes it, in this process; then the questions are answered greedily with the adapter it wrote.
Unrelated and near-miss questions count as unchanged where the answer is the base's, word by word.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from table import report

from shammah.adapters.weights import LoraWeights
from shammah.generation.engine import Engine
from shammah.generation.params import GenerationParams
from shammah.learning.job import WEIGHTS, Complete, Event, JobSpec, Progress
from shammah.learning.lessons import Lesson
from shammah.learning.session import run_job
from shammah.messages import user
from shammah.models.load import load_base_model
from shammah.renderers.registry import renderer_for
from shammah.settings import ModelSettings, Settings

LESSONS = Path(__file__).parent / "data" / "lessons.toml"
HELD_OUT = Path(__file__).parents[2] / "tests" / "data" / "embedded"
GREEDY = GenerationParams(max_tokens=160, temperature=0.0)
CORRECTION_WEIGHT = 10.0
OTHERS = 3
"""Other phrasings asked of each lesson."""
TARGETS = {
    "taught": "at least 1.00",
    "phrasings": "at least 0.80",
    "unchanged": "at least 0.96",
}


@dataclass(frozen=True, slots=True)
class Taught:
    """A lesson of the data file."""

    set: int
    kind: str
    ask: str
    answer: str
    other: tuple[str, ...]
    near: str


@dataclass(slots=True)
class Signals:
    """What a worker's signals would say: nothing."""

    stop: bool = False
    setting_up: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write rows and means here")
    parser.add_argument("--sets", type=int, default=5, help="sets of ten lessons (default: 5)")
    parser.add_argument("--unrelated", type=int, default=200, help="unrelated questions")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", default="embedded")
    parser.add_argument(
        "--setting",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the config, as training.replay=0.3; may be repeated",
    )
    options = parser.parse_args()
    settings = Settings.from_dict(nested(options.setting))
    lessons = read_lessons()
    base = load_base_model(ModelSettings(name=options.model, dtype="fp32"))
    engine = Engine(base, renderer_for(base.tokenizer, base.stop_tokens))
    unrelated = unrelated_questions(options.unrelated, lessons)
    before = answers(engine, unrelated)
    rows = []
    for number in range(1, options.sets + 1):
        chosen = [lesson for lesson in lessons if lesson.set == number]
        near = [lesson.near for lesson in chosen]
        engine.activate(None, None)
        near_before = answers(engine, near)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            pairs = [(lesson.ask, lesson.answer) for lesson in chosen]
            result, steps, seconds = teach(folder, pairs, settings, options)
            weights = adapter(folder, result.lora.alpha / result.lora.rank)
        engine.activate(weights, "taught")
        taught = answers(engine, [lesson.ask for lesson in chosen])
        other = [(text, lesson.answer) for lesson in chosen for text in lesson.other[:OTHERS]]
        said = answers(engine, [text for text, _ in other])
        after = answers(engine, unrelated)
        rows.append(
            {
                "set": number,
                "taught": _share(taught, [lesson.answer for lesson in chosen]),
                "phrasings": _share(said, [answer for _, answer in other]),
                "unchanged": _share(after, before),
                "near": _share(answers(engine, near), near_before),
                "steps": steps,
                "seconds": seconds,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    engine.close()
    means = {
        name: sum(float(row[name]) for row in rows) / len(rows)
        for name in ("taught", "phrasings", "unchanged", "near", "seconds")
    }
    report("Ten lessons, each set on its own", rows, means, targets=TARGETS, json_file=options.json)


def read_lessons(path: Path = LESSONS) -> list[Taught]:
    """The lessons of the data file, in its order."""
    return [
        Taught(**{**entry, "other": tuple(entry["other"])})
        for entry in tomllib.loads(path.read_text(encoding="utf-8"))["lesson"]
    ]


def unrelated_questions(count: int, lessons: Sequence[Taught]) -> list[str]:
    """Held-out questions of all sorts, in their proportions, none of them taught."""
    taught = {
        text.lower().rstrip("?") for lesson in lessons for text in (lesson.ask, *lesson.other)
    }
    found = []
    for name in ("answers", "small_talk", "unknown"):
        text = (HELD_OUT / f"{name}.jsonl").read_text(encoding="utf-8")
        found += [json.loads(line)["question"] for line in text.splitlines()]
    apart = [question for question in found if question.lower().rstrip("?") not in taught]
    return random.Random(1).sample(apart, min(count, len(apart)))


def teach(
    folder: Path,
    lessons: Sequence[tuple[str, str]],
    settings: Settings,
    options: argparse.Namespace,
) -> tuple[Complete, int, float]:
    """Run one job on (question, answer) pairs as the worker does; its result, steps and seconds of
    training."""
    events: list[Event] = []
    spec = JobSpec(
        id=1,
        created_at=datetime.now(UTC),
        reason="bench",
        model=ModelSettings(name=options.model),
        lora=settings.lora,
        training=settings.training,
        lessons=tuple(
            Lesson(number, (user(ask),), answer, CORRECTION_WEIGHT)
            for number, (ask, answer) in enumerate(lessons, start=1)
        ),
        prepared=True,
    )
    spec.write(folder)
    run_job(folder, threads=options.threads, signals=Signals(), tell=events.append)
    result = next(event for event in events if isinstance(event, Complete))
    steps = max(event.step for event in events if isinstance(event, Progress))
    return result, steps, result.seconds


def adapter(folder: Path, scaling: float) -> LoraWeights:
    """What the job wrote, for the engine."""
    tensors = load_file(folder / WEIGHTS)
    begin, end = "base_model.model.", ".lora_A.weight"
    modules = {}
    for name, a in tensors.items():
        if name.endswith(end):
            b = tensors[name.replace("lora_A", "lora_B")]
            modules[name.removeprefix(begin).removesuffix(end)] = (a, b)
    return LoraWeights(modules, scaling)


def answers(engine: Engine, questions: Sequence[str]) -> list[str]:
    """Greedy answers, each in a conversation of its own."""
    return [engine.generate((user(question),), GREEDY).text.strip() for question in questions]


def _share(said: Sequence[str], wanted: Sequence[str]) -> float:
    return sum(a == b for a, b in zip(said, wanted, strict=True)) / len(wanted)


def nested(given: Sequence[str]) -> dict[str, Any]:
    """`section.name=value` as nested dictionaries; values are TOML, or plain text."""
    found: dict[str, Any] = {}
    for text in given:
        name, _, value = text.partition("=")
        section, _, key = name.partition(".")
        try:
            parsed = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            parsed = value
        found.setdefault(section, {})[key] = parsed
    return found


if __name__ == "__main__":
    main()
