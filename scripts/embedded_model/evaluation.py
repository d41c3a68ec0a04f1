"""What the finished folder is judged by: held-out questions, answered greedily.

Loads the folder as any user of it would (AutoModelForCausalLM, AutoTokenizer), so that the
figures are those of the shipped files. Knows nothing about training.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedded_model.corpus import Answer, Corpus

HELD_OUT = Path(__file__).resolve().parent.parent.parent / "tests" / "data" / "embedded"
RIGHT = 0.9
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Question:
    """One held-out case: the conversation, and what a right answer is."""

    messages: tuple[tuple[str, str], ...]
    reference: str | None = None
    contains: tuple[str, ...] = ()


@dataclass(slots=True)
class Score:
    right: int = 0
    total: int = 0
    misses: list[dict[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.right} of {self.total} ({self.right / max(1, self.total):.0%})"


class Answerer:
    """Greedy answers from a model folder."""

    def __init__(self, folder: Path, *, dtype: str = "float32") -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        started = time.perf_counter()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        self.model.eval()
        self.load_seconds = time.perf_counter() - started

    def answers(self, conversations: Sequence[tuple[tuple[str, str], ...]]) -> list[str]:
        """One answer each; batched by equal prompt length so that no padding is seen."""
        import torch

        prompts = [
            self.tokenizer.apply_chat_template(
                [{"role": role, "content": text} for role, text in turns],
                add_generation_prompt=True,
                return_dict=False,
            )
            for turns in conversations
        ]
        by_length: dict[int, list[int]] = {}
        for at, prompt in enumerate(prompts):
            by_length.setdefault(len(prompt), []).append(at)
        answers = [""] * len(prompts)
        for places in by_length.values():
            ids = torch.tensor([prompts[at] for at in places])
            with torch.inference_mode():
                out = self.model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=256, do_sample=False
                )
            for at, row in zip(places, out[:, ids.shape[1] :], strict=True):
                answers[at] = self.tokenizer.decode(row, skip_special_tokens=True).strip()
        return answers

    def tokens_per_second(self, tokens: int = 200) -> float:
        """Greedy decode of one sequence, end tokens ignored."""
        import torch

        ids = torch.tensor([self.tokenizer.encode("How do I read a file line by line?")])
        mask = torch.ones_like(ids)
        with torch.inference_mode():
            for count in (16, tokens):
                started = time.perf_counter()
                self.model.generate(
                    ids,
                    attention_mask=mask,
                    max_new_tokens=count,
                    min_new_tokens=count,
                    do_sample=False,
                )
        return tokens / (time.perf_counter() - started)


def evaluate(answerer: Answerer, corpus: Corpus, folder: Path = HELD_OUT) -> dict[str, Score]:
    """Every held-out file, by name."""
    scores = {}
    known = corpus.by_id()
    for path in sorted(folder.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        scores[path.stem] = _score(answerer, [_question(row, known) for row in rows])
    return scores


def held_out_questions(folder: Path = HELD_OUT) -> frozenset[str]:
    """Every held-out question as `plain` has it, for what must not be trained on."""
    lines = (line for path in folder.glob("*.jsonl") for line in path.open(encoding="utf-8"))
    return frozenset(plain(json.loads(line)["question"]) for line in lines)


def plain(text: str) -> str:
    """Its words alone, in lower case."""
    return " ".join(_WORD.findall(re.sub(r"[^\w\s]", " ", text.lower())))


def refused(score: Score) -> float:
    """Share of questions with a known answer that were met with an admission."""
    wrong = sum(1 for miss in score.misses if admits(miss["answer"]))
    return wrong / score.total if score.total else 0.0


def admits(answer: str) -> bool:
    """Whether an answer says that it does not know, and how to teach it."""
    low = answer.lower()
    ways = ("don't know", "can't see", "told me", "more than i can")
    return "/correct" in low and any(way in low for way in ways)


def token_f1(answer: str, reference: str) -> float:
    """F1 over words and punctuation marks, case ignored."""
    ours, theirs = Counter(_WORD.findall(answer.lower())), Counter(_WORD.findall(reference.lower()))
    shared = sum((ours & theirs).values())
    if not shared:
        return 0.0
    precision, recall = shared / sum(ours.values()), shared / sum(theirs.values())
    return 2 * precision * recall / (precision + recall)


def _question(row: dict[str, Any], known: dict[str, Answer]) -> Question:
    """A held-out line as a conversation; what was answered before comes from the corpus."""
    messages = tuple((m["role"], m["content"]) for m in row.get("messages", ()))
    if "asked" in row:
        messages = (("user", row["asked"]), ("assistant", known[row["id"]].text))
    messages = (*messages, ("user", row["question"]))
    return Question(messages, _reference(row, known), tuple(row.get("contains", ())))


def _reference(row: dict[str, Any], known: dict[str, Answer]) -> str | None:
    if "note" in row:
        revisions = known[row["id"]].revisions
        return next(r.answer for r in revisions if r.kind == row["note"])
    if "asked" in row:
        return str(row["reference"])
    return known[row["id"]].text if "id" in row else None


def _score(answerer: Answerer, questions: list[Question]) -> Score:
    score = Score()
    answers = answerer.answers([question.messages for question in questions])
    for question, answer in zip(questions, answers, strict=True):
        score.total += 1
        if _right(question, answer):
            score.right += 1
        else:
            expected = question.reference or ", ".join(question.contains) or "an admission"
            score.misses.append(
                {"question": question.messages[-1][1], "answer": answer, "expected": expected}
            )
    return score


def _right(question: Question, answer: str) -> bool:
    if question.reference is not None:
        same = " ".join(answer.split()) == " ".join(question.reference.split())
        return same or token_f1(answer, question.reference) >= RIGHT
    if question.contains:
        return all(part.lower() in answer.lower() for part in question.contains)
    return admits(answer)
