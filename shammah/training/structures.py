"""Examples of structured answers: what else could stand at each place where a word is chosen.

Each other word is put into the answer, and the answer is rendered again: where the tokens part from
those of the answer as it is says what the model would have had to say. So nothing is assumed of the
tokenizer. Knows text, tokens and a function that renders; `losses.choices` says what an example
then carries.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from shammah.errors import DataError
from shammah.messages import assistant
from shammah.ports.datum import Datum, TensorData
from shammah.structure.citations import CITATION, citations
from shammah.structure.claims import LABELS, ClaimGraph, parse_claims
from shammah.structure.graph import Betti, betti, skew
from shammah.training.datums import datum
from shammah.training.losses import choices

if TYPE_CHECKING:
    from shammah.datasets.formatters.base import ChatExample
    from shammah.messages import Conversation
    from shammah.renderers.base import RenderedExample, Renderer

Path = list[tuple[int, int]]
"""Positions and tokens."""

_PROBES = ("\N{SNOWMAN}", "~", "Zq")
"""Beginnings that no id has: where they part from the answer, an id begins."""


@dataclass(slots=True)
class _Slots:
    """Slots with their options as they are found."""

    slots: list[tuple[int, int, int]]
    options: list[tuple[int, int]]
    shares: list[float]
    paths: list[tuple[int, int, int]]

    def add(self, slot: tuple[int, int, int], options: Sequence[tuple[int, float, Path]]) -> None:
        """A slot with the value, share and path of each of its options."""
        self.slots.append(slot)
        for value, share, path in options:
            self.options.append((len(self.slots) - 1, value))
            self.shares.append(share)
            self.paths += [(len(self.options) - 1, *target) for target in path]

    def inputs(self) -> dict[str, TensorData]:
        columns = choices.ARRAYS
        return {
            "slots": _table(self.slots, columns["slots"]),
            "options": _table(self.options, columns["options"]),
            "shares": TensorData(np.asarray(self.shares, dtype=np.float32)),
            "paths": _table(self.paths, columns["paths"]),
        }


def structured(
    answer: str,
    render: Callable[[str], RenderedExample],
    *,
    shown: Collection[str] = (),
    wanted: Betti | None = None,
    wanted_skew: float | None = None,
    weight: float = 1.0,
    pattern: re.Pattern[str] | str = CITATION,
) -> Datum:
    """An example for `cross_entropy` as `datum` makes it, with what `topological`, `chirality` and
    `citation_validity` take.

    Args:
        answer: with claims, relations and citations, or without.
        render: the whole example with some answer; is called once for each word that could stand
            elsewhere.
        shown: ids of the documents that may be cited.
        wanted: the shape that the graph of claims is to have; the answer's own if not given.
        wanted_skew: between -1 and 1; the answer's own if not given.
        pattern: what a citation looks like, as of `structure.citations`.

    Raises:
        DataError: the wanted shape or skew is none; the rendered answer does not change with its
            words.
        EmptyLessonError: nothing is learned of it.
        UsageError: networkx is not installed, which the answer's own shape needs.
    """
    rendered = render(answer)
    graph = parse_claims(answer)
    slots = _Slots([], [], [], [])
    written = _Written(answer, rendered.tokens, cache(lambda text: tuple(render(text).tokens)))
    _add_relations(slots, written, graph)
    for number, citation in enumerate(citations(answer, pattern) if shown else ()):
        words = [*dict.fromkeys(map(str, shown))]
        for position, tokens in written.steps(citation.span, words):
            options = [(value, 1.0, [(position, token)]) for value, token in enumerate(tokens)]
            slots.add((choices.CITATION, number, 0), options)
    shape = wanted or (betti(graph) if graph.claims else Betti(0, 0, 0))
    leaning = skew(graph) if wanted_skew is None else wanted_skew
    least = min(1, len(graph.claims))
    if shape.claims < least or min(shape.b0, shape.b1) < 0 or not -1.0 <= leaning <= 1.0:
        raise DataError(f"No graph has the shape {shape} and the skew {leaning}.")
    made = datum(rendered, weight)
    return replace(
        made,
        loss_fn_inputs={
            **made.loss_fn_inputs,
            **slots.inputs(),
            "shape": TensorData.ints([len(graph.claims), shape.claims, shape.b0, shape.b1]),
            "skew": TensorData(np.asarray(leaning, dtype=np.float32)),
        },
    )


def structured_examples(
    examples: Iterable[ChatExample], renderer: Renderer, *, max_tokens: int = 0
) -> tuple[list[Datum], int]:
    """Examples with all that structured losses take, and how many were left out for being longer
    than `max_tokens` or for having no answer. Documents that may be cited are those that the
    metadata's field `shown` names; each answer token weighs 1.

    Raises:
        DataError, UsageError: see `structured`.
    """
    made: list[Datum] = []
    left_out = 0
    for example in examples:
        answer = example.answer
        rendered = None if answer is None else renderer.supervised(example.messages)
        if answer is None or rendered is None or 0 < max_tokens < len(rendered.tokens):
            left_out += 1
            continue

        def render(text: str, prompt: Conversation = example.prompt) -> RenderedExample:
            return renderer.supervised((*prompt, assistant(text)))

        weight = float(np.count_nonzero(rendered.weights))
        shown = [str(each) for each in example.metadata.get("shown") or ()]
        made.append(structured(answer.text, render, shown=shown, weight=weight))
    return made, left_out


def _add_relations(slots: _Slots, written: _Written, graph: ClaimGraph) -> None:
    claims = {claim.id: number for number, claim in enumerate(graph.claims)}
    for number, relation in enumerate(graph.relations):
        source = claims[relation.source]
        for kind, span, own, words in (
            (choices.LABEL, relation.label_span, relation.label, LABELS),
            (choices.TARGET, relation.target_span, relation.target, tuple(claims)),
        ):
            options = written.options(span, words, words.index(own))
            slots.add((kind, number, source), options)


@dataclass(frozen=True, slots=True)
class _Written:
    """An answer with its tokens, and what renders others."""

    answer: str
    tokens: Sequence[int]
    render: Callable[[str], tuple[int, ...]]

    def options(
        self, span: tuple[int, int], words: Sequence[str], own: int
    ) -> list[tuple[int, float, Path]]:
        """Value, share and path of each word at a place where `words[own]` stands."""
        if len(words) == 1:
            return [(own, 1.0, [])]
        start, end, others = self._apart(span, [w for n, w in enumerate(words) if n != own])
        values = [number for number in range(len(words)) if number != own]
        left = {own: tuple(self.tokens[start : end + 1]), **dict(zip(values, others, strict=True))}
        found: list[tuple[int, float, Path]] = []
        path: Path = []
        for depth, token in enumerate(left[own]):
            aside: dict[int, list[int]] = {}
            for value, tokens in left.items():
                if depth >= len(tokens) or tokens[depth] != token:
                    aside.setdefault(tokens[depth] if depth < len(tokens) else -1, []).append(value)
            position = start + depth - 1
            for other, members in aside.items():
                found += [
                    (value, 1.0 / len(members), [*path, (position, other)])
                    for value in members
                    if other >= 0
                ]
                for value in members:
                    del left[value]
            path.append((position, token))
            if len(left) == 1:
                break
        found += [(value, 1.0 / len(left), list(path)) for value in left]
        return sorted(found, key=lambda option: option[0])

    def steps(self, span: tuple[int, int], words: Sequence[str]) -> list[tuple[int, list[int]]]:
        """For each token of what stands at a place: its position, and every token that goes on
        with one of the words; up to where none does."""
        start, end, others = self._apart(span, [*words, *_PROBES])
        own = tuple(self.tokens[start:end])
        known = others[: len(words)]
        found = []
        for depth in range(len(own)):
            following = {
                tokens[depth]
                for tokens in known
                if depth < len(tokens) and tokens[:depth] == own[:depth]
            }
            if not following:
                break
            found.append((start + depth - 1, sorted(following)))
        return found

    def _apart(
        self, span: tuple[int, int], words: Sequence[str]
    ) -> tuple[int, int, list[tuple[int, ...]]]:
        """Where the tokens of the answer part from those with other words (from, to), and the
        tokens that these have there, with the one that follows."""
        before, after = self.answer[: span[0]], self.answer[span[1] :]
        variants = [self.render(before + word + after) for word in words]
        own = tuple(self.tokens)
        alike = [(tokens, _common(own, tokens)) for tokens in variants if tokens != own]
        if not alike:
            raise DataError(f"Nothing that stands for {self._at(span)!r} changes a token.")
        start = min(prefix for _, prefix in alike)
        if start == 0:
            raise DataError("An answer's first token has nothing before it to be chosen after.")
        same = min(
            _common(own[::-1], tokens[::-1], len(own) - prefix, len(tokens) - prefix)
            for tokens, prefix in alike
        )
        return start, len(own) - same, [t[start : len(t) - same + 1] for t in variants]

    def _at(self, span: tuple[int, int]) -> str:
        return self.answer[span[0] : span[1]]


def _common(left: Sequence[int], right: Sequence[int], *most: int) -> int:
    """How many tokens are the same at the beginning, and at most so many."""
    size = min(len(left), len(right), *most)
    for place in range(size):
        if left[place] != right[place]:
            return place
    return size


def _table(rows: Sequence[tuple[int, ...]], columns: int) -> TensorData:
    return TensorData(np.asarray(rows, dtype=np.int64).reshape(len(rows), columns))
