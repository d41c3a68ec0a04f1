"""What a run's rewards, environments and teachers are called, to tell a checkpoint of others apart.

A name is the same in every process that runs the same program. Of a function it is where it stands,
not what is in it: two lambdas of one function have one name, and what a closure holds is not seen.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from shammah.ports.sampling_client import Identified


def named(thing: Any) -> str:
    """What can be known of a callable, a client or a value.

    What is `Identified` says it itself; a partial is its function with what was given, a dataclass
    its fields that count in comparisons, a method its object and its name. Of any other object it
    is the class alone.
    """
    if isinstance(thing, type):
        return _place(thing)
    if isinstance(thing, Identified):
        return f"{_place(type(thing))} {thing.identity()}"
    if isinstance(thing, Enum):
        return f"{_place(type(thing))}.{thing.name}"
    if thing is None or isinstance(thing, bool | int | float | complex | str | bytes | Path):
        return repr(thing)
    if isinstance(thing, functools.partial):
        return _call(named(thing.func), thing.args, thing.keywords)
    if isinstance(thing, np.ndarray):
        digest = hashlib.sha256(np.ascontiguousarray(thing).tobytes()).hexdigest()
        return f"{thing.dtype}{thing.shape} {digest}"
    if isinstance(thing, Mapping):
        return _call("mapping", (), {repr(key): value for key, value in thing.items()})
    if isinstance(thing, list | tuple):
        return _call("sequence", thing, {})
    if isinstance(thing, set | frozenset):
        return _call("set", (), {named(each): True for each in thing})
    if (owner := getattr(thing, "__self__", None)) is not None and hasattr(thing, "__func__"):
        return f"{named(owner)}.{thing.__func__.__name__}"
    if is_dataclass(thing):
        given = {each.name: getattr(thing, each.name) for each in fields(thing) if each.compare}
        return _call(_place(type(thing)), (), given)
    return _place(thing if hasattr(thing, "__qualname__") else type(thing))


def _place(made: Any) -> str:
    return f"{getattr(made, '__module__', None)}.{made.__qualname__}"


def _call(name: str, given: Any, named_ones: Mapping[str, Any]) -> str:
    parts = [named(each) for each in given]
    parts += [f"{key}={named(value)}" for key, value in sorted(named_ones.items())]
    return f"{name}({', '.join(parts)})"
