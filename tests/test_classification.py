"""Labels in free text, and scikit-learn's measures with answers that give no label."""

from __future__ import annotations

import asyncio
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shammah.errors import InputError, UsageError
from shammah.evaluation.classification import (
    UNPARSED,
    ClassificationCount,
    LabelReader,
    classify,
)
from shammah.evaluation.registry import scorer
from shammah.evaluation.scorer import Aggregating

SCIFACT = ("SUPPORT", "CONTRADICT", "NOT_ENOUGH_INFO")


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("SUPPORT", "SUPPORT"),
        ("  **support**.\n", "SUPPORT"),
        ("The sentences SUPPORT the claim.", "SUPPORT"),
        ("Not enough info", "NOT_ENOUGH_INFO"),
        ("I would say not-enough-info here.", "NOT_ENOUGH_INFO"),
        ("There is not enough\ninformation", None),
        ("It does not support the claim.", None),
        ("They don't SUPPORT it, they CONTRADICT it.", "CONTRADICT"),
        ("Either SUPPORT or CONTRADICT.", None),
        ("Some support it, but the answer is: CONTRADICT", "CONTRADICT"),
        ("Answer: SUPPORT. Wait. Answer: **CONTRADICT**", "CONTRADICT"),
        ("The answer is not SUPPORT.", None),
        ("SUPPORTED", None),
        ("unsupport", None),
        ("", None),
        ("yes, it is proven", "SUPPORT"),
        ("refutes", "CONTRADICT"),
    ],
)
def test_the_label_of_an_answer(answer: str, label: str | None) -> None:
    reader = LabelReader(SCIFACT, {"proven": "SUPPORT", "refutes": "CONTRADICT"})
    assert reader.read(answer) == label


def test_labels_can_be_anything() -> None:
    assert LabelReader(("-1", "0", "1")).read("I give it -1.") == "-1"
    assert LabelReader(("-1", "0", "1")).read("1") == "1"
    assert LabelReader(("C", "C++")).read("Take C++ for it.") == "C++"
    assert LabelReader(("a", "A"), ignore_case=False).read("A.") == "A"
    assert LabelReader(("ja", "nein")).read("NEİN") is None
    for labels, aliases, said in (
        ((), {}, "no labels"),
        (("a", "A"), {}, "there twice"),
        (("a", " "), {}, "cannot be a label"),
        ((UNPARSED,), {}, "cannot be a label"),
        (("a", "b"), {"x": "c"}, "is for 'c'"),
        (("a", "b"), {"B": "a"}, "another label too"),
    ):
        with pytest.raises(UsageError, match=said):
            LabelReader(labels, aliases)


@given(st.text(), st.sampled_from(SCIFACT))
def test_any_text_is_read(text: str, label: str) -> None:
    reader = LabelReader(SCIFACT)
    assert reader.read(text) in (*SCIFACT, None)
    assert reader.read(f"verdict: {label}") == label


def test_measures_worked_by_hand() -> None:
    pairs = [("a", "a"), ("a", "a"), ("b", "a"), (None, "a"), ("b", "b"), ("a", "b"), (None, "b")]
    found = classify(pairs, ("a", "b", "c"))
    assert found.examples == 7 and found.unparsed == 2
    assert found.accuracy == pytest.approx(3 / 7)
    a, b, c = (found.per_class[label] for label in "abc")
    assert (a.precision, a.recall, a.support) == (pytest.approx(2 / 3), 2 / 4, 4)
    assert (b.precision, b.recall, b.support) == (1 / 2, pytest.approx(1 / 3), 3)
    assert (c.precision, c.recall, c.f1, c.support) == (0, 0, 0, 0)
    # Five answers gave a label; c, which nothing is, does not pull the mean down.
    assert found.micro.precision == pytest.approx(3 / 5)
    assert found.micro.recall == pytest.approx(3 / 7)
    assert found.macro.f1 == pytest.approx((a.f1 + b.f1) / 2)
    assert found.confusion == ((2, 1, 0, 1), (1, 1, 0, 1), (0, 0, 0, 0))
    assert json.loads(json.dumps(found.to_dict()))["confusion"]["labels"][-1] == UNPARSED


def test_they_are_scikit_learns_on_the_plain_lists() -> None:
    from sklearn import metrics

    source = random.Random(3)
    labels = ["x", "y", "z"]
    gold = [source.choice(labels) for _ in range(500)]
    given_ = [source.choice([one, one, *labels]) for one in gold]
    found = classify(zip(given_, gold, strict=True), labels)
    report = metrics.classification_report(gold, given_, output_dict=True)
    assert found.accuracy == pytest.approx(report["accuracy"]) == pytest.approx(found.micro.f1)
    assert found.macro.f1 == pytest.approx(report["macro avg"]["f1-score"])
    for label in labels:
        assert found.per_class[label].precision == pytest.approx(report[label]["precision"])
        assert found.per_class[label].recall == pytest.approx(report[label]["recall"])
    assert [list(row[:3]) for row in found.confusion] == metrics.confusion_matrix(
        gold, given_
    ).tolist()
    # What is unparsed is as wrong as any wrong label.
    wrong = [None if one != right else one for one, right in zip(given_, gold, strict=True)]
    unparsed = classify(zip(wrong, gold, strict=True), labels)
    assert unparsed.accuracy == found.accuracy
    assert unparsed.micro.recall == pytest.approx(found.micro.recall)
    assert [one.recall for one in unparsed.per_class.values()] == pytest.approx(
        [one.recall for one in found.per_class.values()]
    )


def test_what_is_not_right_is_refused() -> None:
    with pytest.raises(InputError, match="no answer"):
        classify([], ("a",))
    with pytest.raises(InputError, match="'q' is no label"):
        classify([("q", "a")], ("a",))
    with pytest.raises(UsageError, match="no labels"):
        ClassificationCount(())


def test_as_a_scorer_with_the_measures_of_all() -> None:
    spec = {"name": "label", "labels": list(SCIFACT), "aliases": {"yes": "SUPPORT"}}
    made = scorer({**spec, "field": "label"})
    assert isinstance(made, Aggregating)
    tally = made.tally()
    assert tally.figures() == {}
    values = []
    for output, label in (("Yes.", "SUPPORT"), ("?", "SUPPORT"), ("support", "CONTRADICT")):
        score = asyncio.run(made.score(output, "", {"label": label}))
        values.append(score.value)
        tally.add(json.loads(json.dumps(score.detail)))
    assert values == [1.0, 0.0, 0.0]
    figures = tally.figures()
    assert figures["accuracy"] == pytest.approx(1 / 3) and figures["unparsed"] == 1
    assert figures["confusion"]["rows"][0] == [1, 0, 0, 1]
    from_target = scorer(spec)
    assert asyncio.run(from_target.score("SUPPORT", "label: support", {})).value == 1.0
    for each, target in ((made, "SUPPORT"), (from_target, "maybe")):
        with pytest.raises(InputError):
            asyncio.run(each.score("SUPPORT", target, {}))
