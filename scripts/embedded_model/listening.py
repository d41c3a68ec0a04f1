"""Conversations in which the user tells something and asks for it later.

The values are words and numbers made up on the spot, so that the only way to be right is to
copy them from the conversation. Knows nothing about tokens; what can be told comes from
`listening.toml`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from embedded_model.corpus import ListeningWords
from embedded_model.grammar import parse
from embedded_model.noise import typed

# Beginnings, middles and ends of syllables; an empty end is the most frequent.
_ONSETS = (
    *"bcdfghjklmnprstvwz",
    "br",
    "cl",
    "dr",
    "fl",
    "gr",
    "kr",
    "pl",
    "st",
    "th",
    "tr",
    "sh",
    "qu",
)
_VOWELS = (*"aeiouaeio", "ai", "ee", "oa", "ia")
_CODAS = ("", "", "", *"nrstlmkx", "nd", "rn", "sk", "ck")


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing told: `my project` is `Zeno`."""

    owner: str
    thing: str
    value: str

    @property
    def yours(self) -> str:
        """The thing as the answer names it."""
        return f"{'your' if self.owner in ('my', 'our') else self.owner} {self.thing}"


class Listener:
    """Draws facts and the turns in which they are told, asked for, changed and missing.

    Args:
        words: what can be told, and how.
        lexicon: real words. Values are drawn from them too, whole and spliced, so that every token
            of the vocabulary is said now and then: one that never is cannot be taught later.
    """

    def __init__(self, words: ListeningWords, lexicon: Sequence[str]) -> None:
        self._words = words
        self._lexicon = lexicon

    def fact(self, rng: random.Random, taken: tuple[str, ...] = ()) -> Fact:
        """A fact about a thing that is not among `taken`."""
        while True:
            told = rng.choice(self._words.told)
            thing = rng.choice(told.things)
            if thing not in taken:
                break
        owner = rng.choice(("my", "my", "my", "the", "our"))
        return Fact(owner, thing, self.value(rng.choice(told.values), rng))

    def value(self, kind: str, rng: random.Random) -> str:
        """A value of one kind: `word`, `number`, `name` ... or a word of the list so named."""
        if kind == "name":
            return self.word(rng).capitalize()
        if kind == "word":
            return self.word(rng)
        if kind == "number":
            digits = rng.randint(1, 6)
            return str(rng.randrange(10 ** (digits - 1), 10**digits))
        if kind == "port":
            return str(rng.randint(1000, 65535))
        if kind == "version":
            return f"{rng.randint(0, 30)}.{rng.randint(0, 20)}"
        if kind == "dashed":
            return f"{self.word(rng)}-{self.word(rng)}"
        if kind == "file":
            return f"{self.word(rng)}.{rng.choice(('py', 'txt', 'toml', 'json', 'md', 'csv'))}"
        if kind == "full":
            return f"{self.word(rng).capitalize()} {self.word(rng).capitalize()}"
        return rng.choice(self._words.lists[kind])

    def word(self, rng: random.Random) -> str:
        """A word of the lexicon, one spliced from two of them, or one made of syllables."""
        kind = rng.random()
        if kind < 0.3:
            return rng.choice(self._lexicon)
        if kind < 0.65:
            head, tail = rng.choice(self._lexicon), rng.choice(self._lexicon)
            return head[: rng.randint(2, 5)] + tail[-rng.randint(2, 5) :]
        return made_up_word(rng)

    def tell(self, fact: Fact, rng: random.Random) -> tuple[str, str]:
        """The statement, and how it is acknowledged."""
        statement = self._write(rng.choice(self._words.statements), fact, rng)
        return typed(statement, rng, keep=(fact.value,)), self._acknowledge(fact, rng)

    def change(self, fact: Fact, rng: random.Random) -> tuple[Fact, str, str]:
        """The same thing with another value, told in a later turn."""
        told = next(t for t in self._words.told if fact.thing in t.things)
        changed = Fact(fact.owner, fact.thing, self.value(rng.choice(told.values), rng))
        statement = self._write(rng.choice(self._words.changes), changed, rng)
        return (
            changed,
            typed(statement, rng, keep=(changed.value,)),
            self._acknowledge(changed, rng),
        )

    def ask(self, fact: Fact, rng: random.Random) -> tuple[str, str]:
        """The question for a fact that was told, and its answer."""
        question = self._write(rng.choice(self._words.questions), fact, rng)
        answer = self._write(self._words.answers[0], fact, rng)
        return typed(question, rng), answer[0].upper() + answer[1:]

    def ask_missing(self, fact: Fact, rng: random.Random) -> tuple[str, str]:
        """The same question when nobody told the fact."""
        question = self._write(rng.choice(self._words.questions), fact, rng)
        return typed(question, rng), self._write(self._words.missing, fact, rng)

    def repeat(self, rng: random.Random) -> tuple[str, str]:
        """Something to say after the user: several words, to be copied as they are."""
        if rng.random() < 0.5:
            words = [rng.choice(self._lexicon) for _ in range(rng.randint(1, 8))]
            text = " ".join(words)
            if rng.random() < 0.5:
                text = text[0].upper() + text[1:] + rng.choice(("", ".", "!", "?"))
        else:
            kinds = rng.choices(("word", "name", "number", "dashed", "colour"), k=rng.randint(1, 6))
            text = " ".join(self.value(kind, rng) for kind in kinds)
        frame = rng.choice(self._words.repeats)
        return parse(frame).sample(rng).replace("<value>", text), text

    def _acknowledge(self, fact: Fact, rng: random.Random) -> str:
        text = self._write(self._words.acknowledgements[0], fact, rng)
        return text[0].upper() + text[1:]

    def _write(self, frame: str, fact: Fact, rng: random.Random) -> str:
        text = parse(frame).sample(rng)
        for name, value in (
            ("<owner>", fact.owner),
            ("<yours>", fact.yours),
            ("<thing>", fact.thing),
            ("<value>", fact.value),
        ):
            text = text.replace(name, value)
        return text


def made_up_word(rng: random.Random) -> str:
    """A pronounceable word of two or three syllables, almost surely never seen before."""
    return "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
        for _ in range(rng.choice((1, 2, 2, 3)))
    )
