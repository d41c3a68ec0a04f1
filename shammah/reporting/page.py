"""A report as one HTML file that needs nothing beside it.

Styles and the small script lie inside; a content policy lets the browser run and load nothing
else, whatever a text in the report says.
"""

from __future__ import annotations

import base64
import hashlib
import time
from importlib import resources

from shammah.reporting.contents import Contents
from shammah.reporting.markup import Markup, joined, raw, tag
from shammah.reporting.sections import sections
from shammah.reporting.wording import moment
from shammah.tracking.story_html import STYLE
from shammah.version import VERSION

KINDS = {"run": "Training run", "adapter": "Adapter", "evaluation": "Evaluation"}


def page(contents: Contents, *, now: float | None = None) -> str:
    """The whole file.

    Args:
        now: when it is written, in seconds since 1970; None is this moment.
    """
    style, script = _own("report.css") + STYLE, _own("report.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    found = sections(contents)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="robots", content="noindex"),
        tag("title", f"{contents.title} – {KINDS[contents.kind].lower()}"),
        raw(f"<style>{style}</style>"),
    )
    body = tag(
        "body",
        tag(
            "header",
            tag("p", KINDS[contents.kind], class_="kind"),
            tag("h1", contents.title),
            tag("p", [tag("span", fact) for fact in contents.facts], class_="facts"),
            _figures(contents),
            tag("nav", [tag("a", title, href=f"#{name}") for name, title, _ in found]),
        ),
        tag(
            "main",
            [tag("section", tag("h2", title), inner, id=name) for name, title, inner in found],
        ),
        tag("footer", _footer(contents, time.time() if now is None else now)),
        raw(f"<script>{script}</script>"),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _figures(contents: Contents) -> Markup | None:
    if not contents.figures:
        return None
    cells = [
        tag("div", tag("dt", label), tag("dd", value, tag("small", remark) if remark else None))
        for label, value, remark in contents.figures
    ]
    return tag("dl", cells, class_="figures")


def _footer(contents: Contents, now: float) -> Markup:
    versions = ", ".join(f"{name} {value}" for name, value in contents.versions.items())
    said = f"Made with {versions}. " if versions else ""
    return joined(f"{said}Written by shammah {VERSION}, {moment(now)}.")


def _own(name: str) -> str:
    return resources.files("shammah.reporting").joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
