"""What a row of steps has set so far, and what each of them changed of it.

Everything is held as JSON texts beside the live context: a text is what the journal keeps, two of
them tell whether a value changed, and contexts of earlier moments share those that did not. Knows
nothing of the order of stages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias

from shammah.errors import WorkflowError
from shammah.recipes.workflows.context import Context, Stop
from shammah.recipes.workflows.values import is_plain, plain, written

__all__ = ["Branch", "Changes", "Key"]

Key: TypeAlias = tuple[str, str]
"""`state`, `metrics` or `artifacts`, and the name there."""
KINDS = ("state", "metrics", "artifacts")


@dataclass(frozen=True)
class Changes:
    """What a stage set and what it took away."""

    set: Mapping[Key, str] = field(default_factory=dict)
    """JSON texts."""
    removed: tuple[Key, ...] = ()


class Branch:
    """A context and what is known of it to be kept.

    Args:
        context: as its steps begin with it; what is in it already counts as kept.
    """

    def __init__(self, context: Context, texts: Mapping[Key, str] | None = None) -> None:
        self.context = context
        self.texts: dict[Key, str] = dict(texts or {})
        if texts is None:
            self.settle()

    def settle(self) -> Changes:
        """What changed since it was called last, which counts as kept from now on.

        Values become what JSON gives back, so that a run that is resumed sees the same.

        Raises:
            TypeError: a value is none that can be kept; all is as it was.
        """
        current = {
            (kind, name): self._text(kind, name, value)
            for kind in KINDS
            for name, value in getattr(self.context, kind).items()
        }
        changed = {key: text for key, text in current.items() if self.texts.get(key) != text}
        removed = tuple(key for key in self.texts if key not in current)
        changes = Changes(changed, removed)
        # Also what was set anew to something that is written alike: a tuple for a list.
        alike = {key: text for key, text in current.items() if not self._as_kept(*key)}
        self.apply(Changes({**alike, **changed}, removed))
        return changes

    def apply(self, changes: Changes) -> None:
        """Have what a stage changed before."""
        for kind, name in changes.removed:
            self.texts.pop((kind, name), None)
            getattr(self.context, kind).pop(name, None)
        for (kind, name), text in changes.set.items():
            self.texts[kind, name] = text
            getattr(self.context, kind)[name] = self._value(kind, text)

    def restore(self) -> None:
        """Forget what was set and not settled."""
        for kind, values in zip(KINDS, self._values(self.texts), strict=True):
            kept = getattr(self.context, kind)
            kept.clear()
            kept.update(values)

    def fork(self) -> Branch:
        """A copy that goes its own way; it is stopped where this one is."""
        return Branch(
            self.at(self.texts, self.context.item, Stop(above=self.context.stop)), self.texts
        )

    def at(self, texts: Mapping[Key, str], item: Any, stop: Stop) -> Context:
        """The context as it was with these texts."""
        state, metrics, artifacts = self._values(texts)
        context = self.context.copy(state=state, metrics=metrics, artifacts=artifacts, stop=stop)
        context.item = item
        return context

    def merge(self, forks: Sequence[tuple[str, Branch]]) -> None:
        """Have what the forks changed.

        Raises:
            WorkflowError: two of them changed one thing differently.
        """
        merged: dict[Key, tuple[str, str | None]] = {}
        for name, fork in forks:
            for key in (*fork.texts, *self.texts):
                text = fork.texts.get(key)
                if text == self.texts.get(key):
                    continue
                other, theirs = merged.setdefault(key, (name, text))
                if theirs != text:
                    raise WorkflowError(
                        f"The branches `{other}` and `{name}` set {_called(key)} differently.",
                        hint="Let each branch set a key of its own.",
                    )
        self.apply(
            Changes(
                {key: text for key, (_, text) in merged.items() if text is not None},
                tuple(key for key, (_, text) in merged.items() if text is None),
            )
        )

    @contextmanager
    def holding(self, item: Any) -> Iterator[None]:
        """`context.item` is this one while inside."""
        before, self.context.item = self.context.item, item
        try:
            yield
        finally:
            self.context.item = before

    def _values(
        self, texts: Mapping[Key, str]
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, Path]]:
        values: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
        for (kind, name), text in texts.items():
            values[kind][name] = self._value(kind, text)
        return values["state"], values["metrics"], values["artifacts"]

    def _value(self, kind: str, text: str) -> Any:
        value = json.loads(text)
        if kind != "artifacts":
            return value
        inside, folder = value.get("inside"), self.context.folder
        return Path(value["path"]) if inside is None or folder is None else folder / inside

    def _as_kept(self, kind: str, name: str) -> bool:
        value = getattr(self.context, kind)[name]
        return (kind == "state" and is_plain(value)) or (kind == "metrics" and type(value) is float)

    def _text(self, kind: str, name: str, value: Any) -> str:
        if not isinstance(name, str):
            raise TypeError(f"{kind} has the key {name!r}, which is no text")
        where = _called((kind, name))
        if kind == "metrics":
            if not isinstance(value, Real):
                raise TypeError(f"{where} is a {type(value).__name__} and no number")
            return written(float(value))
        if kind == "artifacts":
            if not isinstance(value, str | Path):
                raise TypeError(f"{where} is a {type(value).__name__} and no path")
            path, folder = Path(value), self.context.folder
            # What lies in the run's folder is known by where it is there: the folder may move.
            if folder is not None and path.absolute().is_relative_to(folder.absolute()):
                inside = path.absolute().relative_to(folder.absolute())
                return written({"inside": inside.as_posix()})
            return written({"path": str(path.absolute())})
        return written(plain(value, where))


def _called(key: Key) -> str:
    kind, name = key
    return f"{kind}[{name!r}]"
