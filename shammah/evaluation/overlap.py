"""Scorers that count words in common: token F1 as SQuAD defines it, BLEU by sacrebleu, ROUGE by
rouge-score.

Knows no model. The libraries are the extra `eval`.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from shammah.evaluation.scorer import Score, Tally, wanted
from shammah.libraries import library

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class TokenF1:
    """F1 over the words that output and target share, each as often as it stands there.

    Words are normalised as SQuAD's evaluation does (Rajpurkar et al. 2016, arXiv 1606.05250): lower
    case, without punctuation and without a, an, the. Where one side has no word left, the score is
    1 if neither has and else 0.
    """

    name = "token_f1"

    async def score(self, output: str, target: str, metadata: Mapping[str, Any]) -> Score:
        found, gold = squad_words(output), squad_words(wanted(target, self.name))
        if not found or not gold:
            return Score(float(found == gold))
        shared = (Counter(found) & Counter(gold)).total()
        precision, recall = shared / len(found), shared / len(gold)
        f1 = 2 * precision * recall / (precision + recall) if shared else 0.0
        return Score(f1, {"precision": precision, "recall": recall})


def squad_words(text: str) -> list[str]:
    """The words of a text as SQuAD compares them."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


class Bleu:
    """Sentence BLEU, and corpus BLEU of a whole data set, both on a scale from 0 to 1.

    sacrebleu computes it (Post 2018, arXiv 1804.08771); `signature` beside the latter says how. Of
    a sentence, orders of n-grams that it is too short for do not count, as in `sacrebleu
    --sentence-level`.

    Args:
        tokenize: sacrebleu's tokenizers: 13a, intl, zh, char, none and further.
        lowercase: whether upper and lower case are one.
        smooth_method: what becomes of orders without a match.

    Raises:
        UsageError: sacrebleu is not installed.
    """

    name = "bleu"

    def __init__(
        self,
        *,
        tokenize: Literal["13a", "intl", "zh", "char", "none"] = "13a",
        lowercase: bool = False,
        smooth_method: Literal["exp", "floor", "add-k", "none"] = "exp",
    ) -> None:
        made = library("sacrebleu.metrics", self.name).BLEU
        options = {"tokenize": tokenize, "lowercase": lowercase, "smooth_method": smooth_method}
        self._sentence = made(**options, effective_order=True)
        self._corpus = made(**options)

    async def score(self, output: str, target: str, metadata: Mapping[str, Any]) -> Score:
        found = self._sentence.sentence_score(output, [wanted(target, self.name)])
        counts = {
            "counts": list(found.counts),
            "totals": list(found.totals),
            "output_words": found.sys_len,
            "target_words": found.ref_len,
        }
        return Score(found.score / 100, counts)

    def tally(self) -> Tally:
        """`bleu` of the corpus, its parts, and sacrebleu's signature."""
        return _CorpusBleu(self._corpus)


class _CorpusBleu:
    """Corpus BLEU is computed from the sums of what was counted in the sentences."""

    def __init__(self, corpus: Any) -> None:
        self._corpus = corpus
        self._counts = [0] * corpus.max_ngram_order
        self._totals = [0] * corpus.max_ngram_order
        self._lengths = [0, 0]

    def add(self, detail: Mapping[str, Any]) -> None:
        self._counts = _added(self._counts, detail["counts"])
        self._totals = _added(self._totals, detail["totals"])
        self._lengths = _added(self._lengths, (detail["output_words"], detail["target_words"]))

    def figures(self) -> dict[str, Any]:
        if not self._lengths[1]:
            return {}
        found = self._corpus.compute_bleu(
            self._counts,
            self._totals,
            *self._lengths,
            smooth_method=self._corpus.smooth_method,
            smooth_value=self._corpus.smooth_value,
            effective_order=False,
            max_ngram_order=self._corpus.max_ngram_order,
        )
        self._corpus.num_refs = 1  # the signature tells it
        return {
            "bleu": found.score / 100,
            "precisions": [each / 100 for each in found.precisions],
            "brevity_penalty": found.bp,
            "signature": str(self._corpus.get_signature()),
        }


class Rouge:
    """ROUGE (Lin 2004) by rouge-score: overlap of words, pairs of words, or the longest common
    subsequence.

    rouge-score sees letters a to z and digits only: texts in other scripts have no words for it.

    Args:
        kind: `rouge1`, `rouge2` or `rougeL`, which is also the scorer's name.
        stemmer: whether words are compared by their stems (Porter).
        measure: which of the three the value is; the detail has all.

    Raises:
        UsageError: rouge-score is not installed.
    """

    def __init__(
        self,
        kind: Literal["rouge1", "rouge2", "rougeL"],
        *,
        stemmer: bool = False,
        measure: Literal["f1", "precision", "recall"] = "f1",
    ) -> None:
        self.name = kind
        self._measure = measure
        made = library("rouge_score.rouge_scorer", kind).RougeScorer
        self._scorer = made([kind], use_stemmer=stemmer)

    async def score(self, output: str, target: str, metadata: Mapping[str, Any]) -> Score:
        found = self._scorer.score(wanted(target, self.name), output)[self.name]
        parts = {"precision": found.precision, "recall": found.recall, "f1": found.fmeasure}
        return Score(parts[self._measure], parts)


def _added(left: Sequence[int], right: Sequence[int]) -> list[int]:
    return [one + other for one, other in zip(left, right, strict=True)]
