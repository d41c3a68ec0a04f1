"""The story of an evaluation: its figures, and some of its examples to read."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from itertools import islice
from pathlib import Path
from statistics import fmean

from shammah.evaluation.report import Report
from shammah.evaluation.rows import EvaluationRow
from shammah.tracking.story import STORY, StoryWriter

SHOWN = 50
"""Examples that are told; `rows.jsonl` has all of them."""


def write_story(folder: Path, title: str, report: Report, rows: Iterable[EvaluationRow]) -> None:
    """Tell a run's story into its folder, instead of what was told before it was resumed.

    Args:
        rows: of the run; the first ones are read.
    """
    (folder / STORY).unlink(missing_ok=True)
    with closing(StoryWriter(folder / STORY)) as story, story.scope(title):
        with story.scope("Figures"):
            story.table(
                ("scorer", "scored", "mean", "from", "to", "passed"),
                [
                    (
                        metric.name, metric.scored, metric.mean, metric.interval.low,
                        metric.interval.high, metric.pass_rate,
                    )
                    for metric in report.metrics
                ],
            )  # fmt: skip
            story.text(f"{report.examples} examples, {report.failed} of them with an error.")
        with story.scope("Examples"):
            for row in islice(rows, SHOWN):
                _tell(story, row)
            if report.examples > SHOWN:
                story.text(f"{report.examples - SHOWN} more are in rows.jsonl.")


def _tell(story: StoryWriter, row: EvaluationRow) -> None:
    """One example; its reward is the mean of its scores."""
    with story.scope(f"Example {row.index}"):
        values = {name: score.value for name, score in row.scores.items()}
        said = [] if row.predicted is None else [{"role": "assistant", "content": row.predicted}]
        story.conversation([*row.input, *said], reward=fmean(values.values()) if values else None)
        if row.expected is not None:
            story.text(f"Expected: {row.expected}")
        if len(values) > 1:
            story.table(("scorer", "score"), values.items())
        if row.error is not None:
            story.text(f"{row.error.stage} failed: {row.error.kind}: {row.error.message}")
