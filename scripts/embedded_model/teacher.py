"""What a sentence encoder knows of the corpus's questions, and of the words they could be asked in.

A small model trained from scratch knows no word beyond the grammars, so "throw away a branch" and
"delete a branch" are strangers to it. A sentence encoder (all-MiniLM-L6-v2, Apache-2.0) knows
better: which words are near each other, and which questions are the same one.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from embedded_model.corpus import Corpus
from embedded_model.evaluation import held_out_questions, plain
from embedded_model.listening import Listener
from embedded_model.rows import ask_of, ask_unknown

_ASKS, _UNKNOWN, _TALK = 40, 8_000, 12_000
"""Texts: for each answer, as many again in other words; unknown questions; what else is said."""
_NEIGHBOURS, _NEAR = 8, 0.45
_FRAMING = 100
_SAME, _APART = 0.78, 0.06
"""How like its own question one in other words must be, and how much liker than to all others."""
Words = dict[str, list[str]]
"""To each word those nearest in meaning."""
_WORD = re.compile(r"[A-Za-z]{3,}")
_LONGEST = 64


class Teacher:
    """A sentence encoder: mean of the last hidden states, normalised."""

    def __init__(self, folder: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model: Any = AutoModel.from_pretrained(folder).eval()

    def words(self) -> list[str]:
        """The whole lower-case words of its vocabulary."""
        entries = self._tokenizer.get_vocab()
        return sorted(word for word in entries if word.isascii() and _WORD.fullmatch(word))

    def embed(self, texts: Sequence[str], *, batch: int = 256) -> torch.Tensor:
        """Unit vectors, float32 [texts, width]."""
        # Texts of like length together, so that little padding is computed.
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
        vectors: list[torch.Tensor] = [torch.empty(0)] * len(texts)
        for start in range(0, len(order), batch):
            places = order[start : start + batch]
            encoded = self._tokenizer(
                [texts[at] for at in places],
                padding=True,
                truncation=True,
                max_length=_LONGEST,
                return_tensors="pt",
            )
            with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
                hidden = self._model(**encoded).last_hidden_state.float()
            seen = encoded["attention_mask"][..., None]
            mean = (hidden * seen).sum(1) / seen.sum(1)
            for at, vector in zip(places, nn.functional.normalize(mean, dim=-1), strict=True):
                vectors[at] = vector
        return torch.stack(vectors)


@dataclass(frozen=True, slots=True)
class Bank:
    """Texts, and what the teacher says of each: float16 [texts, width]."""

    texts: tuple[str, ...]
    vectors: torch.Tensor


@dataclass(frozen=True, slots=True)
class Taught:
    """All that is asked of the teacher: once for a corpus, then kept in a file.

    Attributes:
        bank: what texts mean.
        other_words: to the id of an answer, questions to it in words of no grammar.
    """

    bank: Bank
    other_words: dict[str, tuple[str, ...]]

    @classmethod
    def ask(cls, corpus: Corpus, teacher: Teacher, seed: int) -> Taught:
        rng = random.Random(f"{seed}/taught")
        near = _near_words(corpus, teacher)
        held_out = held_out_questions()
        owners = [at for at in range(len(corpus.answers)) for _ in range(_ASKS)]
        asked = [ask_of(corpus.answers[at], rng) for at in owners]
        # The frequent words only frame a question; another in their place makes it odd.
        counts = Counter(word for text in asked for word in _WORD.findall(text.lower()))
        for word, _ in counts.most_common(_FRAMING):
            near.pop(word, None)
        tried = [_altered(text, near, rng) for text in asked]
        said = list(_said(corpus, near, rng))
        vectors = teacher.embed([*asked, *tried, *said])
        same = _same_question(torch.tensor(owners), *vectors[: 2 * len(asked)].chunk(2))
        others: dict[str, tuple[str, ...]] = {}
        for at in same:
            if plain(tried[at]) in held_out:
                continue
            name = corpus.answers[owners[at]].id
            others[name] = (*others.get(name, ()), tried[at])
        return cls(Bank((*asked, *tried, *said), vectors.half()), others)

    def save(self, file: Path) -> None:
        texts = {"texts": self.bank.texts, "other_words": self.other_words}
        save_file({"vectors": self.bank.vectors}, file, metadata={"taught": json.dumps(texts)})

    @classmethod
    def load(cls, file: Path) -> Taught:
        with safe_open(file, framework="pt") as opened:
            texts, vectors = json.loads(opened.metadata()["taught"]), opened.get_tensor("vectors")
        others = {name: tuple(asked) for name, asked in texts["other_words"].items()}
        return cls(Bank(tuple(texts["texts"]), vectors), others)


def _same_question(owners: torch.Tensor, asked: torch.Tensor, tried: torch.Tensor) -> list[int]:
    """Which of the tried questions the teacher takes for one of their owner's, by place.

    The nearest of all questions asked must be the owner's, and those of others be farther.

    Args:
        owners: int64 [n], the answer that question i is asked for.
        asked, tried: unit vectors, float32 [n, width].
    """
    same: list[int] = []
    for start in range(0, len(tried), 512):
        likeness = tried[start : start + 512] @ asked.T
        own = owners[start : start + 512]
        best = torch.full((len(own), int(owners.max()) + 1), -1.0)
        best.scatter_reduce_(1, owners.expand(len(own), -1), likeness, "amax")
        mine = best.gather(1, own[:, None])[:, 0]
        other = best.scatter(1, own[:, None], -1.0).amax(1)
        alike = (mine > _SAME) & (mine > other + _APART)
        same.extend((start + alike.nonzero()[:, 0]).tolist())
    return same


def _said(corpus: Corpus, near: Words, rng: random.Random) -> Iterator[str]:
    """What else is said: unknown questions, talk, facts, notes, and single words."""
    for _ in range(_UNKNOWN):
        groups = corpus.unknowns
        (group,) = rng.choices(groups, [group.share for group in groups])
        yield ask_unknown(group, rng, corpus)
    yield from (_talk(corpus, rng) for _ in range(_TALK))
    yield from sorted({word for known in corpus.lexicon for word in near.get(known, ())})


def _talk(corpus: Corpus, rng: random.Random) -> str:
    """Small talk, a follow-up, a note, or something told or asked for."""
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice(rng.choice(corpus.talk).asks).sample(rng)
    if kind == 1:
        follows = rng.choice([a for a in corpus.answers if a.follow_ups]).follow_ups
        return rng.choice(rng.choice(follows).asks).sample(rng)
    if kind == 2:
        revisions = rng.choice([a for a in corpus.answers if a.revisions]).revisions
        note = rng.choice(rng.choice(revisions).notes).sample(rng)
        return rng.choice(corpus.revision_frames).sample(rng).replace("<note>", note)
    listener = Listener(corpus.listening, corpus.lexicon)
    fact = listener.fact(rng)
    return (listener.tell(fact, rng) if rng.random() < 0.5 else listener.ask(fact, rng))[0]


def _altered(text: str, near: Words, rng: random.Random) -> str:
    """The text with one to three words replaced by near ones, or only some of its words."""
    if rng.random() < 0.2:
        words = text.split()
        return " ".join(word for word in words if rng.random() < 0.75) or text
    spans = [m.span() for m in _WORD.finditer(text) if m.group().lower() in near]
    for start, end in sorted(rng.sample(spans, min(len(spans), rng.randint(1, 3))), reverse=True):
        text = text[:start] + rng.choice(near[text[start:end].lower()]) + text[end:]
    return text


def _near_words(corpus: Corpus, teacher: Teacher) -> Words:
    """For each word of the teacher and of the corpus, the words nearest in meaning."""
    words = sorted({*teacher.words(), *(word for word in corpus.lexicon if _WORD.fullmatch(word))})
    vectors = teacher.embed(words)
    near = {}
    for start in range(0, len(words), 1024):
        likeness = vectors[start : start + 1024] @ vectors.T
        values, places = likeness.topk(_NEIGHBOURS + 1)
        for at, (row, columns) in enumerate(zip(values.tolist(), places.tolist(), strict=True)):
            own = start + at
            others = [words[c] for v, c in zip(row, columns, strict=True) if v > _NEAR and c != own]
            if others:
                near[words[own]] = others
    return near
