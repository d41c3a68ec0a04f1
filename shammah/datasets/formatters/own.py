"""The user's own function as a formatter: a callable, `module:function` or `file.py:function`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from shammah.datasets.formatters.base import ChatExample
from shammah.datasets.formatters.chat import conversation
from shammah.errors import InputError
from shammah.own_code import own_function
from shammah.ports.dataset_store import Row

KEYS = ("messages", "rejected", "metadata")


@dataclass(frozen=True, slots=True)
class Own:
    """A function that takes a row (and options by name) and gives a ChatExample, or a mapping with
    `messages` and, if wanted, `rejected` and `metadata`, as JSON would have them.

    Whatever it raises makes the row a bad one.
    """

    name: str
    function: Callable[..., Any]
    options: Mapping[str, str]

    def __call__(self, row: Row) -> ChatExample:
        try:
            made = self.function(row, **self.options)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{self.name} failed: {error!r}") from error
        if isinstance(made, ChatExample):
            return made
        if not isinstance(made, Mapping):
            raise InputError(
                f"{self.name} gave {type(made).__name__}, not a ChatExample or a mapping"
            )
        unknown = [str(key) for key in made if key not in KEYS]
        if unknown:
            raise InputError(
                f"{self.name} gave {', '.join(unknown)}; it can give {', '.join(KEYS)}"
            )
        rejected, metadata = made.get("rejected"), made.get("metadata") or {}
        if not isinstance(metadata, Mapping):
            raise InputError(f"{self.name} gave metadata that is no mapping")
        return ChatExample(
            conversation(_list(made.get("messages")), "messages"),
            None if rejected is None else conversation(_list(rejected), "rejected"),
            dict(metadata),
        )


def own_formatter(name: str, options: Mapping[str, str]) -> Own:
    """The function that `module:function` or `file.py:function` names.

    Raises:
        UsageError: there is none, or it cannot be called.
    """
    return Own(name, own_function(name), dict(options))


def _list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
