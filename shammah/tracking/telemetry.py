"""Events inside a process: a name, measurements and metadata, and the handlers attached to it.

    def on_step(name, measurements, metadata): ...

    attach("my-plot", "training.step", on_step)

Handlers run where the event happens, in that thread, and so must be quick; what is slow belongs
behind a `loggers.multiplexer`. A handler that raises is detached and the log says so. Measurements
are numbers; metadata is everything else, and never what is said in a conversation. Knows nothing of
processes (a worker tells its supervisor by JSON lines) and sends nothing anywhere.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

__all__ = ["NAMES", "Handler", "attach", "attach_many", "attached", "detach", "emit", "span"]

log = logging.getLogger("shammah")

Number = int | float
Handler = Callable[[str, Mapping[str, Number], Mapping[str, Any]], object]
"""Is given the name, the measurements and the metadata of an event."""

NAMES: Mapping[str, str] = {
    "training.start": "a loop begins: steps, epochs, lessons, step (0, or that of its checkpoint)",
    "training.progress": "how far it is: step, steps, epoch, learned, seconds_left",
    "training.step": "one optimiser step: step, loss, learning_rate, grad_norm, tokens_per_second",
    "training.epoch": "an epoch is over: epoch, step",
    "training.checkpoint": "the state is on disk: step, seconds",
    "training.eval": "behaviour was looked at: step and what was measured",
    "training.gradients": "gradients before a step: step and what a hook measured; `hook`",
    "training.issue": "something is wrong with them: step; `hook`, `text`",
    "training.complete": "a loop ended: steps, epochs, loss, tokens, seconds, learned; `stopped`",
    "training.failed": "it ended by an error: step; `kind`, `message`",
    "workflow.start": "a job begins, of several stages; `workflow`",
    "workflow.stop": "it is over: seconds",
    "workflow.exception": "it raised: seconds; `error`",
    "stage.start": "one part of a workflow begins; `stage`",
    "stage.stop": "it is over: seconds",
    "stage.exception": "it raised: seconds; `error`",
    "adapter.published": "a new adapter is in the library: bytes, tensors, parameters; `adapter`",
    "adapter.activated": "what answers has changed; `adapter` (None is the base model)",
    "adapter.rejected": "an adapter failed its checks and does not answer; `adapter`, `failures`",
    "feedback.recorded": "a rating or correction is stored: feedback, weight, count; `rating`",
    "generation.complete": "an answer has ended: tokens, prompt_tokens, reused_tokens, seconds, "
    "first_token_seconds, tokens_per_second; `adapter`, `reason`",
}
"""Every event there is, with its measurements; after the semicolon its metadata."""

_NOTHING: Mapping[str, Any] = {}
_lock = threading.Lock()
# Replaced as a whole, never changed: `emit` reads it without a lock.
_handlers: dict[str, tuple[tuple[str, Handler], ...]] = {}


def emit(
    name: str,
    measurements: Mapping[str, Number] = _NOTHING,
    metadata: Mapping[str, Any] = _NOTHING,
) -> None:
    """Tell the handlers of an event. Costs well under a microsecond where there are none."""
    for identity, handler in _handlers.get(name, ()):
        try:
            handler(name, measurements, metadata)
        except Exception:
            detach(identity)
            log.exception("the telemetry handler %s failed at %s and was detached", identity, name)


def attach(identity: str, name: str, handler: Handler) -> None:
    """Have a handler told of an event.

    Args:
        identity: what `detach` knows it by.
        name: one of `NAMES`.

    Raises:
        ValueError: the identity is taken, or there is no such event.
    """
    attach_many(identity, (name,), handler)


def attach_many(identity: str, names: Iterable[str], handler: Handler) -> None:
    """Have a handler told of several events.

    Raises:
        ValueError: the identity is taken, or one of the names is no event; nothing was attached.
    """
    global _handlers
    wanted = dict.fromkeys(names)
    for name in wanted:
        if name not in NAMES:
            near = get_close_matches(name, NAMES, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(f"There is no event {name!r}.{hint}")
    with _lock:
        if identity in _identities():
            raise ValueError(f"A handler {identity!r} is attached already; detach it first.")
        changed = dict(_handlers)
        for name in wanted:
            changed[name] = (*changed.get(name, ()), (identity, handler))
        _handlers = changed


def detach(identity: str) -> bool:
    """Take a handler away from all its events; whether it was there."""
    global _handlers
    with _lock:
        if identity not in _identities():
            return False
        left = {
            name: tuple(entry for entry in entries if entry[0] != identity)
            for name, entries in _handlers.items()
        }
        _handlers = {name: entries for name, entries in left.items() if entries}
    return True


@contextmanager
def attached(identity: str, names: Iterable[str], handler: Handler) -> Iterator[None]:
    """`attach_many` while inside."""
    attach_many(identity, names, handler)
    try:
        yield
    finally:
        detach(identity)


@contextmanager
def span(kind: str, title: str, metadata: Mapping[str, Any] = _NOTHING) -> Iterator[None]:
    """Emit `kind.start` now and at the end `kind.stop`, or `kind.exception` where it raises.

    Args:
        kind: `workflow` or `stage`.
        title: which one; metadata of that name (`{"stage": title}`).
    """
    about = {kind: title, **metadata}
    emit(f"{kind}.start", {"time": time.time()}, about)
    began = time.perf_counter()
    try:
        yield
    except BaseException as error:
        seconds = time.perf_counter() - began
        emit(f"{kind}.exception", {"seconds": seconds}, {**about, "error": type(error).__name__})
        raise
    emit(f"{kind}.stop", {"seconds": time.perf_counter() - began}, about)


def _identities() -> set[str]:
    return {identity for entries in _handlers.values() for identity, _ in entries}
