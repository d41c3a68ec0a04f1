"""Questions to the adapter of their domain (`adapters.routing = "domain"`).

Follows the library, keeps the adapters that were routed to last ready beside the active one, and
never stands in the way of an answer: what cannot be used is left out, and said once. Knows
nothing of conversations.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shammah.adapters.domains import DomainAdapter, DomainRouter, Route, domain_adapters
from shammah.adapters.weights import load_checked
from shammah.assistant.views import Notice
from shammah.errors import ShammahError
from shammah.settings import AdaptersSettings

if TYPE_CHECKING:
    from shammah.adapters.library import AdapterLibrary
    from shammah.generation.embedder import Embedders
    from shammah.generation.engine import Engine
    from shammah.generation.lora import AdapterState
    from shammah.models.load import BaseModel

log = logging.getLogger("shammah")

READY = 4
"""Adapters that are kept ready to compute with, beside the active one."""


@dataclass(frozen=True, slots=True)
class Routed:
    """The adapter that a question goes to, ready to compute with, and why it goes there."""

    state: AdapterState
    route: Route


class DomainRouting:
    """Routes the questions to one engine.

    Args:
        base: the engine's model.
        embedders: of that model.
        library: where the adapters are.
        folder: where vectors of lessons are kept.
        on_notice: called on the event loop with what the user should read.
    """

    def __init__(
        self,
        base: BaseModel,
        embedders: Embedders,
        engine: Engine,
        library: AdapterLibrary,
        folder: Path,
        on_notice: Callable[[Notice], None],
    ) -> None:
        self._base = base
        self._embedders = embedders
        self._engine = engine
        self._library = library
        self._folder = folder
        self._on_notice = on_notice
        self._router: DomainRouter | None = None
        self._embedding: str | None = None
        self._seen: object = None
        self._domains: dict[str, str] = {}
        self._broken: dict[str, object] = {}
        self._said: set[str] = set()
        self._ready: OrderedDict[tuple[str, str], AdapterState] = OrderedDict()
        self._looking = asyncio.Lock()

    async def route(self, question: str, settings: AdaptersSettings) -> Routed | None:
        """Where a question goes; None leaves it to the active adapter."""
        try:
            while True:
                await self._look(settings)
                if self._router is None:
                    return None
                near = await self._router.candidates(question, settings.routing_threshold)
                if not near:
                    return None
                best = near[0]
                try:
                    return Routed(await asyncio.to_thread(self._state, best.adapter), best)
                except ShammahError as error:
                    # Without it another one of its line may stand in its place.
                    self._broken[best.adapter] = await asyncio.to_thread(self._mark, best.adapter)
                    self._leave_out(best.adapter, best.domain, error.message)
        except ShammahError as error:
            self._say(f"Questions are not routed to adapters: {error}")
            return None

    async def look(self, settings: AdaptersSettings) -> None:
        """Take over what has changed in the library, ahead of the question that needs it."""
        try:
            await self._look(settings)
        except ShammahError as error:
            self._say(f"Questions are not routed to adapters: {error}")

    async def _look(self, settings: AdaptersSettings) -> None:
        async with self._looking:
            failed = settings.activate == "always"
            stamp = await asyncio.to_thread(self._library.stamp)
            seen = (stamp, settings.embedding, failed, frozenset(self._broken))
            if seen == self._seen:
                return
            # Set where it fails, too: it is not tried again until something is another way.
            self._seen = seen
            if self._router is None or self._embedding != settings.embedding:
                self._router = None
                embedder = await self._embedders.get(settings.embedding)
                self._router = DomainRouter(embedder, self._folder)
                self._embedding = settings.embedding
            await self._router.learn(await asyncio.to_thread(self._find, failed))
            self._seen = (*seen[:3], frozenset(self._broken))

    def _find(self, failed: bool) -> list[DomainAdapter]:
        """The adapters to route to; what is broken of those known before is told of."""
        self._broken = {
            name: mark for name, mark in self._broken.items() if mark == self._mark(name)
        }
        usable = []
        for adapter in self._library.list():
            domain = self._domains.get(adapter.name)
            if adapter.problem is not None and domain is not None:
                self._leave_out(adapter.name, domain, adapter.problem)
            elif adapter.name not in self._broken:
                usable.append(adapter)
        for lost in self._library.lost():
            if lost.domain is not None and lost.base_fingerprint == self._base.fingerprint:
                self._leave_out(lost.name, lost.domain, "its weights file is missing.")
        found = domain_adapters(usable, self._base.fingerprint, failed=failed)
        self._domains |= {adapter.name: adapter.domain for adapter in found}
        return found

    def _state(self, name: str) -> AdapterState:
        """An adapter ready to compute with; each keeps its generation while it is kept ready."""
        active = self._engine.active
        if active.name == name:
            return active
        adapter = self._library.get(name)
        metadata = adapter.require_metadata()
        key = (name, metadata.sha256)
        state = self._ready.get(key)
        if state is None:
            weights = load_checked(adapter.path, metadata, self._base.shape)
            state = self._ready[key] = self._engine.prepare(weights, name)
        self._ready.move_to_end(key)
        while len(self._ready) > READY:
            self._ready.popitem(last=False)
        return state

    def _mark(self, name: str) -> object:
        """Another one when the adapter's weights were put right."""
        try:
            about = (self._library.folder / f"{name}.safetensors").stat()
        except OSError:
            return None
        return about.st_mtime_ns, about.st_size

    def _leave_out(self, name: str, domain: str, problem: str) -> None:
        self._say(f"{name} does not answer questions about {domain}: {problem}")

    def _say(self, text: str) -> None:
        """Once. From any thread."""
        if text not in self._said:
            self._said.add(text)
            log.warning("%s", text)
            self._on_notice(Notice("warning", text))
