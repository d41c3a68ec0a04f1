"""Answers as labels: which label an answer gives, and how often it is the right one.

An answer that gives no label, or several, is a miss of the class it belongs to; it is never left
out. The measures are scikit-learn's (extra `eval`). Knows no model and no data set.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shammah.errors import InputError, UsageError
from shammah.evaluation.scorer import Score, Tally, known, wanted
from shammah.libraries import library

UNPARSED = "(unparsed)"
"""What stands in a confusion matrix for an answer without a label."""
_MARKER = r"\b(?:label|answer|verdict|class|conclusion|prediction)\b\s*(?:is|[:=])\W*"
_NEGATED = (
    r"(?i:(?<!\bnot )(?<!n't )(?<!n’t )(?<!\bnever )(?<!\bneither )(?<!\bnor )(?<!\bcannot ))"
)
_JOINT = re.compile(r"(?<=\w)[\s_-]+(?=\w)")


class LabelReader:
    """Finds the label in an answer in free text.

    An answer that is a label, but for blanks and punctuation around it, gives that label. Else what
    follows the last of words such as `answer:` or `the label is` counts; else the one label that
    the text names. A text that names several gives none, and a label straight behind a "not" is not
    named. Blanks, `_` and `-` within a label are one, and it stands by itself, not within a word.

    Args:
        labels: at least one.
        aliases: other words for labels: word -> label.
        ignore_case: whether upper and lower case are one.

    Raises:
        UsageError: there is no label, two are alike, or an alias is for none of them.
    """

    def __init__(
        self,
        labels: Sequence[str],
        aliases: Mapping[str, str] | None = None,
        *,
        ignore_case: bool = True,
    ) -> None:
        self.labels = tuple(labels)
        self._ignore_case = ignore_case
        self._label_of: dict[str, str] = {}
        if not labels:
            raise UsageError("There are no labels to look for.")
        for label in labels:
            if not self._key(label) or label == UNPARSED:
                raise UsageError(f"{label!r} cannot be a label.")
            if self._key(label) in self._label_of:
                raise UsageError(f"The label {label!r} is there twice.")
            self._label_of[self._key(label)] = label
        for alias, label in (aliases or {}).items():
            if label not in labels:
                raise UsageError(
                    f"The alias {alias!r} is for {label!r}.",
                    hint=f"The labels are {', '.join(labels)}.",
                )
            if not self._key(alias) or self._label_of.get(self._key(alias), label) != label:
                raise UsageError(f"The alias {alias!r} is empty, or another label too.")
            self._label_of[self._key(alias)] = label
        # A longer name first: NOT SUPPORTED is no case of SUPPORTED.
        names = sorted(self._label_of, key=len, reverse=True)
        ways = "|".join(r"[\s_-]+".join(map(re.escape, name.split(" "))) for name in names)
        flags = re.IGNORECASE if ignore_case else 0
        self._named = re.compile(rf"(?<!\w){_NEGATED}({ways})(?!\w)", flags)
        self._marked = re.compile(rf"(?i:{_MARKER})({ways})(?!\w)", flags)

    def read(self, answer: str) -> str | None:
        """The label that an answer gives, or None."""
        whole = self._label_of.get(self._key(answer.strip(" \t\r\n.,;:!?*_`'\"()[]{}")))
        if whole is not None:
            return whole
        marked = self._marked.findall(answer)
        if marked:
            return self._label_of.get(self._key(marked[-1]))
        # Blanks are made one, so that "not  SUPPORT" is seen.
        named = self._named.findall(re.sub(r"\s+", " ", answer))
        found = {self._label_of.get(self._key(each)) for each in named}
        return found.pop() if len(found) == 1 else None

    def _key(self, text: str) -> str:
        words = _JOINT.sub(" ", text.strip())
        return words.casefold() if self._ignore_case else words


@dataclass(frozen=True, slots=True)
class ClassMeasures:
    """Of one class: `support` is how many examples belong to it."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class Classification:
    """How n answers were classified.

    `micro` counts every decision alike, `macro` every class alike; classes that neither occur nor
    were given are not in them. A ratio without anything to count is 0. `confusion` is [L, L + 1]:
    rows are what was right, columns what was given, in the order of `labels` and then unparsed.
    """

    labels: tuple[str, ...]
    examples: int
    unparsed: int
    accuracy: float
    micro: ClassMeasures
    macro: ClassMeasures
    per_class: Mapping[str, ClassMeasures]
    confusion: tuple[tuple[int, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON."""

        def measures(each: ClassMeasures) -> dict[str, float]:
            return {"precision": each.precision, "recall": each.recall, "f1": each.f1}

        return {
            "examples": self.examples,
            "unparsed": self.unparsed,
            "accuracy": self.accuracy,
            "micro": measures(self.micro),
            "macro": measures(self.macro),
            "per_class": {
                label: {**measures(each), "support": each.support}
                for label, each in self.per_class.items()
            },
            "confusion": {
                "labels": [*self.labels, UNPARSED],
                "rows": [list(row) for row in self.confusion],
            },
        }


class ClassificationCount:
    """Counts answers and measures them; memory does not grow with their number.

    Args:
        labels: all that can be right.

    Raises:
        UsageError: there is none, or scikit-learn is not installed.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        if not labels:
            raise UsageError("There are no labels to count.")
        self._labels = tuple(labels)
        self._metrics = library("sklearn.metrics", "classification")
        self._pairs: Counter[tuple[str, str]] = Counter()

    def add(self, predicted: str | None, expected: str) -> None:
        """Count an answer; None is one without a label.

        Raises:
            InputError: one is none of the labels.
        """
        for label in (predicted, expected):
            if label is not None and label not in self._labels:
                raise InputError(
                    f"{label!r} is no label.", hint=f"The labels are {', '.join(self._labels)}."
                )
        self._pairs[expected, UNPARSED if predicted is None else predicted] += 1

    @property
    def examples(self) -> int:
        return self._pairs.total()

    def measures(self) -> Classification:
        """What was counted so far.

        Raises:
            InputError: nothing was.
        """
        if not self._pairs:
            raise InputError("There is no answer to measure.")
        pairs = list(self._pairs)
        expected, predicted = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        weights = list(self._pairs.values())
        seen = [label for label in self._labels if label in {*expected, *predicted}]

        def averaged(labels: Sequence[str], average: str | None) -> Any:
            return self._metrics.precision_recall_fscore_support(
                expected,
                predicted,
                labels=list(labels),
                average=average,
                sample_weight=weights,
                zero_division=0.0,
            )

        rows = zip(*averaged(self._labels, None), strict=True)
        confusion = self._metrics.confusion_matrix(
            expected, predicted, labels=[*self._labels, UNPARSED], sample_weight=weights
        )
        whole = {}
        for average in ("micro", "macro"):
            precision, recall, f1, _ = averaged(seen, average)
            whole[average] = ClassMeasures(
                float(precision), float(recall), float(f1), self.examples
            )
        return Classification(
            labels=self._labels,
            examples=self.examples,
            unparsed=sum(n for pair, n in self._pairs.items() if pair[1] == UNPARSED),
            accuracy=float(
                self._metrics.accuracy_score(expected, predicted, sample_weight=weights)
            ),
            micro=whole["micro"],
            macro=whole["macro"],
            per_class={
                label: ClassMeasures(float(p), float(r), float(f), int(n))
                for label, (p, r, f, n) in zip(self._labels, rows, strict=True)
            },
            # What is right is never unparsed.
            confusion=tuple(tuple(map(int, row)) for row in confusion[:-1]),
        )


def classify(pairs: Iterable[tuple[str | None, str]], labels: Sequence[str]) -> Classification:
    """The measures of (given, right) pairs; None is an answer without a label.

    Raises:
        InputError: there is no pair, or a label is none of those.
        UsageError: there are no labels, or scikit-learn is not installed.
    """
    count = ClassificationCount(labels)
    for predicted, expected in pairs:
        count.add(predicted, expected)
    return count.measures()


class LabelMatch:
    """A scorer: whether an answer gives the right label. Its figures of a whole data set are the
    measures of classification.

    Args:
        labels: all that can be right.
        aliases: other words for labels: word -> label.
        field: the metadata's field with the right label; None reads it from the target.
        ignore_case: whether upper and lower case are one.

    Raises:
        UsageError: the labels or aliases are not right, or scikit-learn is not installed.
    """

    name = "label"

    def __init__(
        self,
        labels: Sequence[str],
        *,
        aliases: Mapping[str, str] | None = None,
        field: str | None = None,
        ignore_case: bool = True,
    ) -> None:
        self._reader = LabelReader(labels, aliases, ignore_case=ignore_case)
        self._field = field
        ClassificationCount(labels)  # says now that the library is missing

    async def score(self, output: str, target: str, metadata: Mapping[str, Any]) -> Score:
        if self._field is None:
            given = wanted(target, self.name)
        else:
            given = str(known(metadata, self._field, self.name))
        expected = self._reader.read(given)
        if expected is None:
            raise InputError(
                f"{given[:80]!r} gives no label to compare with.",
                hint=f"The labels are {', '.join(self._reader.labels)}.",
            )
        predicted = self._reader.read(output)
        return Score(float(predicted == expected), {"predicted": predicted, "expected": expected})

    def tally(self) -> Tally:
        """`Classification.to_dict`."""
        return _Labels(self._reader.labels)


class _Labels:
    def __init__(self, labels: Sequence[str]) -> None:
        self._count = ClassificationCount(labels)

    def add(self, detail: Mapping[str, Any]) -> None:
        self._count.add(detail["predicted"], detail["expected"])

    def figures(self) -> dict[str, Any]:
        return self._count.measures().to_dict() if self._count.examples else {}
