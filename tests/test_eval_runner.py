"""The evaluation runner: rows that are never lost, figures that agree with scipy's."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shammah.datasets import ChatExample, open_dataset
from shammah.errors import DataError, InputError, LLMError, UsageError
from shammah.evaluation.comparison import compare, flips
from shammah.evaluation.quality import Target, required, targets_in, validate_quality
from shammah.evaluation.registry import scorer
from shammah.evaluation.report import repeated, report
from shammah.evaluation.results import Results
from shammah.evaluation.rows import EvaluationRow, RowError, read_row
from shammah.evaluation.run_folder import RunFolder, RunSettings, results_of, rows_of
from shammah.evaluation.runner import Progress, evaluate
from shammah.evaluation.scorer import Score
from shammah.evaluation.statistics import (
    bootstrap_mean,
    bootstrap_ratio,
    paired_test,
    sign_flip_test,
    sign_test,
)
from shammah.messages import Conversation, Message, assistant, user
from shammah.ports.llm_client import ChatAnswer, ChatParams

if TYPE_CHECKING:
    from shammah.models.load import BaseModel

SETTINGS = RunSettings(data={"source": "sums"}, model={"name": "stub"}, scorers=["same"])
PROGRAM = Path(__file__).parent / "evaluation_stub.py"


@dataclass(frozen=True, slots=True)
class Same:
    """1 where the answer is the wanted one."""

    name: str = "same"

    async def score(self, output: str, target: str, metadata: Mapping[str, Any]) -> Score:
        return Score(float(output == target), {"length": len(output)})


@dataclass(frozen=True, slots=True)
class Near:
    """How near a number is; an answer without one is an error."""

    name: str = "near"

    async def score(self, output: str, target: str, metadata: Mapping[str, Any]) -> Score:
        return Score(1 / (1 + abs(float(output) - float(target))))


@dataclass(slots=True)
class Adds:
    """Answers `a+b`, wrong by `off` where `a` is a multiple of `every`, and fails where told."""

    off: int = 0
    every: int = 1
    fails: tuple[int, ...] = ()
    calls: int = 0
    at_once: int = 0
    most: int = 0

    async def complete(self, messages: Conversation) -> Message:
        self.calls += 1
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await asyncio.sleep(0.001 * (self.calls % 3))
        self.at_once -= 1
        one, other = map(int, messages[-1].text.split("+"))
        if one in self.fails:
            raise LLMError(f"{one} is too much.", backend="stub")
        return assistant(str(one + other + (self.off if one % self.every == 0 else 0)))


def sums(count: int) -> list[ChatExample]:
    return [
        ChatExample(
            (user(f"{number}+1"), assistant(str(number + 1))),
            metadata={"number": number, "kind": "even" if number % 2 == 0 else "odd"},
            place=f"sums:{number + 1}",
        )
        for number in range(count)
    ]


async def run_in(folder: Path, examples: list[ChatExample], model: Adds, **options: Any) -> Results:
    with RunFolder(folder, SETTINGS, ["same"], **options) as run:
        return await evaluate(examples, model, [Same()], run=run, concurrency=3)


async def test_every_example_is_one_row_and_what_fails_is_a_row_too(tmp_path: Path) -> None:
    seen: list[Progress] = []
    model = Adds(off=1, every=4, fails=(5, 6))
    with RunFolder(tmp_path / "run", SETTINGS, [Same(), Near()], group="kind") as run:
        results = await evaluate(
            sums(20), model, [Same(), Near()], run=run, concurrency=4, on_progress=seen.append
        )
    assert model.calls == 20 and 1 < model.most <= 4
    assert [each.done for each in seen] == list(range(1, 21))
    rows = sorted(rows_of(tmp_path / "run"), key=lambda row: row.index)
    assert [row.index for row in rows] == list(range(20))
    assert rows[4].predicted == "6" and rows[4].expected == "5" and rows[4].place == "sums:5"
    assert rows[4].scores == {"same": Score(0.0, {"length": 1}), "near": Score(0.5)}
    assert rows[5].error == RowError("answer", "LLMError", "stub: 5 is too much.")
    assert rows[5].scores == {} and rows[5].predicted is None
    assert rows[7].metadata == {"number": 7, "kind": "odd"} and rows[7].input[0]["role"] == "user"
    found = report(results)
    assert (found.examples, found.failed, found.unanswered) == (20, 2, 2)
    same, near = found.metrics
    assert (same.scored, same.mean, same.pass_rate) == (18, 13 / 18, 13 / 18)
    assert near.mean == pytest.approx((13 + 2.5) / 18) and near.pass_rate == 1
    assert same.interval.low < same.mean < same.interval.high
    assert found.overall_pass_rate == 13 / 20 and found.figures()["error_rate"] == 0.1
    assert found.figures()["same.length"] == pytest.approx(
        np.mean([len(row.predicted) for row in rows if row.predicted])
    )
    assert found.groups is not None and [*found.groups] == ["even", "odd"]
    assert found.groups["odd"][0].mean == 1 and found.groups["even"][0].scored == 9
    assert found.errors == {"answer: LLMError": 2}
    # The file says the same.
    again = results_of(tmp_path / "run")
    np.testing.assert_array_equal(again.scores("near"), results.scores("near"))
    assert (tmp_path / "run" / "rows.jsonl").stat().st_mode & 0o777 == 0o600


async def test_a_scorer_that_fails_leaves_the_other_scores(tmp_path: Path) -> None:
    class Talks:
        async def complete(self, messages: Conversation) -> Message:
            return assistant("about five")

    results = await evaluate(sums(3), Talks(), [Near(), Same()])
    found = report(results)
    assert found.errors == {"near: ValueError": 3} and found.unanswered == 0
    assert found.metrics[1].scored == 3 and math.isnan(found.metrics[0].mean)
    assert found.overall_pass_rate == 0
    with pytest.raises(UsageError, match="same name"):
        await evaluate(sums(1), Talks(), [Same(), Same()])


async def test_a_run_goes_on_where_it_was_and_only_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    await run_in(folder, sums(7), Adds(fails=(3,)))
    with pytest.raises(UsageError, match="holds a run already"):
        await run_in(folder, sums(7), Adds())
    other = SETTINGS.model_copy(update={"adapter": {"name": "a"}})
    with pytest.raises(UsageError, match="adapter: "):
        RunFolder(folder, other, ["same"], resume=True)
    with (
        RunFolder(folder, SETTINGS, ["same"], resume=True),
        pytest.raises(UsageError, match="Anoth"),
    ):
        RunFolder(folder, SETTINGS, ["same"], resume=True)
    # A torn last line is asked again; a broken one before it is no crash.
    rows = folder / "rows.jsonl"
    lines = rows.read_bytes().splitlines(keepends=True)
    rows.write_bytes(b"".join(lines[:-1]) + lines[-1][:-9])
    model = Adds()
    results = await run_in(folder, sums(9), model, resume=True)
    assert model.calls == 3 and len(results) == 9 and results.failed == 1
    model = Adds()
    results = await run_in(folder, sums(9), model, resume=True, retry_errors=True)
    assert model.calls == 1 and results.failed == 0
    assert sorted(row.index for row in rows_of(folder)) == list(range(9))
    changed = sums(9)
    changed[4] = ChatExample((user("2+2"), assistant("4")))
    with pytest.raises(UsageError, match="Example 4"):
        await run_in(folder, changed, Adds(), resume=True)
    rows.write_bytes(b"nonsense\n" + rows.read_bytes())
    with pytest.raises(InputError, match=r"rows\.jsonl:1"):
        await run_in(folder, sums(9), Adds(), resume=True)


def stub(folder: Path, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(folder), str(count)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_killed_run_is_resumed_with_each_row_once_in_flat_memory(tmp_path: Path) -> None:
    """What `scripts/bench/evaluation.py` does with 100,000 rows."""
    folder, count = tmp_path / "run", 5000
    rows = folder / "rows.jsonl"
    for part in (0.2, 0.6):
        process = stub(folder, count)
        deadline = time.monotonic() + 180
        while not rows.exists() or rows.stat().st_size < part * count * 250:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with rows.open("ab") as file:
        file.write(b'{"index": 17, "pla')
    process = stub(folder, count)
    told = json.loads(process.communicate(timeout=180)[0])
    assert process.returncode == 0
    numbers = [row.index for row in rows_of(folder)]
    assert sorted(numbers) == list(range(count))
    assert told["resumed"] > 0.5 * count and told["done"] == count
    assert told["grown_mb"] < 20, told
    assert told["mean"] == pytest.approx(float(np.mean([n % 3 != 0 for n in range(count)])))


async def test_the_embedded_model_answers_real_rows(
    embedded_model: BaseModel, shared_data: Callable[[str], Path], tmp_path: Path
) -> None:
    from shammah.generation.completers import SamplingMessageCompleter
    from shammah.generation.local_sampling import BaseSamplingClient
    from shammah.ports.sampling_client import SamplingParams
    from shammah.renderers.registry import renderer_for

    class Verdict:
        name = "verdict"

        async def score(self, output: str, target: str, metadata: Mapping[str, Any]) -> Score:
            return Score(float(output.strip() == metadata["label"]))

    examples = open_dataset(shared_data("scifact/claims_dev.jsonl")).take(4).examples("scifact")
    client = BaseSamplingClient(embedded_model)
    try:
        renderer = renderer_for(
            embedded_model.tokenizer, embedded_model.stop_tokens, embedded_model.renderer
        )
        completer = SamplingMessageCompleter(client, renderer, SamplingParams(max_tokens=24))
        with RunFolder(tmp_path / "run", SETTINGS, ["verdict"]) as run:
            results = await evaluate(examples, completer, [Verdict()], run=run)
    finally:
        client.close()
    rows = list(rows_of(tmp_path / "run"))
    assert [row.index for row in rows] == [0, 1, 2, 3] and not results.failed
    assert all(row.predicted and row.seconds > 0 for row in rows)
    assert rows[0].metadata["label"] in ("SUPPORT", "CONTRADICT", "NOT_ENOUGH_INFO")
    assert report(results).seconds.p50 > 0


def results(*scores: float, name: str = "near") -> Results:
    found = Results([name])
    for index, value in enumerate(scores):
        found.add(row(index, value, name))
    return found


def row(index: int, value: float, name: str = "near") -> EvaluationRow:
    prompt = [{"role": "user", "content": str(index)}]
    return EvaluationRow(index, "", prompt, "", f"{value}", {name: Score(value)}, {}, 0.1)


def test_bootstrap_intervals_are_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(5)
    many = rng.beta(2, 3, 150)
    expected = stats.bootstrap(
        (many,), np.mean, method="percentile", n_resamples=2000, rng=np.random.default_rng(3)
    ).confidence_interval
    mine = bootstrap_mean(many, seed=3)
    assert (mine.low, mine.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    # Of few values the draw is another one of the same distribution.
    few = (rng.random(400) < 0.3).astype(float)
    expected = stats.bootstrap((few,), np.mean, method="percentile", rng=1).confidence_interval
    mine = bootstrap_mean(few, seed=1, resamples=20_000)
    assert (mine.low, mine.high) == pytest.approx((expected.low, expected.high), abs=0.006)


def test_the_interval_of_a_ratio_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(7)
    tokens = rng.integers(5, 200, 120).astype(float)
    nll = tokens * rng.gamma(4, 0.5, 120)
    expected = stats.bootstrap(
        (nll, tokens), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True,
        method="percentile", n_resamples=2000, rng=np.random.default_rng(3),
    ).confidence_interval  # fmt: skip
    mine = bootstrap_ratio(nll, tokens, seed=3)
    assert (mine.low, mine.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_paired_tests_are_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for won, lost in ((0, 0), (1, 0), (3, 3), (12, 4), (4, 12), (400, 320), (40_000, 39_000)):
        expected = stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
        assert sign_test(won, lost) == pytest.approx(expected, rel=1e-9)
    rng = np.random.default_rng(2)
    for n, shift in ((8, 0.3), (12, 0.1), (60, 0.1), (300, 0.05)):
        differences = rng.normal(shift, 0.4, n)
        expected = stats.permutation_test(
            (differences, np.zeros(n)),
            lambda x, y, axis: np.mean(x - y, axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=20_000,
            rng=1,
        ).pvalue
        exact = 2**n <= 9999
        assert sign_flip_test(differences) == pytest.approx(expected, abs=1e-12 if exact else 0.015)
    # Wilcoxon's test asks much the same.
    for shift, differs in ((0.02, False), (0.15, True)):
        differences = rng.normal(shift, 0.4, 200)
        assert (sign_flip_test(differences) < 0.01) == differs
        assert (stats.wilcoxon(differences).pvalue < 0.01) == differs
    assert paired_test(np.array([1.0, 0, -1, 1, 0])).name == "exact McNemar"
    assert paired_test(np.array([0.5, 0, -1])).name == "paired permutation"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60), st.randoms())
def test_a_report_does_not_depend_on_the_order_of_rows(scores: list[float], random: Any) -> None:
    rows = [row(index, value) for index, value in enumerate(scores)]
    first = report(results(*scores))
    random.shuffle(rows)
    other = Results(["near"])
    for each in rows:
        other.add(read_row(each.to_line()))
    second = report(other)
    assert first == second
    (metric,) = first.metrics
    assert metric.interval.low <= metric.mean + 1e-9 and metric.interval.high >= metric.mean - 1e-9
    assert first.overall_pass_rate == metric.pass_rate


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.floats(0, 1, width=32)), min_size=1))
def test_a_comparison_turned_round_is_its_opposite(pairs: list[tuple[float, float]]) -> None:
    first, second = results(*[a for a, _ in pairs]), results(*[b for _, b in pairs])
    (there,), (back,) = compare(first, second).metrics, compare(second, first).metrics
    assert there.difference == pytest.approx(-back.difference, abs=1e-9)
    assert (there.gained, there.lost) == (back.lost, back.gained)
    assert there.test.name == back.test.name
    assert there.difference == pytest.approx(there.second - there.first, abs=1e-6)


def test_two_runs_are_compared_pair_by_pair() -> None:
    first, second = Results(["same"]), Results(["same"])
    before = [row(index, float(index < 10), "same") for index in range(40)]
    after = [row(index, float(index % 2 == 0 or index > 30), "same") for index in range(5, 45)]
    for each in before:
        first.add(each)
    for each in after:
        second.add(each)
    found = compare(first, second)
    (metric,) = found.metrics
    assert (found.pairs, found.alone, metric.pairs) == (35, 10, 35)
    assert (metric.gained, metric.lost) == (20, 3) and metric.test.name == "exact McNemar"
    assert metric.test.p == pytest.approx(sign_test(20, 3)) and metric.interval.low > 0
    shown = flips(first, second, before, after, limit=2)
    assert [(flip.gained, flip.first.index) for flip in shown] == [
        (False, 5), (False, 7), (True, 10), (True, 12),
    ]  # fmt: skip
    assert shown[0].first.predicted == "1.0" and shown[0].second.predicted == "0.0"
    with pytest.raises(UsageError, match="no scorer in common"):
        compare(first, results(*[0.0] * 20))
    other = Results(["same"])
    other.add(EvaluationRow(7, "", [], "else", "", {"same": Score(1)}, {}, 0.0))
    with pytest.raises(UsageError, match="Example 7"):
        compare(first, other)


def test_repeated_runs_have_a_mean_and_a_spread() -> None:
    found = repeated([report(results(*scores)) for scores in ((0, 1), (1, 1), (0, 0.5))])
    assert found["near"].mean == pytest.approx((0.5 + 1 + 0.25) / 3)
    assert found["near"].deviation == pytest.approx(np.std([0.5, 1, 0.25], ddof=1))
    assert (found["near"].least, found["near"].most, found["near"].runs) == (0.25, 1.0, 3)
    with pytest.raises(DataError):
        repeated([])


def test_targets_are_met_or_missed_with_their_margin(tmp_path: Path) -> None:
    found = report(results(0.25, 0.75, 1.0, 1.0))
    judged = validate_quality(
        found, {"near": 0.7, "overall_pass_rate": ">= 0.8", "error_rate": "<=0.1"}
    )
    assert not judged.passed
    assert [(each.passed, each.margin) for each in judged.targets] == [
        (True, pytest.approx(0.05)), (False, pytest.approx(-0.05)), (True, pytest.approx(0.1)),
    ]  # fmt: skip
    assert judged.summary == "2 of 3 targets met; missed: overall_pass_rate >= 0.8 by 0.05"
    (tmp_path / "targets.toml").write_text('[targets]\nnear = 0.9\n"seconds.p90" = "<= 5"\n')
    assert targets_in(tmp_path / "targets.toml") == [
        Target("near", ">=", 0.9), Target("seconds.p90", "<=", 5.0),
    ]  # fmt: skip
    assert required(["near>=0.6,error_rate <= 0.05"]) == [
        Target("near", ">=", 0.6), Target("error_rate", "<=", 0.05),
    ]  # fmt: skip
    with pytest.raises(UsageError, match="no figure 'nearly'"):
        validate_quality(found, {"nearly": 0.5})
    for bad in ("near", "near>0.6", "near>=x", ">=0.5"):
        with pytest.raises(UsageError):
            required([bad])
    empty = Results(["near"])
    judged = validate_quality(report(empty), {"near": 0.0})
    assert not judged.passed and judged.targets[0].value is None
    assert "nothing was scored" in judged.summary


async def test_what_targets_are_often_called_is_computed_by_scorers() -> None:
    class Cites:
        def __init__(self) -> None:
            self.answers = iter(
                [
                    "CLAIM[c1]: Ice melts [7].",
                    "Ice melts [7].",
                    "CLAIM[c1] Ice [7]",
                    "CLAIM[c1]: [8]",
                ]
            )

        async def complete(self, messages: Conversation) -> Message:
            return assistant(next(self.answers))

    class Says:
        model = "judge"

        async def chat(self, messages: Conversation, params: ChatParams) -> ChatAnswer:
            follows = "[7]" in messages[-1].text.split("ANSWER")[1]
            said = f"ENTAILMENT: {'YES' if follows else 'NO'}"
            return ChatAnswer(assistant(said), "stop", self.model)

        def stream(self, messages: Conversation, params: ChatParams) -> AsyncIterator[str]:
            raise NotImplementedError

    known = {"evidence": [7], "shown": [7, 8]}
    examples = [ChatExample((user("?"), assistant("Ice melts.")), metadata=known)] * 4
    specs = ["claim_format", "citation_validity", "llm_entailment"]
    found = report(await evaluate(examples, Cites(), [scorer(spec, llm=Says()) for spec in specs]))
    judged = validate_quality(
        found,
        {
            "schema_compliance": 0.5,
            "citation_accuracy": 0.8,
            "mean_entailment": ">= 0.75",
            "overall_pass_rate": 0.3,
        },
    )
    assert [(each.value, each.passed) for each in judged.targets] == [
        (0.5, True), (0.75, False), (0.75, True), (0.25, False),
    ]  # fmt: skip
    assert "missed: citation_accuracy >= 0.8 by 0.05" in judged.summary
    # Another scorer can be called so, and then it is meant.
    regex = scorer({"name": "regex", "pattern": r"\[\d\]", "as": "schema_compliance"})
    found = report(await evaluate(examples, Cites(), [regex, scorer("claim_format")]))
    assert validate_quality(found, {"schema_compliance": 1.0}).passed
    with pytest.raises(UsageError, match="mean_entailment") as missing:
        validate_quality(found, {"mean_entailment": 0.5})
    assert "llm_entailment" in str(missing.value.hint)
    figures = {"json_schema": 1.0, "claim_format": 0.5}
    with pytest.raises(UsageError, match="could be json_schema or claim_format"):
        validate_quality(figures, {"schema_compliance": 0.5})


@settings(max_examples=30, deadline=None)
@given(
    st.text(max_size=20), st.dictionaries(st.text(max_size=5), st.floats() | st.text(max_size=5))
)
def test_a_row_is_read_back_as_it_was_written(text: str, detail: dict[str, Any]) -> None:
    before = EvaluationRow(
        3, text, [{"role": "user", "content": text}], None, text + "\n", {"s": Score(0.5, detail)},
        {"when": text}, 0.25, RowError("answer", "LLMError", text),
    )  # fmt: skip
    line = before.to_line()
    assert line.count(b"\n") == 1
    after = read_row(line)
    assert after.checksum == before.checksum and after.error == before.error
    assert (after.input, after.predicted, after.place) == (
        before.input, before.predicted, before.place,
    )  # fmt: skip
    strict: Iterator[float] = (v for v in detail.values() if isinstance(v, float))
    if all(map(math.isfinite, strict)):
        assert after.scores == before.scores
