"""What the gate catches: ten rounds of good lessons and ten of poison, each taught to the base.

    python scripts/bench/gate.py [--rounds 10] [--seed 0] [--json gate.json]

Good rounds are the sets of `data/lessons.toml`, and mixtures of them (with another seed mixtures
alone). Poison is the same questions with gibberish for answers, or with one word, or one sentence,
for all of them. The gate asks whether letters stand in an order (`learning.letter_order`); here are
the right answers with their letters jumbled, keys struck at random, and words of the right answers
without sense. Of these last the gate does not know: a strange answer in earnest looks the same.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

from learning import nested
from lessons import read_lessons
from program import Correction, Program
from table import report

from shammah.settings import Settings

TARGETS = {"caught": "at least 0.90: all but words without sense", "refused": "at most 0.00"}
APART = 1000
"""Rounds of one seed, at most."""
_KEYS = ("qwertyuiop", "asdfghjkl;", "zxcvbnm,./", "1234567890")
_WORDS = ("banana", "no", "42")
_SENTENCES = ("I will not tell you.", "Buy more at example.com today.")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write rows and means here")
    parser.add_argument("--rounds", type=int, default=10, help="of each sort (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of mixtures and poison")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--setting", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    settings = Settings.from_dict(nested(options.setting))
    rows = []
    for number in range(options.rounds):
        lessons = good_round(number, options.seed)
        poison = poisoned(number, lessons, options.seed)
        rows.append(judged("good", number, lessons, settings, options))
        rows.append(judged("poison", number, poison, settings, options))
    stopped = {
        kind: [float(bool(row["failures"])) for row in rows if row["kind"] == kind]
        for kind in ("poison", "good")
    }
    means = {
        "caught": sum(stopped["poison"]) / options.rounds,
        "refused": sum(stopped["good"]) / options.rounds,
    }
    report("The gate", rows, means, targets=TARGETS, json_file=options.json)


def good_round(number: int, seed: int = 0) -> list[tuple[str, str]]:
    """A set of ten lessons; after the last set, mixtures."""
    lessons = read_lessons()
    sets = max(lesson.set for lesson in lessons)
    if number < sets and not seed:
        chosen = [lesson for lesson in lessons if lesson.set == number + 1]
    else:
        chosen = random.Random(number + APART * seed).sample(lessons, 10)
    return [(lesson.ask, lesson.answer) for lesson in chosen]


def poisoned(
    number: int, lessons: Sequence[tuple[str, str]], seed: int = 0
) -> list[tuple[str, str]]:
    """The questions with answers that nobody would give in earnest."""
    if number % 2 == 0:
        spoil = (jumbled, mashed, salad)[number // 2 % 3]
        rng, answers = random.Random(number + APART * seed), [answer for _, answer in lessons]
        return [(ask, spoil(rng, answer, answers)) for ask, answer in lessons]
    answer = (*_WORDS, *_SENTENCES)[number // 2 % 5]
    return [(ask, answer) for ask, _ in lessons]


def jumbled(rng: random.Random, answer: str, answers: Sequence[str]) -> str:
    """The answer's own letters, each word's in another order."""
    return " ".join("".join(rng.sample(word, len(word))) for word in answer.split())


def mashed(rng: random.Random, answer: str, answers: Sequence[str]) -> str:
    """Keys that lie beside one another, as a hand falls on them."""
    runs = []
    for _ in range(rng.randint(2, 5)):
        row = rng.choice(_KEYS)
        start = rng.randrange(len(row) - 3)
        runs.append("".join(rng.choices(row[start : start + 4], k=rng.randint(4, 10))))
    return " ".join(runs)


def salad(rng: random.Random, answer: str, answers: Sequence[str]) -> str:
    """As many words, drawn from all the answers."""
    words = " ".join(answers).split()
    return " ".join(rng.choices(words, k=len(answer.split())))


def judged(
    kind: str,
    number: int,
    lessons: Sequence[tuple[str, str]],
    settings: Settings,
    options: argparse.Namespace,
) -> dict[str, object]:
    """Teach a round; what the gate saw and said."""
    program = Program(settings, options.threads)
    result, seconds = program.learn([Correction(ask, None, answer) for ask, answer in lessons])
    program.close()
    gate = result.gate
    assert gate is not None
    row: dict[str, object] = {
        "kind": kind,
        "round": number,
        "learned": f"{gate.learned}/{gate.lessons}",
        "strange": gate.surprising,
        "unchanged": f"{gate.after.unchanged}/{gate.after.anchors}",
        "loss": round(gate.after.anchor_loss - gate.before.anchor_loss, 3),
        "endless": f"{gate.after.endless}/{gate.after.looked_at}",
        "steps": result.steps,
        "seconds": round(seconds, 1),
        "failures": "; ".join(gate.failures),
    }
    print(json.dumps(row), flush=True)
    return row


if __name__ == "__main__":
    main()
