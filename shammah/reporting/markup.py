"""HTML that cannot be broken by what is in it: text is escaped wherever it is put in.

Only `tag` and `raw` make `Markup`; everything else that is given to them is text.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

VOID = frozenset({"meta", "br", "hr", "path", "line", "rect", "circle", "polyline"})
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


class Markup(str):
    """Finished HTML."""

    __slots__ = ()


Child = str | Markup | None | Iterable["Child"]


def tag(_name: str, *children: Child, **attributes: str | int | float | None) -> Markup:
    """An element. `class_` and `data_x` are the attributes `class` and `data-x`; None leaves one
    out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if _name in VOID:
        return Markup(
            f"<{_name}{given}>" if _name in ("meta", "br", "hr") else f"<{_name}{given}/>"
        )
    return Markup(f"<{_name}{given}>{joined(*children)}</{_name}>")


def joined(*children: Child) -> Markup:
    """Several things one after the other."""
    return Markup("".join(_html(child) for child in children))


def raw(text: str) -> Markup:
    """Text that is HTML already: only for what the program itself wrote."""
    return Markup(text)


def escaped(text: str) -> str:
    """Text for an element or a quoted attribute; what HTML has no place for becomes U+FFFD."""
    whole = text.encode("utf-8", "replace").decode()
    return html.escape(_CONTROL.sub("�", whole.replace("\r\n", "\n").replace("\r", "\n")))


def _html(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str):
        return escaped(child)
    return "".join(_html(one) for one in child)
