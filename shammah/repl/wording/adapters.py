"""What is said about adapters: the same words in the chat and in the shell.

Turns values into text. Knows nothing of prompts or of where the text goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shammah.adapters.merge_methods import EXACT
from shammah.repl import text
from shammah.repl.text import counted, one_line, size, when
from shammah.repl.wording.feedback import MARKS

if TYPE_CHECKING:
    from shammah.adapters.domains import Route
    from shammah.adapters.library import Adapter
    from shammah.adapters.metadata import AdapterMetadata, MergeRecord
    from shammah.adapters.pruning import Removal
    from shammah.assistant import AdapterInfo
    from shammah.assistant.views import AdapterComparison, AdapterRecord, AnswerComparison
    from shammah.errors import ShammahError

_LAYERS = 5


def adapters_table(rows: Sequence[AdapterInfo], *, coloured: bool) -> str:
    """One line for each; the active one is marked. Domains are shown where there are some."""
    some = any(row.domain for row in rows)
    domain = ("domain",) if some else ()
    return text.table(
        ["", "adapter", *domain, "made", "lessons", "rank", "size", "loss", ""],
        [
            (
                "*" if row.active else "",
                row.name,
                *([row.domain or "-"] if some else []),
                when(row.created_at) if row.created_at else "-",
                f"{'?' if row.learned is None else row.learned}/{row.lessons}",
                row.rank if row.rank is not None else "-",
                size(row.size_bytes),
                f"{row.final_loss:.3f}" if row.final_loss is not None else "-",
                row.problem or _remark(row),
            )
            for row in rows
        ],
        coloured=coloured,
        right=tuple(range(3 + some, 7 + some)),
        whole=(1, *range(3 + some, 7 + some)),
    )


def _remark(row: AdapterInfo) -> str:
    if not row.compatible:
        return "for another base model"
    return "failed its checks" if row.failures else ""


def adapter_comparison(found: AdapterComparison, *, coloured: bool) -> str:
    """Two adapters side by side, and what lies between them."""
    columns = [_record(found.first), _record(found.second)]
    apart = found.difference
    shown = text.table(
        ["", apart.first or "base model", apart.second],
        [(label, columns[0].get(label, "-"), value) for label, value in columns[1].items()],
        coloured=coloured,
        whole=(0,),
    )
    parts = [shown, f"\nDifference in weights: {apart.norm:.3g}"]
    largest = sorted(apart.layers, key=lambda layer: layer.difference, reverse=True)[:_LAYERS]
    parts.append(
        text.table(
            ["layer (the most changed)", "before", "after", "difference"],
            [
                (item.layer, f"{item.first:.3g}", f"{item.second:.3g}", f"{item.difference:.3g}")
                for item in largest
            ],
            coloured=coloured,
            right=(1, 2, 3),
        )
    )
    for title, lessons in (("Lessons added", apart.added), ("Lessons gone", apart.removed)):
        if lessons:
            parts.append(f"\n{title}:")
            parts += [f"  {one_line(item.query)} → {one_line(item.aim)}" for item in lessons]
    return "\n".join(parts)


def answer_comparison(
    found: AdapterComparison, answers: AnswerComparison, *, coloured: bool
) -> str:
    """The answers to their lessons in which two adapters differ."""
    if not answers.lessons:
        return "\nNeither was taught a lesson to compare answers to."
    asked = f"{counted(answers.asked, 'lesson')} asked"
    if answers.asked < answers.lessons:
        asked += f" ({answers.lessons} in all)"
    if not answers.differing:
        return f"\nNone answered differently of {asked}."
    width = 2 * text.cell(8, 3)
    names = (found.difference.first or "base model", found.difference.second)
    shown = text.table(
        ["lesson", *names],
        [
            (
                one_line(pair.question, width),
                _answer(pair.first, pair.taught, width),
                _answer(pair.second, pair.taught, width),
            )
            for pair in answers.differing
        ],
        coloured=coloured,
    )
    return f"\nAnswered differently, {len(answers.differing)} of {asked}:\n{shown}"


def no_answers(error: ShammahError) -> str:
    """Why a comparison is without answers."""
    return f"Their answers cannot be compared: {error}"


def _answer(answer: str, taught: str, width: int) -> str:
    mark = " (as taught)" if answer.split() == taught.split() else ""
    return one_line(answer, width) + mark


def _record(record: AdapterRecord | None) -> dict[str, str]:
    if record is None:
        return {}
    info, metrics = record.info, record.metrics
    ratings = ", ".join(
        f"{record.ratings[rating]} {rating}" for rating in MARKS if rating in record.ratings
    )
    rows = {
        "domain": info.domain or "none",
        "made": when(info.created_at) if info.created_at else "-",
        "lessons learned": f"{info.learned} of {info.lessons}"
        if info.learned is not None
        else f"those of its parents: {info.lessons}",
        "loss": f"{info.final_loss:.3f}" if info.final_loss is not None else "-",
        "rank, size": f"{info.rank}, {size(info.size_bytes)}",
        "used in": counted(record.answers, "answer"),
        "ratings of those": ratings or "none",
        "checks": "; ".join(info.failures)
        or ("passed" if info.origin == "trained" else f"none ({info.origin})"),
    }
    for label, part, whole in (
        ("earlier lessons held", "earlier_held", "earlier"),
        ("other answers unchanged", "other_answers_unchanged", "other_answers"),
    ):
        if metrics.get(whole):
            rows[label] = f"{metrics[part]:g} of {metrics[whole]:g}"
    return rows


def adapter_details(adapter: Adapter, *, coloured: bool) -> str:
    """Everything about one adapter.

    Raises:
        AdapterInvalidError: its description is missing or broken.
    """
    about = adapter.require_metadata()
    lines: list[tuple[str, object]] = [
        ("adapter", adapter.name),
        ("file", adapter.path),
        ("size", f"{size(adapter.size)}, {about.parameters:,} parameters"),
        ("made", f"{when(about.created_at)}, {about.origin}"),
        ("base model", f"{about.base_model} ({about.base_fingerprint[:16]})"),
        ("LoRA", f"rank {about.lora.rank}, alpha {about.lora.alpha:g}, "
                 f"{', '.join(about.lora.target_modules)}"),
        *_origin(about),
        *_rounds(about),
        ("domain", about.domain or "none"),
    ]  # fmt: skip
    lines += [(name.replace("_", " "), f"{value:g}") for name, value in about.metrics.items()]
    lines += [("failed", failure) for failure in about.failures]
    lines += [("sha256", about.sha256)]
    shown = text.pairs(lines, coloured=coloured)
    if not about.lessons:
        return shown
    lessons = text.table(
        [
            "learned" if about.merge is None else "by a parent",
            "weight",
            "question",
            "answer taught",
        ],
        [
            (
                "yes" if lesson.learned else "no",
                f"{lesson.weight:g}",
                one_line(lesson.query, text.cell(20, 2)),
                one_line(lesson.aim, text.cell(20, 2)),
            )
            for lesson in about.lessons
        ],
        coloured=coloured,
        right=(1,),
    )
    return f"{shown}\n\n{lessons}"


def without_round(adapter: Adapter, *, active: bool) -> str:
    """What `adapters without` did."""
    how = "It answers from now on." if active else f"/adapters load {adapter.name} uses it."
    return (
        f"{adapter.name} is the same without that round. {how}\n"
        "Its lessons still stand, and the next job may teach them again: /feedback delete N takes "
        "one back."
    )


def _rounds(about: AdapterMetadata) -> list[tuple[str, object]]:
    return [
        (f"round {number}", f"rank {part.rank}, {counted(len(part.lessons), 'lesson')}")
        for number, part in enumerate(about.rounds, start=1)
    ]


def _origin(about: AdapterMetadata) -> list[tuple[str, object]]:
    if about.merge is None:
        return [("parent", about.parent or "none")]
    merge = about.merge
    density = f", density {merge.density:g}" if merge.density is not None else ""
    return [
        ("merged from", merged_sum(merge)),
        ("method", f"{merge.method}{density}"),
        ("off the weighted sum", f"{merge.relative_error:.2%}"),
    ]


def merged_sum(merge: MergeRecord) -> str:
    """`0.7 x first + 0.3 x second`."""
    return " + ".join(f"{parent.weight:.4g} x {parent.name}" for parent in merge.parents)


def merged(adapter: Adapter) -> str:
    """What `merge` made."""
    merge = adapter.require_metadata().merge
    assert merge is not None
    return f"{adapter.name} is {merged_sum(merge)} ({merge.method}, rank {merge.rank})."


def pruned(removed: Sequence[Removal], left: int, *, dry_run: bool) -> str:
    """What `adapters prune` did, or would do."""
    if not removed:
        return (
            f"Nothing to remove, {counted(left, 'adapter')} kept: they are few enough, in use, or "
            "what the active one was made from."
        )
    lines = [f"{removal.name}: {removal.reason}" for removal in removed]
    done = "would be removed" if dry_run else "removed"
    lines.append(f"{counted(len(removed), 'adapter')} {done}, {left} kept.")
    return "\n".join(lines)


def inexact(adapter: Adapter) -> str | None:
    """A warning, where a merged adapter is not the weighted sum of those it was made of."""
    merge = adapter.require_metadata().merge
    if merge is None or merge.relative_error < EXACT:
        return None
    better = "cat is exact" if merge.method == "svd" else "cat is exact, svd the nearest of a rank"
    return (
        f"Inexact: what it changes is {merge.relative_error:.1%} off the weighted sum of what the "
        f"others change ({better}). /adapters compare shows its answers."
    )


def routed(route: Route) -> str:
    """Under an answer that another than the active adapter gave."""
    return f"{route.domain}: answered by {route.adapter}"


def domain_set(adapter: Adapter) -> str:
    """What `adapters domain` did or found."""
    about = adapter.require_metadata()
    if about.domain is None:
        return f"{adapter.name} is for no domain."
    said = f"{adapter.name} is for {about.domain}."
    if not about.lessons:
        said += " It has no lessons to compare questions with, so none is routed to it."
    elif about.failures:
        said += " It failed its checks, so no question is routed to it."
    return said
