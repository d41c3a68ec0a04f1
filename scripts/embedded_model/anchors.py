"""The anchor set shipped with the model: questions over its whole ground, with its own answers.

Training on lessons mixes these in, so that what was not taught stays as it is. The answers are the
finished model's, greedily decoded, not the corpus's: an anchor must hold the model where it is.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from embedded_model.corpus import Corpus
from embedded_model.evaluation import Answerer
from embedded_model.rows import ask, ask_unknown

FILE = "anchors.jsonl"
KNOWN, TALK, UNKNOWN = 600, 80, 320
LONGEST = 400
"""Characters of an answer at most: longer ones cost more than they hold."""


def write_anchors(folder: Path, corpus: Corpus, seed: int) -> int:
    """Write the anchors of a finished model folder; how many there are."""
    rng = random.Random(f"{seed}/anchors")
    known = [ask(answer, rng, corpus.wording) for answer in rng.sample(corpus.answers, KNOWN)]
    talk = [ask(answer, rng, corpus.wording) for answer in rng.choices(corpus.talk, k=TALK)]
    unknown = [ask_unknown(group, rng, corpus) for group in rng.choices(corpus.unknowns, k=UNKNOWN)]
    questions = list(dict.fromkeys([*known, *talk, *unknown]))
    answers = Answerer(folder).answers([(("user", question),) for question in questions])
    rows = [
        {"query": question, "answer": answer}
        for question, answer in zip(questions, answers, strict=True)
        if 0 < len(answer) <= LONGEST
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / FILE).write_text(text, encoding="utf-8")
    return len(rows)
