"""Examples asked and scored, a bounded number at once, with a row for each that is never lost.

1. Examples are read in chunks on a thread of their own.
2. So many at once are answered and scored; whatever goes wrong with one is its row's error.
3. A row is kept before it is counted, and its example is never asked again.

Knows completers, scorers and rows; no model and no figure.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from shammah.datasets.formatters.base import ChatExample
from shammah.datasets.streaming import streamed
from shammah.errors import ShammahError, UsageError
from shammah.evaluation.results import Results
from shammah.evaluation.rows import EvaluationRow, RowError, checksum
from shammah.evaluation.run_folder import RunFolder
from shammah.evaluation.scorer import Score, Scorer
from shammah.messages import Conversation, Message, to_dicts
from shammah.ports.completer import BatchCompleter, MessageCompleter

log = logging.getLogger("shammah")

Numbered = tuple[int, ChatExample]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: `done` examples, of which `resumed` were there when it began."""

    done: int
    resumed: int
    results: Results
    seconds: float

    @property
    def per_second(self) -> float:
        """Examples a second since it began."""
        return (self.done - self.resumed) / self.seconds if self.seconds else 0.0


async def evaluate(
    examples: Iterable[ChatExample],
    completer: MessageCompleter,
    scorers: Sequence[Scorer],
    *,
    run: RunFolder | None = None,
    concurrency: int = 1,
    on_row: Callable[[EvaluationRow], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Results:
    """Ask every example and score its answer.

    An answer or a score that fails is a row with an error, and the run goes on. Retrying is the
    completer's business.

    Args:
        examples: gone through once, the same in each run that is resumed.
        run: where rows are kept, and which are there already; without it they are only counted.
        concurrency: examples asked at once of a model behind a server. A completer that answers
            several together (`BatchCompleter`) is given them as it takes them, and an answer's
            seconds are then those of all that were answered beside it.
        on_row, on_progress: called after each row.

    Raises:
        UsageError: two scorers have one name, or an example that is done is another one now.
        InputError, DatasetError: the examples cannot be read; the rows so far are kept.
        StorageError: a row cannot be kept.
    """
    names = [scorer.name for scorer in scorers]
    if len(set(names)) < len(names) or concurrency < 1:
        raise UsageError(
            f"{concurrency} examples cannot be asked at once."
            if concurrency < 1
            else f"Two scorers have the same name: {', '.join(sorted(names))}."
        )
    results = run.results if run is not None else Results(names)
    resumed, began = len(results), time.monotonic()
    waiting = _waiting(examples, run)
    reading = asyncio.Lock()

    def keep(row: EvaluationRow) -> None:
        if run is not None:
            run.append(row)
        else:
            results.add(row)
        if on_row is not None:
            on_row(row)
        if on_progress is not None:
            on_progress(Progress(len(results), resumed, results, time.monotonic() - began))

    async def ask_in_turn() -> None:
        while True:
            async with reading:
                item = await anext(waiting, None)
            if item is None:
                return
            keep(await _row(*item, await _answer(completer, item[1]), scorers))

    if isinstance(completer, BatchCompleter):
        async for item, answer in _answers_together(completer, waiting):
            keep(await _row(*item, answer, scorers))
        return results
    tasks = [asyncio.create_task(ask_in_turn()) for _ in range(concurrency)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return results


async def _waiting(
    examples: Iterable[ChatExample], run: RunFolder | None
) -> AsyncIterator[Numbered]:
    """The examples that are not done, by number."""
    index = -1
    asked = run.asked if run is not None else ()
    async for example in streamed(iter(examples)):
        index += 1
        before = asked[index] if index < len(asked) else 0
        if not before:
            yield index, example
        elif before != (checksum(to_dicts(example.prompt), _expected(example)) or 1):
            raise UsageError(
                f"Example {index} ({example.place}) is not the one that was asked before.",
                hint="The data has changed: evaluate it into another folder.",
            )


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came of asking, and after how many seconds."""

    said: Message | Exception
    seconds: float


async def _answer(completer: MessageCompleter, example: ChatExample) -> _Answer:
    began = time.perf_counter()
    said: Message | Exception
    try:
        said = await completer.complete(example.prompt)
    except Exception as problem:
        said = problem
    return _Answer(said, time.perf_counter() - began)


async def _answers_together(
    completer: BatchCompleter, waiting: AsyncIterator[Numbered]
) -> AsyncIterator[tuple[Numbered, _Answer]]:
    """The answers of a completer that takes several at once, whichever is there first."""
    asked: dict[int, tuple[Numbered, float]] = {}

    async def prompts() -> AsyncIterator[Conversation]:
        number = 0
        async for item in waiting:
            asked[number] = item, time.perf_counter()
            number += 1
            yield item[1].prompt

    async with aclosing(completer.complete_all(prompts())) as answers:  # type: ignore[type-var]
        async for number, said in answers:
            item, began = asked.pop(number)
            yield item, _Answer(said, time.perf_counter() - began)


async def _row(
    index: int, example: ChatExample, answer: _Answer, scorers: Sequence[Scorer]
) -> EvaluationRow:
    predicted: str | None = None
    error: RowError | None = None
    scores: dict[str, Score] = {}
    expected = _expected(example)
    if isinstance(answer.said, Exception):
        error = _error("answer", answer.said, index)
    else:
        predicted = answer.said.text
        # Who judges an answer has to know what was asked.
        asked = {"prompt": example.prompt[-1].text, **example.metadata}
        for scorer in scorers:
            try:
                scores[scorer.name] = await scorer.score(predicted, expected or "", asked)
            except Exception as problem:
                error = error or _error(scorer.name, problem, index)
    return EvaluationRow(
        index=index,
        place=example.place,
        input=to_dicts(example.prompt),
        expected=expected,
        predicted=predicted,
        scores=scores,
        metadata=example.metadata,
        seconds=answer.seconds,
        error=error,
    )


def _expected(example: ChatExample) -> str | None:
    return example.answer.text if example.answer is not None else None


def _error(stage: str, problem: Exception, index: int) -> RowError:
    """What a row says of a failure; the log has the traceback of what is no user's business."""
    if isinstance(problem, ShammahError):
        message = str(problem)
    else:
        message = str(problem) or type(problem).__name__
        log.warning("example %d: %s failed", index, stage, exc_info=problem)
    return RowError(stage, type(problem).__name__, message)
