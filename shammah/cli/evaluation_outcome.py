"""What `shammah eval` shows in the end, as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shammah.cli.output import coloured
from shammah.evaluation.comparison import Comparison, Flip
from shammah.evaluation.quality import QualityResult
from shammah.evaluation.report import Report, Spread, repeated
from shammah.repl import wording

BASE = "base"
"""What the base model without an adapter is called."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one command: a run, or repeats of one, and another run beside it."""

    folder: Path
    adapter: str | None
    reports: tuple[Report, ...]
    against: str | None = None
    before: Report | None = None
    comparison: Comparison | None = None
    flips: tuple[Flip, ...] = ()
    quality: QualityResult | None = None

    @property
    def repeats(self) -> dict[str, Spread] | None:
        return repeated(self.reports) if len(self.reports) > 1 else None

    def figures(self) -> Mapping[str, float]:
        """What targets are held against: of repeated runs the means."""
        repeats = self.repeats
        if repeats is None:
            return self.reports[0].figures()
        return {name: spread.mean for name, spread in repeats.items()}

    def to_dict(self) -> dict[str, Any]:
        repeats = self.repeats
        return {
            "folder": str(self.folder),
            "adapter": self.adapter,
            "report": self.reports[0].to_dict(),
            "repeats": None
            if repeats is None
            else {name: wording.finite(asdict(spread)) for name, spread in repeats.items()},
            "against": self.against,
            "against_report": self.before.to_dict() if self.before else None,
            "comparison": self.comparison.to_dict() if self.comparison else None,
            "flips": [wording.flip_record(flip) for flip in self.flips],
            "quality": self.quality.to_dict() if self.quality else None,
        }

    def text(self) -> str:
        colours = coloured()
        parts = [wording.evaluation_report(self.reports[0], coloured=colours)]
        repeats = self.repeats
        if repeats is not None:
            shown = [metric.name for metric in self.reports[0].metrics] + ["overall_pass_rate"]
            spreads = {name: repeats[name] for name in shown}
            parts.append(wording.evaluation_spread(spreads, coloured=colours))
        if self.comparison is not None:
            names = (self.against or BASE, self.adapter or BASE)
            parts.append(wording.evaluation_comparison(self.comparison, names, coloured=colours))
            if self.flips:
                parts.append(wording.evaluation_flips(self.flips, names, coloured=colours))
        if self.quality is not None:
            parts.append(wording.quality(self.quality, coloured=colours))
        return "\n\n".join(parts)
