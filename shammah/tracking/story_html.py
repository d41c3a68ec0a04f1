"""A story as HTML that folds: `<details>` within `<details>`, no script, nothing from outside.

Everything that was told is escaped. Colours are shades of the page's own, so that it can stand in a
light page and in a dark one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from shammah.tracking.plot import number_text
from shammah.tracking.story import Cell, Scope, Table, Talk, Text

__all__ = ["STYLE", "folded", "story_html", "story_page"]

OPEN = 2
"""Scopes so deep are unfolded at first."""

STYLE = """\
.story{line-height:1.45;overflow-wrap:anywhere}
.story details{border-left:2px solid rgba(128,128,128,.35);margin:.35em 0;padding:0 0 0 .8em}
.story summary{cursor:pointer;margin-left:-.5em;font-weight:600}
.story summary small,.story figcaption small{font-weight:400;opacity:.7}
.story p{margin:.4em 0;white-space:pre-wrap}
.story figure{margin:.5em 0;overflow-x:auto}
.story figcaption{font-weight:600}
.story table{border-collapse:collapse;font-size:.95em}
.story th,.story td{padding:.15em .7em .15em 0;text-align:left;vertical-align:top}
.story th{border-bottom:1px solid rgba(128,128,128,.5)}
.story td.n{text-align:right;font-variant-numeric:tabular-nums}
.story .m{display:flex;gap:.8em;padding:.2em .5em;border-radius:.4em}
.story .m b{flex:0 0 5.5em;font-weight:400;opacity:.7}
.story .m span{white-space:pre-wrap;min-width:0}
.story .assistant{background:rgba(128,128,128,.14)}
"""


def story_html(story: Sequence[Scope], *, depth: int = OPEN) -> str:
    """A piece of a page, with its style.

    Args:
        story: as `read_story` gives it.
        depth: how many scopes within one another are unfolded at first.
    """
    return f"<style>{STYLE}</style>{folded(story, depth=depth)}"


def folded(story: Sequence[Scope], *, depth: int = OPEN) -> str:
    """`story_html` for a page that has `STYLE` itself."""
    parts = "".join(_scope(scope, depth) for scope in story)
    return f'<section class="story">{parts}</section>'


def story_page(story: Sequence[Scope], title: str) -> str:
    """A page of its own, light or dark as the reader's system is."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>:root{{color-scheme:light dark}}"
        "body{font:16px system-ui,sans-serif;max-width:60em;margin:1em auto;padding:0 1em}</style>"
        f"</head><body><h1>{escape(title)}</h1>{story_html(story)}</body></html>\n"
    )


def _scope(scope: Scope, depth: int) -> str:
    inner = "".join(_entry(entry, depth - 1) for entry in scope.entries)
    if not scope.title:
        return inner
    told = f"{scope.seconds:.1f} s" if scope.seconds is not None else "not ended"
    if scope.error is not None:
        told += f", {scope.error}"
    unfolded = " open" if depth > 0 else ""
    head = f"<summary>{escape(scope.title)} <small>{escape(told)}</small></summary>"
    return f"<details{unfolded}>{head}{inner}</details>"


def _entry(entry: Text | Table | Talk | Scope, depth: int) -> str:
    match entry:
        case Scope():
            return _scope(entry, depth)
        case Text():
            return f"<p>{escape(entry.text)}</p>"
        case Table():
            heads = "".join(f"<th>{escape(name)}</th>" for name in entry.columns)
            rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in entry.rows)
            return (
                f"<figure>{_caption(entry.title)}<table><thead><tr>{heads}</tr></thead>"
                f"<tbody>{rows}</tbody></table></figure>"
            )
        case Talk():
            told = "" if entry.reward is None else f"reward {number_text(entry.reward)}"
            messages = "".join(map(_message, entry.messages))
            return f"<figure>{_caption(entry.title, told)}{messages}</figure>"


def _caption(title: str, told: str = "") -> str:
    small = f" <small>{escape(told)}</small>" if told else ""
    return f"<figcaption>{escape(title)}{small}</figcaption>" if title or told else ""


def _cell(value: Cell) -> str:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return f"<td>{escape(cell_text(value))}</td>"
    return f'<td class="n">{escape(cell_text(value))}</td>'


def _message(message: Mapping[str, Any]) -> str:
    role = str(message.get("role", ""))
    kind = "m assistant" if role == "assistant" else "m"
    text = escape(message_text(message))
    return f'<div class="{kind}"><b>{escape(role)}</b><span>{text}</span></div>'


def cell_text(value: Cell) -> str:
    """A cell as it is read."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else number_text(value)


def message_text(message: Mapping[str, Any]) -> str:
    """What a message says, with its calls of tools as JSON; pictures are named."""
    content = message.get("content")
    parts = [content] if isinstance(content, str) else []
    if isinstance(content, list):
        parts = [_part(part) for part in content]
    parts += [json.dumps(call, ensure_ascii=False) for call in message.get("tool_calls") or ()]
    return "\n".join(part for part in parts if part)


def _part(part: Any) -> str:
    if not isinstance(part, Mapping):
        return str(part)
    for key in ("text", "thinking"):
        if isinstance(part.get(key), str):
            return str(part[key])
    return f"[{part.get('type', 'part')}]"
