"""What lessons do, round after round: taught, asked in other words, held, and what else changed.

    python scripts/bench/learning.py [--rows default,classic,peft,in-context] [--rounds 4]
                                     [--unrelated 200] [--setting training.replay=0.3]

Forty corrections in rounds of ten (`data/lessons.toml`), each round learned from where the one
before ended. After each the model is asked, greedily and each question by itself: what was taught
in this round and in all before; the same in wordings that training never saw; near misses of what
was taught; and questions of other matters. The last two count as unchanged where the answer is the
base's, word by word. Each row runs in a process of its own:

    default     this program with its default settings, its gate included
    classic     the same with training.preset = "classic"
    peft        PEFT and AdamW on question and correction, at the best of four learning rates
    in-context  no training: the lessons stand in the prompt

`--setting` changes the first two. `--fresh` teaches every round to the base, on its own. `seconds`
is a job in a running process, from loading the model to the adapter; `chat.py` measures a real
terminal, from the key press to the swap. `MiB` is the peak of the process so far, the model that
answers included.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tomllib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from learners import Chat, InContext, Jobs, Learner
from lessons import ROUNDS, SPARE, Taught, read_lessons, unrelated_questions, unseen
from plain_peft import PlainPeft, share
from table import report

from shammah.settings import Settings

ROWS = ("default", "classic", "peft", "in-context")
TARGETS = {
    "taught": "mean of the rounds, at least 0.98",
    "phrasings": "mean of the rounds, at least 0.90",
    "all phrasings": "after the last round, at least 0.90",
    "held": "after the last round, at least 0.95",
    "unchanged": "after the last round, at least 0.97",
    "near": "after the last round, at least 0.90",
    "seconds": "the longest job; from the key press, by chat.py, at most 10",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What all rows have in common. `before` are the base's answers."""

    settings: dict[str, Any]
    rounds: int
    fresh: bool
    threads: int
    learning_rate: float | None
    lessons: tuple[Taught, ...]
    unrelated: tuple[str, ...]
    before: dict[str, str]


@dataclass(frozen=True, slots=True)
class Miss:
    """A question of a sort that was not answered as it should have been, after a round."""

    row: str
    round: int
    sort: str
    set: int | None
    question: str
    wanted: str
    said: str


def main() -> None:
    options = arguments()
    lessons = tuple(read_lessons())
    unrelated = tuple(unrelated_questions(options.unrelated, lessons))
    wordings = [text for lesson in lessons for text in lesson.other]
    heard = len(wordings) - sum(len(unseen(lesson)) for lesson in lessons)
    print(f"{heard} of {len(wordings)} other wordings are made by rules too, and not asked")
    settings = nested(options.setting)
    chat = chat_of(settings, options.threads)
    asked = [*unrelated, *(lesson.near for lesson in lessons)]
    before = dict(zip(asked, chat.answers(asked), strict=True))
    chat.close()
    plan = Plan(
        settings,
        options.rounds,
        options.fresh,
        options.threads,
        options.peft_lr,
        lessons,
        unrelated,
        before,
    )
    rows: list[dict[str, Any]] = []
    misses: list[Miss] = []
    for name in options.rows:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
            found, missed = alone.submit(measure, name, plan).result()
        rows += found
        misses += missed
    if options.show:
        for miss in misses:
            print(f"{miss.row} {miss.round}, {miss.sort}: {miss.question}\n    {miss.said!r}")
    compared = [summary(name, rows) for name in options.rows]
    report("Round after round" if not options.fresh else "Each round from the base", rows, {})
    report(
        "Beside each other",
        compared,
        {name: value for name, value in compared[0].items() if name in TARGETS},
        targets=TARGETS,
        json_file=options.json,
        more={"rounds": rows, "misses": [as_dict(miss) for miss in misses]},
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and misses here too")
    parser.add_argument(
        "--rows", default=",".join(ROWS), type=lambda text: text.split(","), help="which, in order"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"at most {ROUNDS}")
    parser.add_argument("--fresh", action="store_true", help="each round from the base")
    parser.add_argument("--unrelated", type=int, default=200, help="unrelated questions")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peft-lr", type=float, help="instead of the best of four")
    parser.add_argument("--show", action="store_true", help="print what was not as it should be")
    parser.add_argument(
        "--setting",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the config, as training.replay=0.3; may be repeated",
    )
    options = parser.parse_args()
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"there is no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    most = SPARE if options.fresh else ROUNDS
    if not 1 <= options.rounds <= most:
        parser.error(f"--rounds must be 1 to {most}")
    return options


def measure(name: str, plan: Plan) -> tuple[list[dict[str, Any]], list[Miss]]:
    """One row, all its rounds."""
    chat = chat_of(plan.settings, plan.threads)
    learner = learner_of(name, plan, chat)
    taught: list[Taught] = []
    rows, misses = [], []
    for number in range(1, plan.rounds + 1):
        now = [lesson for lesson in plan.lessons if lesson.set == number]
        if plan.fresh and number > 1:
            learner.close()
            chat.use(None)
            learner, taught = learner_of(name, plan, chat), []
        training = learner.learn(now)
        shares, missed = asked(chat, plan, now, taught)
        taught += now
        rows.append(
            {
                "row": name,
                "round": number,
                **shares,
                "steps": training.steps,
                "seconds": round(training.seconds, 1),
                "MiB": peak_mib(),
                "gate": "; ".join(training.kept_back) or "-",
            }
        )
        misses += [Miss(name, number, *parts) for parts in missed]
        print(json.dumps(rows[-1]), flush=True)
    learner.close()
    chat.close()
    return rows, misses


def learner_of(name: str, plan: Plan, chat: Chat) -> Learner:
    settings = Settings.from_dict(plan.settings)
    if name == "in-context":
        return InContext(chat)
    if name == "peft":
        return PlainPeft(
            chat,
            settings.model,
            plan.lessons,
            plan.unrelated,
            threads=plan.threads,
            learning_rate=plan.learning_rate,
        )
    if name == "classic":
        training = {**plan.settings.get("training", {}), "preset": "classic"}
        settings = Settings.from_dict({**plan.settings, "training": training})
    return Jobs(chat, settings, plan.threads)


Missed = tuple[str, int | None, str, str, str]
"""Sort, set, question, wanted, said."""


def asked(
    chat: Chat, plan: Plan, now: Sequence[Taught], earlier: Sequence[Taught]
) -> tuple[dict[str, float | None], list[Missed]]:
    """The shares of each sort of question that are answered as they should be, and the others."""
    missed: list[Missed] = []

    def right(sort: str, rows: Sequence[tuple[int | None, str, str]]) -> list[bool]:
        """Which of (set, question, wanted) are."""
        said = chat.answers([question for _, question, _ in rows])
        found = []
        for (number, question, wanted), answer in zip(rows, said, strict=True):
            found.append(answer == wanted)
            if answer != wanted:
                missed.append((sort, number, question, wanted, answer))
        return found

    def taught(lessons: Sequence[Taught]) -> list[bool]:
        return right("taught", [(lesson.set, lesson.ask, lesson.answer) for lesson in lessons])

    def phrasings(lessons: Sequence[Taught]) -> list[bool]:
        return right(
            "phrasing",
            [(item.set, text, item.answer) for item in lessons for text in unseen(item)],
        )

    fresh, held = taught(now), taught(earlier)
    wordings, others = phrasings(now), phrasings(earlier)
    near = right(
        "near", [(item.set, item.near, plan.before[item.near]) for item in (*now, *earlier)]
    )
    unrelated = right("unrelated", [(None, text, plan.before[text]) for text in plan.unrelated])
    return {
        "taught": mean(fresh),
        "held": mean(held),
        "phrasings": mean(wordings),
        "all phrasings": mean([*wordings, *others]),
        "near": mean(near),
        "unchanged": mean(unrelated),
    }, missed


def summary(name: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A row's figures over all rounds, as `TARGETS` says."""
    mine = [row for row in rows if row["row"] == name]
    last = mine[-1]
    return {
        "row": name,
        **{key: sum(row[key] for row in mine) / len(mine) for key in ("taught", "phrasings")},
        **{key: last[key] for key in ("all phrasings", "held", "unchanged", "near")},
        "seconds": max(row["seconds"] for row in mine),
        "steps": sum(row["steps"] for row in mine),
        "MiB": last["MiB"],
        "kept back": sum(row["gate"] != "-" for row in mine),
    }


def chat_of(settings: dict[str, Any], threads: int) -> Chat:
    model = Settings.from_dict(settings).model
    return Chat(model.model_copy(update={"threads": threads}))


def mean(right: Sequence[bool]) -> float | None:
    """None where there is nothing to be right about."""
    return share(right, [True] * len(right)) if right else None


def peak_mib() -> int:
    """The most memory that this process held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)


def as_dict(miss: Miss) -> dict[str, Any]:
    return {name: getattr(miss, name) for name in Miss.__slots__}


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
