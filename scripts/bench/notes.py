"""What a note alone does: the next answer, asked for in words such as "shorter".

    python scripts/bench/notes.py [--answers 40] [--show] [--json FILE]

A question is asked, then the note, as the next thing the user types; nothing is trained. Notes in
held-out wordings stand on the questions that they were written for; notes of two or three words
stand on those, and on answers of all sorts (`--answers`). A rule for each kind of note, which looks
at words and signs alone, says whether the second answer differs from the first as asked. It cannot
say whether it is still true.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

from learners import Chat
from lessons import HELD_OUT, held_out
from note_rules import RULES, as_asked
from table import Row, report

from shammah.messages import Conversation, assistant, user
from shammah.settings import ModelSettings

TARGETS = dict.fromkeys(("held-out wordings", "a few words", "on any answer"), "at least 0.70")
SHORT = {
    "shorter": "shorter",
    "example": "add an example",
    "one": "in one sentence",
    "more": "more detail",
    "code": "only the code",
    "jargon": "in simple words",
    "errors": "handle errors",
    "types": "add type hints",
}
"""What one would type for each kind of note."""
ANY = ("shorter", "example", "one", "more", "jargon")
"""Notes that can be given on every answer."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the answers here")
    parser.add_argument("--answers", type=int, default=40, help="questions of all sorts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="print what was not as asked")
    options = parser.parse_args()
    text = (HELD_OUT / "revisions.jsonl").read_text(encoding="utf-8")
    revisions = [json.loads(line) for line in text.splitlines()]
    answered = [row["question"] for row in held_out() if "id" in row]
    anything = random.Random(1).sample(answered, min(options.answers, len(answered)))
    groups = {
        "held-out wordings": [(row["asked"], row["note"], row["question"]) for row in revisions],
        "a few words": [(row["asked"], row["note"], SHORT[row["note"]]) for row in revisions],
        "on any answer": [
            (question, kind, SHORT[kind])
            for question, kind in zip(anything, ANY * len(anything), strict=False)
        ],
    }
    chat = Chat(ModelSettings(threads=options.threads))
    tried = [(name, *said) for name, group in groups.items() for said in conversations(chat, group)]
    chat.close()
    rows: list[Row] = [
        {
            "note": kind,
            **{
                name: share(
                    [good for group, note, _, good in tried if (group, note) == (name, kind)]
                )
                for name in groups
            },
        }
        for kind in RULES
    ]
    if options.show:
        for group, kind, messages, good in tried:
            if not good:
                said = " | ".join(message.text for message in messages)
                print(f"{group}, {kind}: {said}")
    report(
        "The next answer after a note, as asked",
        rows,
        {name: share([row[3] for row in tried if row[0] == name]) or 0.0 for name in groups},
        targets=TARGETS,
        json_file=options.json,
        more={
            "answers": [
                {"group": group, "note": kind, "said": [m.text for m in messages], "good": good}
                for group, kind, messages, good in tried
            ]
        },
    )


def conversations(
    chat: Chat, group: Sequence[tuple[str, str, str]]
) -> list[tuple[str, Conversation, bool]]:
    """Each (question, kind, note) asked: kind, what was said, and whether that is as asked. Left
    out is what needs no change, such as one sentence that is to be one."""
    found: list[tuple[str, Conversation, bool]] = []
    for question, kind, note in group:
        chat.before = ()
        (first,) = chat.answers([question])
        if RULES[kind](first, first):
            continue
        chat.before = (user(question), assistant(first))
        (second,) = chat.answers([note])
        messages = (*chat.before, user(note), assistant(second))
        found.append((kind, messages, as_asked(kind, question, first, second)))
    chat.before = ()
    return found


def share(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None


if __name__ == "__main__":
    main()
