"""`shammah eval`: a data set's examples answered and scored, with figures on stdout."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shammah.cli.context import model_changes, paths_of, settings_of, start_log
from shammah.cli.evaluation_outcome import BASE, Outcome
from shammah.cli.evaluation_progress import ProgressLine
from shammah.cli.output import emit, say, tell
from shammah.datasets import Examples, open_dataset
from shammah.errors import TrainingError, UsageError
from shammah.evaluation.comparison import compare, flips
from shammah.evaluation.quality import Target, required, validate_quality
from shammah.evaluation.registry import needs, scorer
from shammah.evaluation.report import report
from shammah.evaluation.results import Results
from shammah.evaluation.run_folder import SETTINGS, RunFolder, RunSettings, results_of, rows_of
from shammah.evaluation.runner import evaluate
from shammah.evaluation.scorer import Scorer
from shammah.evaluation.story import write_story
from shammah.messages import Conversation, Message, system
from shammah.ports.completer import MessageCompleter
from shammah.ports.llm_client import ChatParams

if TYPE_CHECKING:
    from shammah.adapters.library import Adapter
    from shammah.assistant.workspace import Workspace
    from shammah.generation.engine import Engine
    from shammah.generation.engine_batch import EngineCompleter
    from shammah.models.load import BaseModel
    from shammah.settings import Settings

AGAINST = "against"
"""The folder of the other run, within that of the first."""
MISSED = 1


def run(options: Namespace) -> int:
    paths = paths_of(options)
    settings = settings_of(paths, model_changes(options))
    start_log(paths, settings)
    targets = required(options.require)
    _check(options)
    folder = (
        _path(options.out)
        if options.out
        else paths.evaluations / datetime.now().strftime("%Y%m%d_%H%M%S_%f")[:-3]
    )
    specs = scorer_specs(options.scorers)
    for spec in specs:
        needs(spec)  # a misspelt one is said before a model is loaded
    return asyncio.run(_run(options, settings, folder, specs, targets))


def scorer_specs(words: Sequence[str]) -> list[str]:
    """What `--scorers` names: plain names with commas between them, or one with parameters."""
    found: list[str] = []
    for word in words:
        alone = ":" in word or word.lstrip().startswith("{")
        found += [word] if alone else [part.strip() for part in word.split(",") if part.strip()]
    if not found:
        raise UsageError("--scorers names no scorer.", hint="Such as exact_match,numeric.")
    return found


@dataclass(frozen=True, slots=True)
class _Evaluation:
    """All that one invocation runs on."""

    options: Namespace
    settings: Settings
    examples: Examples
    base: BaseModel
    engine: Engine
    scorers: Sequence[Scorer]
    specs: Sequence[str]

    def settings_for(self, adapter: Adapter | None, seed: int) -> RunSettings:
        """What makes a run the same one when it is resumed."""
        options = self.options
        source = Path(options.data).expanduser()
        return RunSettings(
            data={
                "source": str(source.absolute()) if source.exists() else options.data,
                "split": options.split,
                "format": self.examples.format,
                "options": sorted(options.option),
                "limit": options.limit,
                "shuffle": options.shuffle,
                "skip_bad": options.skip_bad,
            },
            model={
                "name": self.base.name,
                "fingerprint": self.base.fingerprint,
                "dtype": str(self.base.dtype).removeprefix("torch."),
                "renderer": type(self.engine.renderer).__name__,
            },
            adapter=None
            if adapter is None
            else {"name": adapter.name, "sha256": adapter.require_metadata().sha256},
            scorers=list(self.specs),
            sampling={
                "max_tokens": options.max_tokens,
                "temperature": options.temperature,
                "seed": seed if options.temperature else None,
                "system": options.system or "",
            },
        )

    def completer(self, adapter: Adapter | None, seed: int) -> MessageCompleter:
        """Answers of an adapter, or of the base model, on the engine's thread."""
        from shammah.adapters.weights import load_checked
        from shammah.generation.engine_batch import EngineCompleter

        weights = None
        if adapter is not None:
            weights = load_checked(adapter.path, adapter.require_metadata(), self.base.shape)
        state = self.engine.prepare_aside(weights, adapter.name if adapter else None)
        params = ChatParams(
            max_tokens=self.options.max_tokens,
            temperature=self.options.temperature,
            seed=seed if self.options.temperature else None,
        )
        asked = EngineCompleter(self.engine, state, params, rows=self.options.batch)
        return _WithSystem(asked, self.options.system) if self.options.system else asked

    async def run(self, folder: Path, adapter: Adapter | None, seed: int, label: str) -> Results:
        """Do a run, or what is left of it, and write its report."""
        options = self.options
        completer = await asyncio.to_thread(self.completer, adapter, seed)
        line = ProgressLine(label, options.limit)
        with RunFolder(
            folder,
            self.settings_for(adapter, seed),
            self.scorers,
            group=options.group,
            resume=options.resume,
            retry_errors=options.retry_errors,
        ) as kept:
            if len(kept.results):
                tell(f"{label}: {len(kept.results):,} examples are there already.")
            try:
                results = await evaluate(
                    self.examples, completer, self.scorers, run=kept, on_progress=line.show
                )
            except asyncio.CancelledError:
                line.clear()
                tell(f"Ended. Go on with --resume --out {options.out or folder}")
                raise
            finally:
                line.clear()
            found = await asyncio.to_thread(report, results, pass_at=options.pass_at)
            kept.write_report(found.to_dict())
        await asyncio.to_thread(write_story, folder, label, found, rows_of(folder))
        return results


@dataclass(frozen=True, slots=True)
class _WithSystem:
    """Asks with a system message before each conversation that has none of its own."""

    asked: EngineCompleter
    text: str

    async def complete(self, messages: Conversation) -> Message:
        return await self.asked.complete(self._begun(messages))

    def complete_all(
        self, conversations: AsyncIterable[Conversation]
    ) -> AsyncIterator[tuple[int, Message | Exception]]:
        return self.asked.complete_all(self._begun(each) async for each in conversations)

    def _begun(self, messages: Conversation) -> Conversation:
        if messages and messages[0].role == "system":
            return messages
        return (system(self.text), *messages)


async def _run(
    options: Namespace,
    settings: Settings,
    folder: Path,
    specs: Sequence[str],
    targets: Sequence[Target],
) -> int:
    from shammah.assistant.workspace import Workspace

    dataset = open_dataset(
        options.data, split=options.split, on_bad="skip" if options.skip_bad else "raise"
    )
    if options.shuffle is not None:
        dataset = dataset.shuffle(options.shuffle)
    if options.limit is not None:
        dataset = dataset.take(options.limit)
    examples = dataset.examples(options.format, **dict(map(_option, options.option)))
    async with AsyncExitStack() as open_ones:
        workspace = await asyncio.to_thread(Workspace, settings, paths_of(options))
        open_ones.callback(workspace.close)
        base, engine = await asyncio.to_thread(_load, settings)
        open_ones.callback(engine.close)
        for note in base.notes:
            tell(note)
        adapter = (
            _of_run(workspace, options.of_run) if options.of_run
            else _adapter(workspace, base, options.adapter)
        )  # fmt: skip
        other = None if _is_run(options.against) else options.against
        against = _adapter(workspace, base, other) if other else None
        scorers = await _scorers(options, settings, specs, base, engine, open_ones)
        work = _Evaluation(options, settings, examples, base, engine, scorers, specs)
        runs: list[Results] = []
        for number in range(options.repeat):
            seed = options.seed + number
            place = folder if options.repeat == 1 else folder / f"repeat_{number + 1}"
            label = (adapter.name if adapter else BASE) + (f" {number + 1}" if number else "")
            runs.append(await work.run(place, adapter, seed, label))
        outcome = Outcome(
            folder=folder,
            adapter=adapter.name if adapter else None,
            reports=tuple(report(each, pass_at=options.pass_at) for each in runs),
        )
        if options.against:
            other_folder = _path(options.against) if other is None else folder / AGAINST
            if other is None:
                before = await asyncio.to_thread(results_of, other_folder, scorers)
            else:
                name = against.name if against else BASE
                before = await work.run(other_folder, against, options.seed, name)
            outcome = replace(
                outcome,
                against=other or options.against,
                before=report(before, pass_at=options.pass_at),
                comparison=compare(before, runs[0], pass_at=options.pass_at),
                flips=tuple(
                    flips(
                        before, runs[0], rows_of(other_folder), rows_of(folder),
                        pass_at=options.pass_at, limit=options.flips,
                    )
                ),
            )  # fmt: skip
    if examples.bad_rows.count:
        tell(f"{examples.bad_rows.count} bad rows were passed over.")
    if targets:
        outcome = replace(outcome, quality=validate_quality(outcome.figures(), targets))
    tell(f"The rows are in {folder}")
    if options.json:
        emit(outcome.to_dict())
    else:
        say(outcome.text())
    return MISSED if outcome.quality is not None and not outcome.quality.passed else 0


def _check(options: Namespace) -> None:
    """What argparse cannot tell.

    Raises:
        UsageError: a number is out of range, or two options do not go together.
    """
    wrong = {
        "--limit takes a number from 1 on.": options.limit is not None and options.limit < 1,
        "--repeat takes a number from 1 on.": options.repeat < 1,
        "--batch takes a number from 1 on.": options.batch < 1,
        "--flips takes a number from 0 on.": options.flips < 0,
        "--pass-at takes a number above 0, at most 1.": not 0 < options.pass_at <= 1,
        "--seed takes a number from 0 on.": options.seed < 0,
        "--repeat and --against do not go together.": options.repeat > 1 and options.against,
        "--repeat with temperature 0 gives the same answers again.": options.repeat > 1
        and options.temperature == 0,
        "--run and --adapter do not go together.": options.of_run and options.adapter,
        "--resume needs --out: the folder of the run.": options.resume and not options.out,
        "--retry-errors goes with --resume.": options.retry_errors and not options.resume,
        "--judge-url goes with --judge.": options.judge_url and not options.judge,
    }
    for message, applies in wrong.items():
        if applies:
            raise UsageError(message)
    ChatParams(max_tokens=options.max_tokens, temperature=options.temperature)


def _option(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"--option takes KEY=VALUE, not {text!r}.")
    return key, value


def _is_run(name: str | None) -> bool:
    """Whether this is the folder of an earlier run."""
    return name is not None and (_path(name) / SETTINGS).is_file()


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _load(settings: Settings) -> tuple[BaseModel, Engine]:
    from shammah.generation.engine import Engine
    from shammah.models.load import load_base_model
    from shammah.renderers.registry import renderer_for

    base = load_base_model(settings.model)
    return base, Engine(base, renderer_for(base.tokenizer, base.stop_tokens, base.renderer))


def _adapter(workspace: Workspace, base: BaseModel, name: str | None) -> Adapter | None:
    """The adapter of that name, the active one for None, or None for the base model."""
    if name is None:
        name = workspace.library.active(base.fingerprint)
    return None if name in (None, BASE, "none") else workspace.library.get(str(name))


def _of_run(workspace: Workspace, name: str) -> Adapter:
    """The best checkpoint of a run, by its folder, its name or the number of its job; of a job that
    kept none, the adapter that came of it.

    Raises:
        TrainingError: there is no such run, or nothing came of it.
    """
    from shammah.adapters.library import Adapter
    from shammah.training.best import best_in

    number = name.removeprefix("job-")
    job = workspace.queue.get(int(number)) if number.isdecimal() else None
    folder = _path(name) if job is None else job.folder
    for place in (folder, folder / "best", folder / "checkpoint" / "best"):
        if (record := best_in(place)) is not None:
            tell(f"Best of {name}: {record.metric} {record.value:.4g} after step {record.step}.")
            path = place / record.file
            called = f"{folder.name}/{record.adapter.name}"
            metadata = record.adapter.model_copy(update={"name": called})
            return Adapter(called, path, metadata, path.stat().st_size)
    if job is not None and job.adapter is not None:
        return workspace.library.get(job.adapter)
    raise TrainingError(
        f"The run {name} has kept no best checkpoint.",
        hint="Name a folder with a best.json, or a job that has come to its end.",
    )


async def _scorers(
    options: Namespace,
    settings: Settings,
    specs: Sequence[str],
    base: BaseModel,
    engine: Engine,
    open_ones: AsyncExitStack,
) -> list[Scorer]:
    """The scorers, with what they need of a caller and nothing more."""
    wanted = frozenset[str]().union(*map(needs, specs))
    resources: dict[str, Any] = {}
    if "embedder" in wanted:
        from shammah.generation.embedder import embedder_of

        resources["embedder"] = await asyncio.to_thread(
            embedder_of, base, engine.renderer, settings.adapters.embedding
        )
    if "llm" in wanted:
        if not options.judge:
            raise UsageError(
                "One of the scorers asks a chat model.", hint="Say which: --judge, --judge-url."
            )
        from shammah.backends.openai_llm import OPENAI, OpenAILLM

        judge = OpenAILLM(options.judge, base_url=options.judge_url or OPENAI)
        resources["llm"] = await open_ones.enter_async_context(judge)
    make: Callable[..., Scorer] = scorer
    return [make(spec, **resources) for spec in specs]
