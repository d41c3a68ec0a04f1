"""The embedded model before and after it is trained on GSM8K and on SciFact, to be handed in.

    python scripts/proof/evaluation.py [--out FOLDER] [--only gsm8k] [--rows 200] [--steps N]

For each data set: the base model answers `--rows` test rows, a LoRA adapter is trained on training
rows (its best checkpoint by the likelihood of held-out ones), and the same test rows are answered
again. FOLDER then holds

    report.md, report.json     both data sets: figures, intervals, comparison, targets, flips
    gsm8k/before, gsm8k/after  the runs, a row for each example, as `shammah eval` writes them
    gsm8k/best                 the adapter; `shammah eval --run FOLDER/gsm8k` asks it

The targets were written down before the run and are not moved. A model of six million parameters
does not learn arithmetic from a few thousand word problems; what it can learn is the form of an
answer and what such answers are likely to say, and the report keeps the two apart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shammah.adapters.weights import LoraWeights, load_checked
from shammah.datasets import ChatExample, open_dataset
from shammah.evaluation.comparison import Comparison, Flip, compare, flips
from shammah.evaluation.likelihood import LikelihoodTotal, likelihoods
from shammah.evaluation.quality import QualityResult, validate_quality
from shammah.evaluation.registry import scorer
from shammah.evaluation.report import Report, report
from shammah.evaluation.results import Results
from shammah.evaluation.run_folder import RunFolder, RunSettings, rows_of
from shammah.evaluation.runner import evaluate
from shammah.evaluation.statistics import Interval, Test, bootstrap_ratio, paired_test
from shammah.generation.engine import Engine
from shammah.generation.engine_batch import EngineCompleter
from shammah.messages import assistant, user
from shammah.models.load import BaseModel, load_base_model
from shammah.ports.llm_client import ChatParams
from shammah.renderers.base import Renderer
from shammah.renderers.registry import renderer_for
from shammah.settings import LoraSettings, ModelSettings, TrainingSettings
from shammah.training.best import BestCheckpoint, BestRecord
from shammah.training.datums import datum
from shammah.training.examples import Example, supervised
from shammah.training.local_client import LocalTrainingClient
from shammah.training.schedule import rate_for_width
from shammah.training.supervised import SupervisedResult, train_supervised

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
LABELS = ("SUPPORT", "CONTRADICT", "NOT_ENOUGH_INFO")
HELD_OUT = 64
"""Training rows that are not trained on and choose the best checkpoint."""


@dataclass(frozen=True, slots=True)
class Task:
    """A data set with what is asked of it. `targets` are for the run after training."""

    name: str
    train: Sequence[ChatExample]
    test: Sequence[ChatExample]
    scorers: Sequence[str | Mapping[str, Any]]
    targets: Mapping[str, float | str]
    steps: int
    max_tokens: int
    baseline: str
    """What a figure has to be held beside, in a sentence."""


@dataclass(frozen=True, slots=True)
class Likely:
    """How likely the known answers are: per example -log p and the number of tokens, of those that
    the model's context holds; `beyond` are not."""

    nll: NDArray[np.float64]
    tokens: NDArray[np.float64]
    beyond: int

    @property
    def per_token(self) -> float:
        return float(self.nll.sum() / self.tokens.sum())

    @property
    def interval(self) -> Interval:
        return bootstrap_ratio(self.nll, self.tokens)

    def to_dict(self) -> dict[str, Any]:
        low, high = self.interval.low, self.interval.high
        return {
            "examples": len(self.nll),
            "beyond_context": self.beyond,
            "tokens": int(self.tokens.sum()),
            "nll_per_token": self.per_token,
            "nll_per_token_95": [low, high],
            "perplexity": math.exp(self.per_token),
            "perplexity_95": [math.exp(low), math.exp(high)],
        }


@dataclass(frozen=True, slots=True)
class Look:
    """The model at one time."""

    results: Results
    report: Report
    likely: Likely
    seconds: float


@dataclass(frozen=True, slots=True)
class Proof:
    """One data set, from before to after."""

    task: Task
    before: Look
    after: Look
    comparison: Comparison
    quality: QualityResult
    flips: Sequence[Flip]
    trained: SupervisedResult
    best: BestRecord
    evaluations: Sequence[Mapping[str, Any]]
    train_seconds: float

    @property
    def likely_test(self) -> tuple[float, Interval, Test]:
        """By how much each answer became likelier per token: mean over examples, interval, test."""
        from shammah.evaluation.statistics import bootstrap_mean

        before, after = self.before.likely, self.after.likely
        change = after.nll / after.tokens - before.nll / before.tokens
        return float(change.mean()), bootstrap_mean(change), paired_test(change)


def gsm8k(rows: int) -> Task:
    data = SHARED / "gsm8k"
    options = {"calculator": "strip"}
    return Task(
        name="gsm8k",
        train=list(open_dataset(data / "train.jsonl").examples("gsm8k", **options)),
        test=list(open_dataset(data / "test.jsonl").take(rows).examples("gsm8k", **options)),
        scorers=[
            "numeric",
            {"name": "regex", "pattern": r"\n#### -?[\d,.]*\d\s*$", "as": "schema_compliance"},
            "rougeL",
        ],
        targets={
            "schema_compliance": 0.9,
            "numeric": 0.02,
            "perplexity": "<= 20",
            "error_rate": "<= 0",
        },
        steps=120,
        max_tokens=256,
        baseline="The right number at the end is what solves a problem; the form alone does not.",
    )


def scifact(rows: int) -> Task:
    data = SHARED / "scifact"
    train = [cited(each) for each in open_dataset(data / "claims_train.jsonl").examples("scifact")]
    test = open_dataset(data / "claims_dev.jsonl").take(rows).examples("scifact")
    labels = [each.metadata["label"] for each in train]
    common = max(LABELS, key=labels.count)
    tested = [cited(each) for each in test]
    share = sum(each.metadata["label"] == common for each in tested) / len(tested)
    return Task(
        name="scifact",
        train=train,
        test=tested,
        scorers=[
            {"name": "label", "labels": list(LABELS), "field": "label"},
            "citation_validity",
            {
                "name": "regex",
                "pattern": rf"({'|'.join(LABELS)})( \[\d+\])*",
                "whole": True,
                "as": "schema_compliance",
            },
        ],
        targets={
            "schema_compliance": 0.95,
            "label": 0.5,
            "citation_accuracy": 0.5,
            "perplexity": "<= 2",
            "error_rate": "<= 0",
        },
        steps=80,
        max_tokens=48,
        baseline=f"Who always says {common}, the commonest verdict of the training claims, is "
        f"right in {share:.1%} of these rows.",
    )


def cited(example: ChatExample) -> ChatExample:
    """The verdict is to be followed by the documents that it rests on."""
    asked = example.prompt[-1].text.replace(
        "\n\n", " After it name the documents it rests on, as [number].\n\n", 1
    )
    documents = "".join(f" [{each}]" for each in example.metadata["evidence"])
    verdict = f"{example.metadata['label']}{documents}"
    return replace(example, messages=(user(asked), assistant(verdict)))


TASKS = {"gsm8k": gsm8k, "scifact": scifact}


async def prove(task: Task, folder: Path, model: ModelSettings, seed: int) -> Proof:
    base = load_base_model(model)
    renderer = renderer_for(base.tokenizer, base.stop_tokens, base.renderer)
    before = await look(task, base, renderer, None, folder / "before")
    say(f"{task.name}: the base model", before)
    began = time.monotonic()
    trained, best, evaluations = await train(task, base, renderer, folder / "best", seed)
    train_seconds = time.monotonic() - began
    weights = load_checked(folder / "best" / best.file, best.adapter, base.shape)
    after = await look(task, base, renderer, (best, weights), folder / "after")
    say(f"{task.name}: trained for {trained.steps} steps, best after {best.step}", after)
    figures = {**after.report.figures(), "perplexity": math.exp(after.likely.per_token)}
    return Proof(
        task=task,
        before=before,
        after=after,
        comparison=compare(before.results, after.results),
        quality=validate_quality(figures, task.targets),
        flips=flips(
            before.results, after.results, rows_of(folder / "before"), rows_of(folder / "after"),
            limit=3,
        ),
        trained=trained,
        best=best,
        evaluations=evaluations,
        train_seconds=train_seconds,
    )  # fmt: skip


async def look(
    task: Task,
    base: BaseModel,
    renderer: Renderer,
    adapter: tuple[BestRecord, LoraWeights] | None,
    folder: Path,
) -> Look:
    """Answers, scores and likelihoods of the test rows."""
    began = time.monotonic()
    engine = Engine(base, renderer)
    try:
        name = None if adapter is None else adapter[0].adapter.name
        state = engine.prepare_aside(None if adapter is None else adapter[1], name)
        settings = RunSettings(
            data={"source": task.name, "rows": len(task.test)},
            model={"name": base.name, "fingerprint": base.fingerprint},
            adapter=None
            if adapter is None
            else {"name": name, "sha256": adapter[0].adapter.sha256},
            scorers=list(task.scorers),
            sampling={"max_tokens": task.max_tokens, "temperature": 0.0},
        )
        scorers = [scorer(spec) for spec in task.scorers]
        with RunFolder(folder, settings, scorers) as run:
            completer = EngineCompleter(engine, state, ChatParams(max_tokens=task.max_tokens))
            results = await evaluate(task.test, completer, scorers, run=run)
            found = report(results)
            run.write_report(found.to_dict())
        client = engine.sampling_client(state)
        found_all = [each async for each in likelihoods(client, renderer, task.test)]
    finally:
        engine.close()
    held = [each for each in found_all if each.problem is None]
    likely = Likely(
        np.array([each.nll for each in held]),
        np.array([float(each.tokens) for each in held]),
        len(found_all) - len(held),
    )
    return Look(results, found, likely, time.monotonic() - began)


async def train(
    task: Task, base: BaseModel, renderer: Renderer, folder: Path, seed: int
) -> tuple[SupervisedResult, BestRecord, list[Mapping[str, Any]]]:
    """An adapter on all linear layers; its best state by the held-out rows is in `folder`."""
    settings = TrainingSettings(
        learning_rate=rate_for_width(int(base.model.config.hidden_size)) / 2,
        schedule="cosine",
        warmup_steps=10,
        epochs=100,
        max_steps=task.steps,
        batch_size=16,
        replay=0,
        hold=0,
        stop_when_learned=False,
        seed=seed,
    )
    order = np.random.default_rng(seed).permutation(len(task.train))
    held = [task.train[index] for index in order[:HELD_OUT]]
    wanted = min(len(task.train) - HELD_OUT, task.steps * settings.batch_size)
    examples = list(fitting([task.train[i] for i in order[HELD_OUT:]], renderer, base))[:wanted]
    client = LocalTrainingClient(
        base, LoraSettings(rank=32, alpha=64, target_modules="all-linear", layers=1.0), settings
    )
    best = BestCheckpoint(folder, "nll_per_token", lower=True)
    events: list[Mapping[str, Any]] = []

    async def evaluate_held_out() -> Mapping[str, float]:
        total = LikelihoodTotal()
        async for each in likelihoods(client.sampler, renderer, held):
            total = total.add(each)
        figures = {"nll_per_token": total.nll_per_token, "perplexity": total.perplexity}
        await best.offer(client, figures)
        return figures

    def told(event: dict[str, Any]) -> None:
        if event["event"] == "evaluation":
            events.append(event)
            print(f"  step {event['step']}: {event['figures']}", flush=True)

    try:
        result = await train_supervised(
            client, examples, [1.0] * len(examples), [], settings,
            on_event=told, evaluate=evaluate_held_out, evaluate_every=max(1, task.steps // 8),
        )  # fmt: skip
    finally:
        client.close()
    assert best.kept is not None
    return result, best.kept, events


def fitting(examples: Sequence[ChatExample], renderer: Renderer, base: BaseModel) -> list[Example]:
    """Those that the model's context holds, every token of an answer weighing alike."""
    found = []
    for each in examples:
        rendered = renderer.supervised(each.messages)
        if len(rendered.tokens) <= base.context_length:
            learned = sum(weight > 0 for weight in rendered.weights)
            found.append(supervised(datum(rendered, float(learned))))
    return found


def say(title: str, found: Look) -> None:
    means = ", ".join(f"{each.name} {each.mean:.3f}" for each in found.report.metrics)
    print(
        f"{title}: {means}, perplexity {math.exp(found.likely.per_token):.3g} "
        f"({found.seconds:.0f} s)",
        flush=True,
    )


# --- what is handed in


def markdown(proofs: Sequence[Proof], about: Mapping[str, Any]) -> str:
    parts = [
        "# The embedded model before and after training",
        f"{about['model']} ({about['parameters']:,} parameters, {about['dtype']}), "
        f"fingerprint `{about['fingerprint'][:16]}`; greedy decoding; seed {about['seed']}. "
        "Intervals are 95% bootstrap intervals over examples. Paired tests: exact McNemar where "
        "scores are 0 or 1, else a permutation test.",
    ]
    for proof in proofs:
        parts += [f"## {proof.task.name}", *_sections(proof)]
    return "\n\n".join(parts) + "\n"


def _sections(proof: Proof) -> list[str]:
    task, trained, best = proof.task, proof.trained, proof.best
    change, interval, test = proof.likely_test
    before, after = proof.before.likely.to_dict(), proof.after.likely.to_dict()
    metrics = [
        f"| {m.name} | {m.first:.4f} | {m.second:.4f} | {m.difference:+.4f} | "
        f"{m.interval.low:+.4f} to {m.interval.high:+.4f} | {_p(m.test.p)} | {m.gained} | "
        f"{m.lost} |"
        for m in proof.comparison.metrics
    ]
    targets = [
        f"| {each.target} | {_number(each.value)} | "
        f"{'-' if each.margin is None else f'{each.margin:+.4g}'} | "
        f"{'met' if each.passed else '**missed**'} |"
        for each in proof.quality.targets
    ]
    curve = [
        f"| {event['step']} | {event['figures']['nll_per_token']:.4f} | "
        f"{event['figures']['perplexity']:.4g} |"
        for event in proof.evaluations
    ]
    return [
        f"{len(task.test)} test rows. LoRA rank {best.adapter.lora.rank} on all linear layers, "
        f"{best.adapter.parameters:,} parameters, {trained.steps} steps of 16 rows "
        f"({trained.tokens:,} tokens, {proof.train_seconds:.0f} s); the state after step "
        f"{best.step}, best on {HELD_OUT} held-out training rows. {task.baseline}",
        "### Answers",
        "| scorer | before | after | difference | 95% interval | p | gained | lost |\n"
        "| --- | ---: | ---: | ---: | --- | --- | ---: | ---: |\n" + "\n".join(metrics),
        f"Passed by all scorers: {proof.before.report.overall_pass_rate:.1%} before, "
        f"{proof.after.report.overall_pass_rate:.1%} after.{_beyond(proof)}",
        "### Likelihood of the known answers",
        "| | NLL a token | 95% interval | perplexity | 95% interval |\n"
        "| --- | ---: | --- | ---: | --- |\n"
        f"| before | {_likely(before)} |\n| after | {_likely(after)} |",
        f"Each answer's NLL per token changed by {change:+.4f} on average "
        f"({interval.low:+.4f} to {interval.high:+.4f}, {test.name} p {_p(test.p)}).",
        "### Targets",
        "| target | value | margin | |\n| --- | ---: | ---: | --- |\n" + "\n".join(targets),
        f"{proof.quality.summary}.",
        "### While it trained (held-out training rows)",
        "| step | NLL a token | perplexity |\n| ---: | ---: | ---: |\n" + "\n".join(curve),
        "### Examples that flipped",
        *(_flip(each) for each in proof.flips),
    ]


def _beyond(proof: Proof) -> str:
    """What is said of rows that the model cannot read."""
    count = proof.after.likely.beyond
    if not count:
        return ""
    return (
        f" {count} rows are longer than the model's context: they are errors among the answers, "
        "and not among the likelihoods."
    )


def _flip(flip: Flip) -> str:
    asked = str(flip.first.input[-1]["content"])
    return (
        f"**{flip.scorer} {'gained' if flip.gained else 'lost'}** at "
        f"{Path(flip.first.place).name}\n\n"
        f"```text\nasked:  {_short(asked)}\nwanted: {_short(flip.first.expected or '')}\n"
        f"before: {_short(flip.first.predicted or '')}\nafter:  "
        f"{_short(flip.second.predicted or '')}\n```"
    )


def _short(text: str) -> str:
    line = " / ".join(text.split("\n"))
    return line if len(line) <= 240 else f"{line[:160]} ... {line[-70:]}"


def _likely(figures: Mapping[str, Any]) -> str:
    low, high = figures["nll_per_token_95"]
    least, most = figures["perplexity_95"]
    return (
        f"{figures['nll_per_token']:.4f} | {low:.4f} to {high:.4f} | "
        f"{figures['perplexity']:.4g} | {least:.4g} to {most:.4g}"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def record(proof: Proof) -> dict[str, Any]:
    change, interval, test = proof.likely_test
    return {
        "rows": len(proof.task.test),
        "before": proof.before.report.to_dict(),
        "after": proof.after.report.to_dict(),
        "likelihood": {
            "before": proof.before.likely.to_dict(),
            "after": proof.after.likely.to_dict(),
            "change_per_token": change,
            "change_95": [interval.low, interval.high],
            "test": asdict(test),
        },
        "comparison": proof.comparison.to_dict(),
        "quality": proof.quality.to_dict(),
        "training": {
            "steps": proof.trained.steps,
            "tokens": proof.trained.tokens,
            "seconds": round(proof.train_seconds, 1),
            "best": proof.best.model_dump(mode="json"),
            "evaluations": [dict(each) for each in proof.evaluations],
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("evaluation-proof"), metavar="FOLDER")
    parser.add_argument("--only", nargs="*", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--rows", type=int, default=200, help="test rows of each (200)")
    parser.add_argument("--steps", type=int, default=0, help="training steps; 0: as each task has")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not SHARED.is_dir():
        raise SystemExit(f"{SHARED} is not there: the data sets lie beside the repository.")
    if options.out.exists():
        if not (options.out / "report.json").exists() and any(options.out.iterdir()):
            raise SystemExit(
                f"{options.out} is not empty and holds no report: name another folder."
            )
        shutil.rmtree(options.out)
    options.out.mkdir(parents=True)
    model = ModelSettings(name=options.model, dtype=options.dtype)
    proofs = []
    for name in options.only:
        task = TASKS[name](options.rows)
        if options.steps:
            task = replace(task, steps=options.steps)
        proofs.append(asyncio.run(prove(task, options.out / name, model, options.seed)))
    base = load_base_model(model)
    about = {
        "model": base.name,
        "fingerprint": base.fingerprint,
        "dtype": str(base.dtype).removeprefix("torch."),
        "parameters": sum(each.numel() for each in base.model.parameters()),
        "seed": options.seed,
    }
    content = {"about": about, **{proof.task.name: record(proof) for proof in proofs}}
    (options.out / "report.json").write_text(json.dumps(content, indent=1) + "\n")
    (options.out / "report.md").write_text(markdown(proofs, about))
    print(f"{options.out / 'report.md'}")


if __name__ == "__main__":
    main()
