"""The lines of a run's journal, one class each. Knows what they say, not when they are written."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

__all__ = [
    "Decision", "Ended", "Event", "Failed", "Finished", "Header", "Item", "Items", "RolledBack",
    "StreamEnd", "Undone", "event_of",
]  # fmt: skip


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def line(self) -> bytes:
        # Python's own JSON, which knows NaN, long integers and half characters.
        text = json.dumps(self.model_dump(), separators=(",", ":"), default=datetime.isoformat)
        return text.encode() + b"\n"


class Header(_Line):
    """Of what run the journal is."""

    kind: Literal["run"] = "run"
    version: Literal[1] = 1
    workflow: str
    shape: str
    config: dict[str, str]
    """A digest of each field, for values may be secret."""
    run_id: str
    started_at: datetime
    state: dict[str, Any] = {}
    """What the run began with."""

    def differences(self, other: Header) -> str | None:
        """What forbids to go on with the other's journal, in words."""
        if self.workflow != other.workflow:
            return f"it is of the workflow `{other.workflow}`"
        if self.shape != other.shape:
            return "its workflow had other stages"
        fields = sorted(
            name
            for name in {*self.config, *other.config}
            if self.config.get(name) != other.config.get(name)
        )
        if fields:
            return f"its configuration was another one ({', '.join(fields)})"
        if self.state and self.state != other.state:
            return "it began with another state"
        return None


class Finished(_Line):
    """A stage is done."""

    kind: Literal["finished"] = "finished"
    path: str
    seconds: float
    elapsed: float
    """Seconds of the whole run until now, in all processes."""
    set: dict[str, dict[str, Any]] = {}
    removed: list[tuple[str, str]] = []


class Decision(_Line):
    """A conditional has chosen."""

    kind: Literal["decision"] = "decision"
    path: str
    value: bool


class Items(_Line):
    """A loop knows what it goes over."""

    kind: Literal["items"] = "items"
    path: str
    count: int
    digest: str
    values: list[Any] | None = None
    """None where they are no plain values."""


class Item(_Line):
    """A stream has given an item."""

    kind: Literal["item"] = "item"
    path: str
    digest: str
    value: Any = None
    """None too where it is no plain value."""


class StreamEnd(_Line):
    """A stream has no more."""

    kind: Literal["stream_end"] = "stream_end"
    path: str
    count: int


class Failed(_Line):
    """Something failed; what ran is being undone."""

    kind: Literal["failed"] = "failed"
    path: str
    message: str
    begun: list[str]
    """What had begun and was not finished, in the order in which it ended."""


class Undone(_Line):
    """A stage is undone, or could not be."""

    kind: Literal["undone"] = "undone"
    path: str
    error: str | None = None


class RolledBack(_Line):
    """All that ran is undone."""

    kind: Literal["rolled_back"] = "rolled_back"


class Ended(_Line):
    """The run is over."""

    kind: Literal["done"] = "done"
    elapsed: float


Event = (
    Finished | Decision | Items | Item | StreamEnd | Failed | Undone | RolledBack | Ended
)  # fmt: skip
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


def event_of(line: bytes) -> Event:
    """The event of a line.

    Raises:
        ValueError: it is none.
    """
    return _EVENT.validate_python(json.loads(line))
