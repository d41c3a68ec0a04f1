"""Training conversations, drawn without end from the corpus: row N of a seed is always the same.

A conversation is a sequence of (role, text) turns. Questions on different things are mixed in
one conversation, so that earlier turns do not throw the model off, and things that the user
told are asked for some turns later. Knows nothing about tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from embedded_model.arithmetic import big_sum, small_sum
from embedded_model.corpus import Answer, Corpus, Unknowns
from embedded_model.listening import Fact, Listener, made_up_word
from embedded_model.noise import typed
from embedded_model.wording import Wording

Turn = tuple[str, str]
Conversation = tuple[Turn, ...]
Size = Literal["short", "medium", "long"]

_SYSTEM = (
    "You are a helpful assistant.",
    "You are Shammah, a terminal assistant.",
    "Answer briefly.",
    "Be concise and friendly.",
    "You are a coding assistant. Use short answers.",
    "Answer in English.",
    "You help a programmer at the command line.",
)
# How many blocks a conversation of a size holds, fewest and most.
_BLOCKS_IN: dict[Size, tuple[int, int]] = {"short": (0, 2), "medium": (1, 5), "long": (5, 12)}
# What one block of a conversation is about, with its share.
_BLOCKS = (
    ("answer", 64.0),
    ("talk", 12.0),
    ("unknown", 26.0),
    ("sum", 7.0),
    ("big sum", 0.5),
    ("repeat", 4.0),
)
_FOLLOWED, _REVISED = 0.32, 0.28
"""Shares of the answers that are followed up, or rewritten after a note."""
_CUT, _FIRST_TOKENS = 0.7, (4, 20)
"""How many short conversations end within their last answer, and after how many of its tokens."""

_OTHER_WORDS = 0.25
"""Share of the questions that are asked in words of no grammar, where there are such."""
_FRAMED = 0.5
"""Share of the outside questions that are asked as the known ones are."""


class RowMaker:
    """Draws conversations from a corpus.

    Args:
        corpus: what is asked and answered.
        seed: decides every conversation.
        other_words: more questions to the answers of those ids.
    """

    def __init__(
        self, corpus: Corpus, seed: int, other_words: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self._corpus = corpus
        self._seed = seed
        self._other_words = other_words or {}
        self._listener = Listener(corpus.listening, corpus.lexicon)
        self._revisable = tuple(a for a in corpus.answers if a.revisions)
        self._followed = tuple(a for a in (*corpus.answers, *corpus.talk) if a.follow_ups)

    def row(self, number: int, size: Size = "short") -> Conversation:
        """Conversation `number` of that size."""
        rng = random.Random(f"{self._seed}/{number}/{size}")
        turns: list[Turn] = []
        if rng.random() < 0.12:
            turns.append(("system", rng.choice(_SYSTEM)))
        low, high = _BLOCKS_IN[size]
        if rng.random() < (0.25 if size == "short" else 0.8):
            pairs = self._listening(rng, blocks=rng.randint(low, high))
        else:
            pairs = [p for _ in range(rng.randint(low, high) + 1) for p in self.block(rng)]
        for question, answer in pairs:
            turns.extend((("user", question), ("assistant", answer)))
        return tuple(turns)

    def kept_tokens(self, number: int, size: Size) -> int | None:
        """How many tokens of its last answer conversation `number` keeps; None for all.

        Which answer it is, is decided in its first tokens; that is what is hard to learn. Cut
        there, twice as many questions fit into a step.
        """
        rng = random.Random(f"{self._seed}/{number}/{size}/cut")
        if size != "short" or rng.random() >= _CUT:
            return None
        return rng.randint(*_FIRST_TOKENS)

    def block(self, rng: random.Random) -> list[tuple[str, str]]:
        """One question with its answer, sometimes with a follow-up."""
        (kind,) = rng.choices([name for name, _ in _BLOCKS], [share for _, share in _BLOCKS])
        if kind == "answer":
            return self._answer(rng)
        if kind == "talk":
            talk = rng.choice(self._corpus.talk)
            return [self._asked(talk, rng)]
        if kind == "unknown":
            return [self._unknown(rng)]
        if kind == "sum":
            return [small_sum(rng)]
        if kind == "big sum":
            return [big_sum(rng)]
        return [self._listener.repeat(rng)]

    def _answer(self, rng: random.Random) -> list[tuple[str, str]]:
        chance = rng.random()
        if self._followed and chance < _FOLLOWED:
            answer = rng.choice(self._followed)
            follow = rng.choice(answer.follow_ups)
            again = typed(rng.choice(follow.asks).sample(rng), rng)
            return [self._asked(answer, rng), (again, follow.answer)]
        if self._revisable and chance < _FOLLOWED + _REVISED:
            answer = rng.choice(self._revisable)
            revision = rng.choice(answer.revisions)
            note = rng.choice(revision.notes).sample(rng)
            frame = rng.choice(self._corpus.revision_frames).sample(rng)
            return [
                self._asked(answer, rng),
                (typed(frame.replace("<note>", note), rng), revision.answer),
            ]
        return [self._asked(rng.choice(self._corpus.answers), rng)]

    def _asked(self, answer: Answer, rng: random.Random) -> tuple[str, str]:
        others = self._other_words.get(answer.id)
        if others and rng.random() < _OTHER_WORDS:
            return typed(rng.choice(others), rng), answer.text
        return ask(answer, rng, self._corpus.wording), answer.text

    def _unknown(self, rng: random.Random) -> tuple[str, str]:
        if rng.random() < 0.2:
            return self._listener.ask_missing(self._listener.fact(rng), rng)
        groups = self._corpus.unknowns
        (group,) = rng.choices(groups, [group.share for group in groups])
        return ask_unknown(group, rng, self._corpus), group.answer

    def _listening(self, rng: random.Random, blocks: int) -> list[tuple[str, str]]:
        """One to four facts, told among other blocks, and each asked for after it was told."""
        listener = self._listener
        pairs: list[tuple[str, str]] = []
        facts: list[Fact] = []
        for _ in range(rng.randint(1, 2 + blocks // 3)):
            facts.append(listener.fact(rng, tuple(fact.thing for fact in facts)))
        plan = ["tell"] * len(facts) + ["block"] * blocks
        rng.shuffle(plan)
        known: list[Fact] = []
        waiting = list(facts)
        for step in plan:
            if step == "block":
                pairs.extend(self.block(rng))
                continue
            fact = waiting.pop()
            pairs.append(listener.tell(fact, rng))
            known.append(fact)
            if rng.random() < 0.12:
                at = rng.randrange(len(known))
                known[at], *turn = listener.change(known[at], rng)
                pairs.append((turn[0], turn[1]))
            if rng.random() < 0.4:
                pairs.append(listener.ask(rng.choice(known), rng))
        for fact in rng.sample(known, rng.randint(1, len(known))):
            pairs.append(listener.ask(fact, rng))
        if rng.random() < 0.3:
            missing = listener.fact(rng, tuple(fact.thing for fact in facts))
            pairs.insert(rng.randint(0, len(pairs)), listener.ask_missing(missing, rng))
        return pairs


def ask(answer: Answer, rng: random.Random, wording: Wording) -> str:
    """One phrasing of the question, typed as people type."""
    return typed(wording.other(ask_of(answer, rng), rng), rng)


def ask_of(answer: Answer, rng: random.Random) -> str:
    """One phrasing of the question, as its grammars have it."""
    (grammar,) = rng.choices(answer.asks, answer.weights)
    return grammar.sample(rng)


def ask_unknown(group: Unknowns, rng: random.Random, corpus: Corpus) -> str:
    """A question of that sort.

    `<Made>` and `<made>` become words that do not exist, `<word>` any word of the corpus: known
    words alone make no known question.
    """
    framed = bool(group.framed) and rng.random() < _FRAMED
    text = rng.choice(group.framed if framed else group.asks).sample(rng)
    places: dict[str, Callable[[], str]] = {
        "<Made>": lambda: made_up_word(rng).capitalize(),
        "<made>": lambda: made_up_word(rng),
        "<word>": lambda: rng.choice(corpus.lexicon),
        "<number>": lambda: str(rng.randint(2, 9999)),
    }
    for place, draw in places.items():
        while place in text:
            text = text.replace(place, draw(), 1)
    return typed(corpus.wording.other(text, rng), rng)
