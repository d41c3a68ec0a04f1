"""Plain values: what JSON gives back as it was written, and short names for everything else.

Knows nothing of stages; a workflow keeps its state in these.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

__all__ = ["digest", "is_plain", "plain", "written"]


def plain(value: Any, where: str = "it") -> Any:
    """The value as JSON would give it back: lists for tuples, Python's own numbers and texts.

    Args:
        where: what the value is called if it is refused.

    Raises:
        TypeError: there is something in it that JSON has no word for, or a key that is no text.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int | float):
        return float(value) if isinstance(value, float) else int(value)
    if isinstance(value, list | tuple):
        return [plain(each, f"{where}[{number}]") for number, each in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}, which is no text")
        return {str(key): plain(each, f"{where}[{key!r}]") for key, each in value.items()}
    raise TypeError(f"{where} is a {type(value).__name__}, which JSON cannot hold")


def is_plain(value: Any) -> bool:
    """Whether JSON gives it back exactly: no tuples, no classes derived from Python's own."""
    if isinstance(value, list):
        return type(value) is list and all(map(is_plain, value))
    if isinstance(value, dict):
        return type(value) is dict and all(
            type(key) is str and is_plain(each) for key, each in value.items()
        )
    return value is None or type(value) in (bool, int, float, str)


def written(value: Any) -> str:
    """A plain value as JSON. Numbers that are none (NaN, infinity) are written as Python does."""
    return json.dumps(value, separators=(",", ":"))


def digest(value: Any) -> str:
    """16 hexadecimal digits that name a value, the same in every process.

    Of objects that pydantic cannot write down (a model, a function) only the type counts.
    """
    from pydantic_core import to_jsonable_python

    known = to_jsonable_python(
        value, fallback=lambda each: type(each).__qualname__, inf_nan_mode="constants"
    )
    text = json.dumps(known, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
