"""Formatters: on the data sets themselves where they are here, and on rows of each kind."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shammah.datasets import ChatExample, Examples, open_dataset
from shammah.datasets.formatters.feedback import Feedback as FeedbackFormat
from shammah.datasets.formatters.gsm8k import Gsm8k, final_number
from shammah.errors import DatasetError, InputError, ShammahError, UsageError
from shammah.feedback import records as feedback_records
from shammah.feedback.records import Rating
from shammah.learning.lessons import lesson_from
from shammah.messages import assistant, system, user
from shammah.ports.dataset_store import Origin, Row
from shammah.structure.citations import cited_ids
from shammah.structure.claims import parse_claims

SharedData = Callable[[str], Path]


def examples(tmp_path: Path, *rows: Mapping[str, Any], **options: Any) -> Examples:
    """The examples of rows written as JSONL."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_dataset(path, on_bad=options.pop("on_bad", "raise")).examples(**options)


def problem(tmp_path: Path, row: Mapping[str, Any], **options: Any) -> str:
    """What is said about a row that does not fit."""
    with pytest.raises(ShammahError) as caught:
        list(examples(tmp_path, row, **options))
    return str(caught.value)


@pytest.mark.parametrize(("split", "count"), [("train", 7473), ("test", 1319)])
def test_gsm8k(shared_data: SharedData, split: str, count: int) -> None:
    made = open_dataset(shared_data("gsm8k"), split=split).examples()
    kept = list(made)
    stripped = list(open_dataset(shared_data("gsm8k"), split=split).examples(
        "gsm8k", calculator="strip"
    ))  # fmt: skip
    assert made.format == "gsm8k" and len(kept) == len(stripped) == count
    for one, other in zip(kept, stripped, strict=True):
        assert one.answer is not None and other.answer is not None
        last = one.answer.content.rpartition("\n#### ")[2]
        assert last.replace(",", "") == one.metadata["final"]
        float(one.metadata["final"])
        assert "<<" not in other.answer.content and ">>" not in other.answer.content
        assert re.sub("<<.*?>>", "", one.answer.content) == other.answer.content
        assert one.prompt == other.prompt and [m.role for m in one.prompt] == ["user"]
    assert any("<<" in one.messages[-1].content for one in kept)


@pytest.mark.parametrize(
    ("answer", "final"),
    [
        ("so\n#### 1,234", "1234"), ("#### -3.50", "-3.50"), ("x #### $12.", "12"),
        ("#### .5 \n", ".5"), ("#### a lot", None), ("12", None), ("#### 1\nand more", None),
    ],
)  # fmt: skip
def test_final_numbers(answer: str, final: str | None) -> None:
    assert final_number(answer) == final


def test_fever(shared_data: SharedData) -> None:
    made = open_dataset(shared_data("fever/paper_dev.jsonl")).examples()
    rows = list(made)
    assert made.format == "fever"
    assert Counter(row.metadata["label"] for row in rows) == {
        "SUPPORTS": 3333, "REFUTES": 3333, "NOT ENOUGH INFO": 3333,
    }  # fmt: skip
    for row in rows:
        assert row.answer == assistant(row.metadata["label"])
        assert bool(row.metadata["evidence"]) == (row.metadata["label"] != "NOT ENOUGH INFO")
    third = rows[4]
    assert third.metadata["id"] == 111897 and third.place.endswith("paper_dev.jsonl:5")
    assert third.metadata["evidence"][2] == [["Telemundo", 4], ["Hispanic_and_Latino_Americans", 0]]
    assert "Claim: Telemundo is a English-language television network." in third.prompt[0].content


def test_fever_without_a_label_is_a_prompt(tmp_path: Path) -> None:
    (made,) = examples(tmp_path, {"id": 1, "claim": "It rains."}, format="fever")
    assert made.answer is None and made.prompt == made.messages


def corpus_of(folder: Path) -> dict[int, Any]:
    lines = (folder / "corpus.jsonl").read_text().splitlines()
    return {row["doc_id"]: row for row in map(json.loads, lines)}


@pytest.mark.parametrize(("split", "count"), [("train", 809), ("dev", 300)])
@pytest.mark.parametrize("show", ["evidence", "abstract"])
def test_scifact(shared_data: SharedData, split: str, count: int, show: str) -> None:
    folder = shared_data("scifact")
    corpus = corpus_of(folder)
    claims = list(open_dataset(folder, split=split))
    made = list(open_dataset(folder, split=split).examples("scifact", show=show))
    assert len(made) == len(claims) == count
    several = 0
    for claim, example in zip(claims, made, strict=True):
        about, shown = example.metadata, example.metadata["shown"]
        assert (about["id"], about["cited"]) == (claim["id"], claim["cited_doc_ids"])
        labels = {each["label"] for sets in claim["evidence"].values() for each in sets}
        assert about["label"] == (labels.pop() if labels else "NOT_ENOUGH_INFO")
        assert example.answer == assistant(about["label"])
        sets = {int(key): [each["sentences"] for each in value]
                for key, value in claim["evidence"].items()}  # fmt: skip
        assert about["evidence"] == sets
        several += any(len(each) > 1 for each in sets.values())
        if show == "abstract":
            assert list(shown) == list(dict.fromkeys(claim["cited_doc_ids"]))
        elif sets:
            assert shown == {
                key: sorted({n for each in v for n in each}) for key, v in sets.items()
            }
        else:
            assert list(shown) == list(dict.fromkeys(claim["cited_doc_ids"]))
            assert all(len(each) <= 2 for each in shown.values())
        text = example.prompt[0].content
        assert f"Claim: {claim['claim']}" in text
        assert text.count("\nDocument ") == len(shown)
        for document, sentences in shown.items():
            assert corpus[document]["title"].strip() in text
            for number in sentences:
                assert f"\n[{number}] {corpus[document]['abstract'][number].strip()}" in text
        assert len(re.findall(r"^\[\d+\] ", text, re.M)) == sum(map(len, shown.values()))
    assert several > 20


def test_scifact_answers_with_the_claims_behind_the_label(
    shared_data: SharedData, tmp_path: Path
) -> None:
    folder = shared_data("scifact")
    plain = list(open_dataset(folder, split="dev").examples("scifact"))
    made = list(open_dataset(folder, split="dev").examples("scifact", answer="claims"))
    verdicts = Counter[str]()
    for one, other in zip(plain, made, strict=True):
        assert one.answer is not None and other.answer is not None
        assert one.metadata == other.metadata
        label, _, rest = other.answer.text.partition("\n")
        graph = parse_claims(other.answer.text)
        assert label == one.answer.text == other.metadata["label"] and rest
        assert graph.problems == ()
        evidence = list(other.metadata["evidence"])
        claim, *behind = graph.claims
        assert (claim.id, f"Claim: {claim.text}") in [
            ("c1", " ".join(line.split())) for line in other.prompt[0].text.splitlines()
        ]
        assert [int(each) for each in cited_ids(other.answer.text)] == evidence
        assert len(behind) == len(graph.relations) == len(evidence)
        for source, relation in zip(behind, graph.relations, strict=True):
            assert (relation.source, relation.target) == (source.id, "c1")
        verdicts.update((label, each.label) for each in graph.relations)
    assert set(verdicts) == {("SUPPORT", "supports"), ("CONTRADICT", "refutes")}
    with pytest.raises(UsageError, match="answer is 'graph'"):
        examples(tmp_path, {}, format="scifact", answer="graph")


def test_scifact_test_claims_are_prompts(shared_data: SharedData) -> None:
    made = list(open_dataset(shared_data("scifact"), split="test").examples("scifact"))
    assert len(made) == 300
    assert all(row.answer is None and row.metadata["label"] is None for row in made)


def test_scifact_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text(
        '{"doc_id": 1, "title": "T", "abstract": ["a cat", "a dog runs", "the dog runs far"]}\n'
        '{"title": "U", "doc_id": 2, "abstract": ["u"]}\n'
    )

    def claim(evidence: dict[str, Any], cited: list[int]) -> dict[str, Any]:
        return {"id": 5, "claim": "Dogs: the dog runs", "evidence": evidence,
                "cited_doc_ids": cited}  # fmt: skip

    def rationale(label: str, *sentences: int) -> list[dict[str, Any]]:
        return [{"sentences": sentences, "label": label}]

    other = {"corpus": str(tmp_path / "other.jsonl")}
    (made,) = examples(tmp_path, claim({}, [1]), **other, format="scifact")
    assert made.metadata["shown"] == {1: [1, 2]}
    (made,) = examples(tmp_path, claim({"2": rationale("SUPPORT", 0)}, [1, 2]),
                       **other, format="scifact")  # fmt: skip
    assert made.metadata["shown"] == {2: [0]}
    for row, words in (
        (claim({}, [7]), "document 7 is not in"),
        (claim({"1": rationale("SUPPORT", 9)}, [1]), "document 1 has no sentence 9"),
        (claim({"1": rationale("SUPPORT", 0), "2": rationale("CONTRADICT", 0)}, [1]), "both"),
        (claim({"1": rationale("MAYBE", 0)}, [1]), "evidence.1.0.label is wrong"),
        ({"id": 5, "evidence": {}}, "the column claim is missing"),
    ):
        said = problem(tmp_path, row, **other, format="scifact")
        assert words in said and "rows.jsonl:1: " in said
    with pytest.raises(DatasetError, match=r"corpus .*corpus\.jsonl cannot be read"):
        list(examples(tmp_path, claim({}, [1])))
    (tmp_path / "other.jsonl").write_text('{"doc_id": 1}\n{"doc_id"\n')
    assert "other.jsonl:2: " in problem(tmp_path, claim({}, [1]), **other, format="scifact")


def test_prompt_and_completion(tmp_path: Path) -> None:
    row = {"prompt": "p", "completion": "c", "id": 3}
    (made,) = examples(tmp_path, row)
    assert made == ChatExample(
        (user("p"), assistant("c")), metadata={"id": 3}, place=f"{tmp_path}/rows.jsonl:1"
    )
    named = {"prompt": "q", "completion": "a", "system": "s"}
    (made,) = examples(
        tmp_path, {"q": "1", "a": "2", "s": "3"}, format="prompt_completion", **named
    )
    assert made.messages == (system("3"), user("1"), assistant("2"))
    assert made.metadata == {}
    said = problem(tmp_path, {"prompt": 1, "completion": "c"})
    assert "rows.jsonl:1: the column prompt holds no text" in said
    assert "column s is missing" in problem(tmp_path, row, format="prompt_completion", **named)


def test_a_prompt_alone(tmp_path: Path) -> None:
    made = examples(tmp_path, {"prompt": "p", "names": "n"})
    (one,) = made
    assert made.format == "prompt"
    assert one.messages == one.prompt == (user("p"),) and one.answer is None
    assert one.metadata == {"names": "n"}
    (one,) = examples(tmp_path, {"q": "1", "s": "3"}, format="prompt", prompt="q", system="s")
    assert one.messages == (system("3"), user("1"))
    # A row of another format is not taken for one whose answer is missing.
    assert examples(tmp_path, {"prompt": "p", "completion": "c"}).format == "prompt_completion"
    pair = {"prompt": "p", "chosen": "c", "rejected": "r"}
    assert examples(tmp_path, pair).format == "preference"


TALK = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "u"},
    {"role": "assistant", "content": "a"},
]


def test_chat_messages(tmp_path: Path) -> None:
    prompt = {"messages": TALK[:2], "answer": "x"}
    made, alone = examples(tmp_path, {"messages": TALK, "id": "7"}, prompt)
    assert made.messages == (system("s"), user("u"), assistant("a")) == (*made.prompt, made.answer)
    assert made.metadata == {"id": "7"} and made.rejected is None
    assert alone.answer is None and alone.prompt == made.prompt
    wrong = {"messages": [{"role": "poet", "content": ""}]}
    assert "rows.jsonl:1: messages: message 1 has the role 'poet'" in problem(tmp_path, wrong)
    assert "no list of messages" in problem(tmp_path, {"messages": []})


def test_chosen_and_rejected(tmp_path: Path) -> None:
    said = {"role": "assistant", "content": "r"}
    rows: list[dict[str, Any]] = [
        {"prompt": "u", "chosen": "a", "rejected": "r", "score": 2},
        {"prompt": TALK[1:2], "chosen": TALK[2:], "rejected": [said]},
        {"prompt": "u", "chosen": TALK[1:], "rejected": [TALK[1], said]},
        {"chosen": TALK[1:], "rejected": [TALK[1], said]},
    ]
    made = list(examples(tmp_path, *rows))
    for example in made:
        assert example.messages == (user("u"), assistant("a"))
        assert example.rejected == (user("u"), assistant("r"))
        assert example.rejected_answer == assistant("r")
    assert [example.metadata for example in made] == [{"score": 2}, {}, {}, {}]
    for row, words in (
        ({"chosen": "a", "rejected": "r"}, "there is no prompt before chosen"),
        ({"chosen": TALK, "rejected": [TALK[1], said]}, "do not begin with the same message"),
        ({"chosen": TALK[:2], "rejected": TALK[:2]}, "chosen does not end with the assistant's"),
        ({"prompt": "u", "chosen": 3, "rejected": "r"}, "chosen holds no list of messages"),
    ):
        assert words in problem(tmp_path, row)


def test_feedback_is_an_answer_and_one_to_be_left(tmp_path: Path) -> None:
    asked = {"query": "q", "response": "bad", "weight": 10.0}
    rows: list[dict[str, Any]] = [
        {**asked, "rating": "critical", "correction": "right", "note": "n"},
        {**asked, "rating": "Medium", "correction": " "},
        {"query": "q", "response": "fine", "rating": "good"},
        {"query": "q", "response": "fine", "rating": "good", "preferred_over": "bad"},
        {"query": "q", "correction": "right"},
        {"query": "u", "messages": TALK[:2], "response": "bad", "rating": "critical",
         "correction": "right"},
    ]  # fmt: skip
    made = examples(tmp_path, *rows)
    assert made.format == "feedback"
    pair, bad, good, retried, corrected, later = made
    assert pair.messages == (user("q"), assistant("right"))
    assert pair.rejected == (user("q"), assistant("bad"))
    assert pair.metadata == {"weight": 10.0, "rating": "critical", "note": "n"}
    assert (bad.messages, bad.rejected) == ((user("q"),), None), "condemned: never a target"
    assert bad.metadata == {"response": "bad", "weight": 10.0, "rating": "Medium"}
    assert (good.answer, good.rejected) == (assistant("fine"), None)
    assert (retried.answer, retried.rejected_answer) == (assistant("fine"), assistant("bad"))
    assert (corrected.answer, corrected.rejected) == (assistant("right"), None)
    assert later.messages == (system("s"), user("u"), assistant("right"))
    assert later.rejected == (system("s"), user("u"), assistant("bad"))
    for row, words in (
        ({"query": "q", "rating": "awful"}, "the column rating is wrong"),
        ({"query": " ", "rating": "good"}, "no query"),
        ({**asked, "correction": "bad "}, "the correction is the answer that it corrects"),
        ({"query": "q", "response": "r", "rating": None}, "neither a rating nor a correction"),
        ({"query": "q", "messages": TALK[:2], "rating": "good"}, "query differs from the last"),
    ):
        assert words in problem(tmp_path, row)


SAID = st.none() | st.sampled_from(["", " ", "a", "b", "b "])


@given(response=SAID, rating=st.sampled_from([None, "critical", "good"]), correction=SAID,
       over=SAID)  # fmt: skip
def test_feedback_teaches_what_the_chat_would_teach(
    response: str | None, rating: Rating | None, correction: str | None, over: str | None
) -> None:
    line = {"query": "q", "response": response, "rating": rating, "correction": correction,
            "preferred_over": over}  # fmt: skip
    now = datetime.now(UTC)
    said = feedback_records.Feedback(
        1, None, (user("q"),), response, rating, 1.0, None, correction, "", None, "buffered",
        now, now, None, preferred_over=over if rating == "good" else None,
    )  # fmt: skip
    row = Row.of({key: value for key, value in line.items() if value is not None}, Origin("x"), 1)
    try:
        made = FeedbackFormat()(row)
    except InputError:
        assert not said.teaches or (response or "").strip() == (correction or "").strip()
        return
    if not said.teaches:
        assert made.answer is None and made.rejected is None
        return
    lesson = lesson_from(said)
    assert (made.answer and made.answer.text) == lesson.target
    if lesson.target is not None:
        assert (made.rejected_answer and made.rejected_answer.text) == lesson.rejected


def test_a_format_is_told_by_the_columns_only_where_one_fits(tmp_path: Path) -> None:
    ambiguous = {"messages": TALK, "chosen": "a", "rejected": "b", "prompt": "c"}
    with pytest.raises(UsageError, match="fit several formats: chat, preference"):
        examples(tmp_path, ambiguous)
    with pytest.raises(UsageError, match=r"\(a, b\) fit no known format"):
        examples(tmp_path, {"a": 1, "b": 2})
    with pytest.raises(UsageError, match="no row to tell the format by"):
        examples(tmp_path)
    with pytest.raises(UsageError, match="Did you mean gsm8k"):
        examples(tmp_path, {}, format="gsm8")
    with pytest.raises(UsageError, match="no option 'shown'"):
        examples(tmp_path, {}, format="scifact", shown="all")
    with pytest.raises(UsageError, match="calculator is 'no'"):
        examples(tmp_path, {}, format="gsm8k", calculator="no")


OWN = """
from shammah.datasets import ChatExample
from shammah.messages import user

class deep:
    def whole(row):
        return ChatExample((user(row["q"]),), metadata={"n": row.number})

def mapping(row, shout="no"):
    text = row["q"].upper() if shout == "yes" else row["q"]
    return {"messages": [{"role": "user", "content": text}], "metadata": {"id": row["id"]}}

def nothing(row):
    pass

def mistaken(row):
    return undefined

def extra(row):
    return {"messages": [], "answer": 1}

word = "no function"
"""


def test_own_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_formats.py").write_text(OWN)
    (tmp_path / "own_broken.py").write_text("import no_such_module_anywhere")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    row = {"q": "why", "id": 4}
    (made,) = examples(tmp_path, row, format="own_formats:mapping", shout="yes")
    assert (made.messages, made.metadata) == ((user("WHY"),), {"id": 4})
    (made,) = examples(tmp_path, row, format="own_formats:deep.whole")
    assert made.metadata == {"n": 1} and made.place.endswith("rows.jsonl:1")
    for name, words in (
        ("own_formats:none", "own_formats has no function none"),
        ("own_formats:word", "own_formats has no function word"),
        ("own_nowhere:f", "There is no module own_nowhere"),
        ("own_broken:f", "own_broken cannot be imported: No module named 'no_such_module"),
        ("own_formats:nothing", "rows.jsonl:1: own_formats:nothing gave NoneType"),
        ("own_formats:extra", "gave answer; it can give messages, rejected, metadata"),
    ):
        assert words in problem(tmp_path, row, format=name)
    assert "failed: KeyError('q')" in problem(tmp_path, {}, format="own_formats:mapping")
    assert "failed: NameError" in problem(tmp_path, row, format="own_formats:mistaken")
    assert "unexpected keyword" in problem(tmp_path, row, format="own_formats:nothing", x="1")


def test_a_callable_is_a_format_too(tmp_path: Path) -> None:
    def shout(row: Row, mark: str = "!") -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": row["q"] + mark}]}

    row = {"q": "why"}
    assert [one.messages for one in examples(tmp_path, row, format=shout)] == [(user("why!"),)]
    (made,) = examples(tmp_path, row, format=shout, mark="?")
    assert made.messages == (user("why?"),)
    (made,) = examples(tmp_path, {"question": "q", "answer": "#### 5"}, format=Gsm8k("strip"))
    assert made.metadata["final"] == "5"
    assert "shout failed: KeyError('q')" in problem(tmp_path, {}, format=shout)


async def test_misfits_are_counted_with_bad_rows(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "p", "completion": "c"}, {"prompt": "p"}, {"prompt": 1, "completion": "c"},
    ]  # fmt: skip
    made = examples(tmp_path, *rows, on_bad="skip")
    with (tmp_path / "rows.jsonl").open("a") as stream:
        stream.write("not JSON\n")
    for _ in range(2):
        assert len(await made.to_list()) == 1
        assert made.bad_rows.count == 3
        assert [row.place.rpartition(":")[2] for row in made.bad_rows.first] == ["2", "3", "4"]
    assert [example.answer async for example in made.stream()] == [assistant("c")]
    with pytest.raises(InputError, match=r"rows\.jsonl:2: the column completion is missing"):
        list(examples(tmp_path, *rows))
